"""How many channels each part of a smaller model has: the least important for what they cost go first."""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitesse.analyze.channels import Channels, Structure
from vitesse.errors import ConfigError
from vitesse.models import build
from vitesse.models.efficientvit_msra import CascadedGroupAttention
from vitesse.models.shvit import SHViT, SingleHeadSelfAttention
from vitesse.models.transformer import SelfAttention
from vitesse.progress import track
from vitesse.spec import ModelSpec

PRUNED = {"ffn": "ffn", "qk": "k", "width": "width"}
"""What can be cut, and the channels that decide over it."""
COSTS = ("macs", "params")
ATTENTION = (CascadedGroupAttention, SingleHeadSelfAttention, SelfAttention)
NARROWEST = 8
"""Fewest channels of a stage; the first halves its own three times in the stem."""


@dataclass(frozen=True, kw_only=True)
class Cuttable:
    """Channels that are cut by the same number each, such as the keys of all heads of an attention.

    Attributes:
        importance: what a cut by one more takes away each time, ascending; without what has to stay.
    """

    channels: tuple[Channels, ...]
    importance: NDArray[np.float64]


class Meter:
    """Counts what models of one depth and image size cost, from their shapes alone.

    One run says at how many positions each layer is computed, and how many pairs of them meet in each
    attention, whatever the widths are.
    """

    def __init__(self, model: Any) -> None:
        self.positions: dict[str, int] = {}
        self.pairs: dict[str, int] = {}
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                handles.append(module.register_forward_hook(partial(self._count_positions, name)))
            elif isinstance(module, ATTENTION):
                handles.append(module.register_forward_hook(partial(self._count_pairs, name)))
        with torch.inference_mode():
            model(torch.zeros(1, model.spec.in_chans, *model.spec.image_size))
        for handle in handles:
            handle.remove()

    def _count_positions(self, name: str, module: Any, _inputs: Any, output: Tensor) -> None:
        self.positions[name] = output.numel() // len(module.weight)

    def _count_pairs(self, name: str, _module: Any, _inputs: Any, output: Tensor) -> None:
        """Maps are (B, C, H, W), B counting windows too; tokens (B, N, C)."""
        positions = output[0, 0].numel() if output.ndim == 4 else output.shape[1]
        self.pairs[name] = len(output) * positions**2

    def cost(self, spec: ModelSpec, kind: str) -> int:
        """Of `COSTS`: multiply-accumulates for one picture, or parameters."""
        model = build(spec)
        if kind == "params":
            return sum(parameter.numel() for parameter in model.parameters())
        modules: dict[str, Any] = dict(model.named_modules())
        layers: int = sum(count * modules[name].weight.numel() for name, count in self.positions.items())
        return layers + sum(count * _product_width(modules[name]) for name, count in self.pairs.items())


def _product_width(attention: Any) -> int:
    """Multiply-accumulates of each pair of positions, in all heads."""
    heads = len(attention.qkvs) if isinstance(attention, CascadedGroupAttention) else 1
    return heads * int(sum(attention.qkv_widths[1:]))


def cuttables(
    structure: Structure, importance: Mapping[Channels, NDArray[np.float64]], of: Iterable[str] | None = None
) -> list[Cuttable]:
    """What can be cut of some kinds, see `groups_of`."""
    return [_cuttable(members, importance) for members in groups_of(structure, of)]


def groups_of(structure: Structure, of: Iterable[str] | None = None) -> list[list[Channels]]:
    """The channels of some kinds, by default of all; those together that are cut by the same number.

    Raises:
        ConfigError: an unknown kind, or one that cannot be cut in this model.
    """
    found = {kind: structure.cut_with(decisive) for kind, decisive in PRUNED.items()}
    known = [kind for kind in found if found[kind]]
    groups: dict[str, list[Channels]] = {}
    for kind in dict.fromkeys(known if of is None else of):
        if kind not in known:
            raise ConfigError(f"--of: expected some of {', '.join(known)} in this model, got {kind!r}")
        for channels in found[kind]:
            groups.setdefault(channels.group, []).append(channels)
    if not groups:
        raise ConfigError(f"--of: expected some of {', '.join(known)} in this model, got none")
    return list(groups.values())


def _cuttable(members: Sequence[Channels], importance: Mapping[Channels, NDArray[np.float64]]) -> Cuttable:
    ascending = np.sum([np.sort(importance[channels]) for channels in members], axis=0)
    fewest = -(-NARROWEST // len(members)) if members[0].kind == "width" else 1
    return Cuttable(channels=tuple(members), importance=ascending[: max(len(ascending) - fewest, 0)])


def smaller_spec(
    model: Any, structure: Structure, cuts: Sequence[Cuttable], *, keep: float, cost: str = "macs"
) -> ModelSpec:
    """The spec of a model that costs at most the share `keep`.

    A cut's importance is divided by what it saves in the whole model, and the lowest come first, until the
    model is small enough.

    Args:
        model: with a spec and this structure.
        cost: of `COSTS`.

    Raises:
        ConfigError: an impossible share, or one that cannot be reached by these cuts.
    """
    check_share(keep, cost)
    whole: ModelSpec = model.spec
    meter = Meter(model)

    def spec_after(cut: Mapping[int, int]) -> ModelSpec:
        """After so many cuts of each of `cuts`, by its position."""
        fewer = {channels: cut[n] for n in cut for channels in cuts[n].channels}
        return dataclasses.replace(whole, variant={**whole.variant, **variant_of(model, structure, fewer)})

    def cost_after(cut: Mapping[int, int]) -> int:
        return meter.cost(spec_after(cut), cost)

    if keep == 1:
        return whole
    full = cost_after({})
    steps: list[tuple[float, int]] = []
    for number, cuttable in track(enumerate(cuts), "cost of channels", len(cuts)):
        if len(cuttable.importance):
            saved = max(full - cost_after({number: 1}), 1)
            steps += [(value / saved, number) for value in cuttable.importance]
    steps.sort()

    def is_small(count: int) -> bool:
        return cost_after(Counter(number for _, number in steps[:count])) <= keep * full

    count = bisect.bisect_left(range(len(steps) + 1), True, key=is_small)
    if count > len(steps):
        least = cost_after(Counter(number for _, number in steps)) / full
        raise ConfigError(f"--keep: these cuts leave {least:.3f} of the {cost} at least, got {keep}")
    return spec_after(Counter(number for _, number in steps[:count]))


def check_share(keep: float, cost: str) -> None:
    """Refuse what no model can be cut to.

    Raises:
        ConfigError: an impossible share, or an unknown cost.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"--keep: expected a share above 0, at most 1, got {keep}")
    if cost not in COSTS:
        raise ConfigError(f"--cost: expected {' or '.join(COSTS)}, got {cost!r}")


def variant_of(model: Any, structure: Structure, fewer: Mapping[Channels, int]) -> dict[str, Any]:
    """What `ModelSpec.variant` says of a model with so many fewer channels of each kind."""
    every = structure.channels()
    stages = sorted({channels.stage for channels in every if channels.kind == "width"})

    def left(kind: str, stage: int) -> dict[str, list[int]]:
        """How many stay, by their group."""
        found: dict[str, list[int]] = {}
        for channels in every:
            if (channels.kind, channels.stage) == (kind, stage):
                found.setdefault(channels.group, []).append(channels.size - fewer.get(channels, 0))
        return found

    widths = [[count for group in left("width", stage).values() for count in group] for stage in stages]
    keys = [tuple(group[0] for group in left("k", stage).values()) for stage in stages]
    variant: dict[str, Any] = {
        "key_dims": tuple(keys),
        "ffn_dims": tuple(tuple(group[0] for group in left("ffn", stage).values()) for stage in stages),
    }
    if structure.cut_with("width"):
        variant["embed_dim"] = tuple(sum(parts) for parts in widths)
    if isinstance(model, SHViT):
        attended = tuple(parts[0] if key else 0 for parts, key in zip(widths, keys, strict=True))
        variant |= {"partial_dim": attended, "partial_ratio": None}
    return variant
