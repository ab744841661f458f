"""What a model has to compute, counted without computing it: the features that predict its latency."""

from __future__ import annotations

import functools
import math
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitesse.layers import replace_modules
from vitesse.models import build
from vitesse.spec import ModelSpec

MATRIX = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1}
"""Matrix products, with the place of their left factor."""


@dataclass(kw_only=True)
class Cost:
    """Of one batch: calls of operators by kind, multiply-accumulates by kind, and numbers read and written.

    Views and batch normalisations, which folding removes, are not counted.
    """

    dense_convs: int = 0
    depthwise_convs: int = 0
    matrix_products: int = 0
    other_calls: int = 0
    dense_macs: int = 0
    depthwise_macs: int = 0
    matrix_macs: int = 0
    weights: int = 0
    activations: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the batch."""
        return self.dense_macs + self.depthwise_macs + self.matrix_macs

    @property
    def features(self) -> tuple[float, ...]:
        """All of the above, and a constant."""
        return (1.0, *map(float, astuple(self)))


@functools.lru_cache(maxsize=4096)
def _cost(name: str, size: tuple[int, int], classes: int, variant: tuple[Any, ...], batch: int) -> Cost:
    spec = ModelSpec(name=name, image_size=size, num_classes=classes, variant=dict(variant))
    with torch.device("meta"), torch.no_grad():
        model = build(spec).eval()
        for kind in (nn.BatchNorm1d, nn.BatchNorm2d):  # folded away, and slow to trace
            replace_modules(model, kind, lambda _: nn.Identity())
        with _Counting() as counting:
            model(torch.empty(batch, spec.in_chans, *size))
    cost: Cost = counting.cost
    cost.weights = sum(parameter.numel() for parameter in model.parameters())
    return cost


def cost_of(spec: ModelSpec, batch_size: int = 1) -> Cost:
    """The cost of a batch of so many pictures; `weights` are the model's parameters."""
    return _cost(spec.name, spec.image_size, spec.num_classes, tuple(spec.variant.items()), batch_size)


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, operators are counted instead of only run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cost = Cost()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, (tuple, list)) else out
        if isinstance(first, torch.Tensor) and not _is_free(func):
            self._count(func.overloadpacket.__name__, args, first)
        return out

    def _count(self, name: str, args: Any, out: torch.Tensor) -> None:
        cost = self.cost
        cost.activations += out.numel()
        if name == "convolution":
            weight = args[1]
            macs = out.numel() * math.prod(weight.shape[1:])
            if weight.shape[1] == 1:
                cost.depthwise_convs += 1
                cost.depthwise_macs += macs
            else:
                cost.dense_convs += 1
                cost.dense_macs += macs
        elif name in MATRIX:
            cost.matrix_products += 1
            cost.matrix_macs += out.numel() * args[MATRIX[name]].shape[-1]
        else:
            cost.other_calls += 1


def _is_free(func: Any) -> bool:
    """Whether an operator only looks at its input in another way."""
    views = [value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns]
    return any(views)
