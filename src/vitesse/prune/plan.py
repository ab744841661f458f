"""How many channels each part of a smaller model has: those of least importance for what they cost go first."""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitesse.analyze.channels import Channels, Structure
from vitesse.bench.contenders import count_macs
from vitesse.errors import ConfigError
from vitesse.models import build
from vitesse.models.shvit import SHViT
from vitesse.spec import ModelSpec

PRUNED = {"ffn": "ffn", "qk": "k", "width": "width"}
"""What can be cut, and the channels that decide over it."""
COSTS = ("macs", "params")
NARROWEST = 8
"""Fewest channels of a stage; the first halves its own three times in the stem."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Parameters, and multiply-accumulates for one picture."""

    params: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Cuttable:
    """Channels that are cut by the same number each, such as the keys of all heads of an attention.

    Attributes:
        importance: what a cut by one more takes away each time, ascending; without what has to stay.
    """

    channels: tuple[Channels, ...]
    importance: NDArray[np.float64]


def size_of(spec: ModelSpec) -> Size:
    """Of a model, without building its weights."""
    with torch.device("meta"):
        model = build(spec).eval()
        macs = count_macs(model, spec)
    return Size(params=sum(parameter.numel() for parameter in model.parameters()), macs=macs)


def cuttables(
    structure: Structure, importance: Mapping[Channels, NDArray[np.float64]], of: Iterable[str]
) -> list[Cuttable]:
    """What can be cut of some kinds.

    Raises:
        ConfigError: an unknown kind, or one that the model does not have.
    """
    groups: dict[str, list[Channels]] = {}
    for kind in of:
        if kind not in PRUNED:
            raise ConfigError(f"--of: expected some of {', '.join(PRUNED)}, got {kind!r}")
        found = [channels for channels in structure.channels() if channels.kind == PRUNED[kind]]
        if not found:
            raise ConfigError(f"--of {kind}: the model has no attention")
        for channels in found:
            groups.setdefault(channels.group, []).append(channels)
    if not groups:
        raise ConfigError(f"--of: expected some of {', '.join(PRUNED)}, got none")
    return [_cuttable(members, importance) for members in groups.values()]


def _cuttable(members: Sequence[Channels], importance: Mapping[Channels, NDArray[np.float64]]) -> Cuttable:
    ascending = np.sum([np.sort(importance[channels]) for channels in members], axis=0)
    fewest = -(-NARROWEST // len(members)) if members[0].kind == "width" else 1
    return Cuttable(channels=tuple(members), importance=ascending[: max(len(ascending) - fewest, 0)])


def smaller_spec(
    model: Any, structure: Structure, cuts: Sequence[Cuttable], *, keep: float, cost: str = "macs"
) -> ModelSpec:
    """The spec of a model that costs at most the share `keep`.

    A cut's importance is divided by what it saves in the whole model, and the lowest come first, until the model is
    small enough.

    Args:
        model: with a spec and this structure.
        cost: of `COSTS`.

    Raises:
        ConfigError: an impossible share, or one that cannot be reached by these cuts.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"--keep: expected a share above 0, at most 1, got {keep}")
    if cost not in COSTS:
        raise ConfigError(f"--cost: expected {' or '.join(COSTS)}, got {cost!r}")

    def spec_after(cut: Mapping[int, int]) -> ModelSpec:
        """After so many cuts of each of `cuts`, by its position."""
        fewer = {channels: cut[n] for n in cut for channels in cuts[n].channels}
        return dataclasses.replace(
            model.spec, variant={**model.spec.variant, **variant_of(model, structure, fewer)}
        )

    def cost_after(cut: Mapping[int, int]) -> int:
        return int(getattr(size_of(spec_after(cut)), cost))

    whole = cost_after({})
    steps: list[tuple[float, int]] = []
    for number, cuttable in enumerate(cuts):
        if len(cuttable.importance):
            saved = max(whole - cost_after({number: 1}), 1)
            steps += [(value / saved, number) for value in cuttable.importance]
    steps.sort()

    def is_small(count: int) -> bool:
        return cost_after(Counter(number for _, number in steps[:count])) <= keep * whole

    count = bisect.bisect_left(range(len(steps) + 1), True, key=is_small)
    if count > len(steps):
        least = cost_after(Counter(number for _, number in steps)) / whole
        raise ConfigError(f"--keep: these cuts leave {least:.3f} of the {cost} at least, got {keep}")
    return spec_after(Counter(number for _, number in steps[:count])) if count else model.spec


def variant_of(model: Any, structure: Structure, fewer: Mapping[Channels, int]) -> dict[str, Any]:
    """What `ModelSpec.variant` says of a model with so many fewer channels of each kind."""
    stages = range(1, len(model.stages) + 1)
    every = structure.channels()

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
        "embed_dim": tuple(sum(parts) for parts in widths),
        "key_dims": tuple(keys),
        "ffn_dims": tuple(tuple(group[0] for group in left("ffn", stage).values()) for stage in stages),
    }
    if isinstance(model, SHViT):
        attended = tuple(parts[0] if key else 0 for parts, key in zip(widths, keys, strict=True))
        variant |= {"partial_dim": attended, "partial_ratio": None}
    return variant
