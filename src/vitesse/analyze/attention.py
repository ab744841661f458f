"""Attention maps of any torch model, watched from outside: no model knows of it.

Shape suffixes: B pictures, or windows of them, C channels, H rows, W columns, A heads, D head width,
N positions, Q queries, K keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitesse.analyze.head_similarity import as_heads
from vitesse.errors import ConfigError
from vitesse.models.efficientvit_mit import ATTENTION_EPS, MultiScaleLinearAttention

Take = Callable[[str, NDArray[Any]], None]
"""Is told the name of a block and its attention in some pictures, (B, A, Q, K), whose rows sum to 1."""

MAX_ENTRIES = 2**28
"""Of the attention maps of one block in a batch: 1 GiB."""
_FUSED = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""Arguments of `scaled_dot_product_attention` that may come without their names."""


class WatchedModel:
    """A torch model as an engine that tells `take` of all attention in its passes.

    Attention is a softmax over the last of three or more dimensions, `scaled_dot_product_attention`, whose
    weights are had by letting it attend to a unit matrix, and the linear attention of EfficientViT (MIT),
    whose weights it never computes itself. It belongs to the innermost module that computes it.

    Raises:
        ConfigError: maps are too large to be compared, or their heads are not found.
    """

    name = "torch"

    def __init__(self, model: nn.Module, take: Take) -> None:
        self._model, self._take = model.eval(), take

    @torch.inference_mode()
    def run(self, batch_BCHW: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """One pass; see `Engine.run`. Its outputs are not given."""
        mode = _Watch()
        hooks = list(self._hooks(mode))
        try:
            with mode:
                self._model(torch.from_numpy(batch_BCHW))
        finally:
            for hook in hooks:
                hook.remove()
        return ()

    def _hooks(self, mode: _Watch) -> Iterator[Any]:
        def enter(module: nn.Module, args: Any) -> None:
            mode.calls.append([])

        def leave(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                calls = mode.calls.pop()
                if isinstance(module, MultiScaleLinearAttention):
                    calls.append(linear_attention_maps(module, args[0]))
                num_heads = getattr(module, "num_heads", None)
                for block, maps_BAQK in as_heads(name, [call.numpy() for call in calls], num_heads):
                    self._take(block, maps_BAQK)

            return hook

        for name, module in self._model.named_modules():
            if not isinstance(module, nn.Softmax):  # what it computes is its owner's
                yield module.register_forward_pre_hook(enter)
                yield module.register_forward_hook(leave(name))


class _Watch(TorchFunctionMode):
    """Attention weights of the modules that are being computed, the innermost last."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func.__name__ == "softmax" and output.ndim > 2:
            dim = kwargs["dim"] if "dim" in kwargs else args[1]
            if dim in (-1, output.ndim - 1):
                check_room(output.shape)
                self.calls[-1].append(output)
        elif func is F.scaled_dot_product_attention:
            self.calls[-1].append(_fused_maps(**dict(zip(_FUSED, args, strict=False)) | kwargs))
        return output


def _fused_maps(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """The weights of `scaled_dot_product_attention`: what it gives for a unit matrix as values."""
    keys = key.shape[-2]
    check_room((*query.shape[:-1], keys))
    unit_KK = torch.eye(keys, dtype=value.dtype, device=value.device)
    return F.scaled_dot_product_attention(query, key, unit_KK.expand(*key.shape[:-1], keys), **options)


def linear_attention_maps(module: MultiScaleLinearAttention, x_BCHW: Tensor) -> Tensor:
    """The weights that a linear attention implies, relu(q)·relu(k) over its sum: (B, A, Q, K)."""
    q_BADN, k_BADN, _ = module.heads(x_BCHW)
    check_room((*q_BADN.shape[:2], q_BADN.shape[3], k_BADN.shape[3]))
    weights_BAQK = F.relu(q_BADN).mT @ F.relu(k_BADN)
    return weights_BAQK / (weights_BAQK.sum(3, keepdim=True) + ATTENTION_EPS)


def check_room(shape: Sequence[int]) -> None:
    """Refuse attention maps that memory would not hold.

    Raises:
        ConfigError: there are more than `MAX_ENTRIES`.
    """
    if math.prod(shape) > MAX_ENTRIES:
        queries, keys = shape[-2:]
        raise ConfigError(
            f"expected attention maps that fit into memory, got {math.prod(shape[:-2])} of {queries}x{keys} "
            "in a batch; lower --batch-size, or take a model for smaller pictures"
        )
