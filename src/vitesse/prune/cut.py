"""From a trained model to the smaller one of a spec, with the weights of the channels that stay.

The smaller model is built from its spec and filled, not cut layer by layer as torch-pruning does: a spec
must rebuild it anyway, both models' sizes say how many channels go, and the cascade, whose heads are split,
added and joined again, takes no more than a list of what lies along each dimension.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitesse.analyze.channels import Axis, Channels, Structure, Use
from vitesse.analyze.structure import structure_of
from vitesse.models import build
from vitesse.models.efficientvit_msra import CascadedGroupAttention
from vitesse.models.shvit import SingleHeadSelfAttention
from vitesse.models.transformer import SelfAttention
from vitesse.spec import ModelSpec


def cut(
    model: nn.Module,
    structure: Structure,
    spec: ModelSpec,
    importance: Mapping[Channels, NDArray[np.float64]],
) -> Any:
    """The model of `spec` with the most important channels of `model`, in their order; in evaluation mode.

    Args:
        structure: of `model`.
        spec: of the same family and depths, nowhere wider.
        importance: of all channels of `structure` that are not tied to others.
    """
    smaller = build(spec).eval()
    pairs = zip(structure.channels(), structure_of(smaller).channels(), strict=True)
    staying = {
        channels: _most_important(importance[channels], narrower.size)
        for channels, narrower in pairs
        if channels.tied is None
    }
    uses: dict[str, list[Use]] = defaultdict(list)
    for use in structure.uses:
        uses[use.tensor].append(use)
    weights = model.state_dict()
    for name, tensor in weights.items():
        for use in uses[name]:
            tensor = tensor.index_select(use.dim, _positions(use.axis, staying))
        weights[name] = tensor
    smaller.load_state_dict(weights)
    for old, new in zip(model.modules(), smaller.modules(), strict=True):
        _keep_logits(old, new)
    return smaller


def _most_important(importance: NDArray[np.float64], count: int) -> Tensor:
    """Where they are, ascending."""
    order = np.argsort(importance, kind="stable")
    return torch.from_numpy(np.sort(order[len(order) - count :]))


def _positions(axis: Axis, staying: Mapping[Channels, Tensor]) -> Tensor:
    """Of the channels that stay along a dimension."""
    found, first = [], 0
    for channels in axis:
        found.append(first + staying[channels.leader])
        first += channels.size
    return torch.cat(found)


@torch.no_grad()
def _keep_logits(old: Any, new: Any) -> None:
    """Narrower keys are divided by a smaller root; the queries make up for it."""
    layers: list[Any]
    if isinstance(new, CascadedGroupAttention):
        layers = [conv.bn for conv in new.query_convs]
    elif isinstance(new, SingleHeadSelfAttention):
        layers = [new.qkv.bn]
    elif isinstance(new, SelfAttention):
        layers = [new.qkv]
    else:
        return
    for layer in layers:
        queries = slice(new.qkv_widths[0])
        layer.weight[queries] *= old.scale / new.scale
        layer.bias[queries] *= old.scale / new.scale
