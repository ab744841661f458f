"""Parts of a source, and a source under other labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.check import MAX_COMPARED, content_digests
from vitesse.data.contract import Source, digest
from vitesse.progress import say

HELD_OUT_SHARE = 0.1
"""Of data without splits, what is held out of training."""

MAX_READ = 2**30
"""Bytes of pictures of the same size that are read to find copies before data is split."""


class Subset:
    """Some pictures of a source, by index."""

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        self.source, self.indices = source, indices
        self.labels = source.labels[indices]
        self.class_names = source.class_names
        self.fingerprint = digest([source.fingerprint], indices, ())
        self.blocks = _blocks_of(source.blocks, indices)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def read(self, index: int) -> bytes:
        return self.source.read(int(self.indices[index]))

    def sizes(self) -> NDArray[np.int64] | None:
        sizes_N = self.source.sizes()
        return None if sizes_N is None else sizes_N[self.indices]


class Relabelled:
    """A source with other labels and class names."""

    def __init__(self, source: Source, labels: NDArray[np.int64], class_names: tuple[str, ...]) -> None:
        self.source, self.labels, self.class_names = source, labels, class_names
        self.fingerprint = digest([source.fingerprint], labels, class_names)
        self.name, self.read, self.blocks = source.name, source.read, source.blocks

    def __len__(self) -> int:
        return len(self.source)

    def sizes(self) -> NDArray[np.int64] | None:
        return self.source.sizes()


def hold_out(source: Source, share: float, seed: int) -> tuple[Source, Source]:
    """A seeded split into (training part, held-out part); the held-out part keeps the class proportions.

    Copies of a picture fall where the first of them does, which alone is counted.
    """
    rng = np.random.default_rng(seed)
    first_N = _first_copies(source)
    is_first_N = first_N == np.arange(len(source))
    held_out_N = np.zeros(len(source), dtype=bool)
    for label in np.unique(source.labels):
        members = rng.permutation(np.flatnonzero((source.labels == label) & is_first_N))
        held_out_N[members[: round(len(members) * share)]] = True
    held_out_N = held_out_N[first_N]
    return Subset(source, np.flatnonzero(~held_out_N)), Subset(source, np.flatnonzero(held_out_N))


def _first_copies(source: Source) -> NDArray[np.int64]:
    """Index (N,) of the first picture of the same bytes: its own where there is none before it.

    Only pictures of the same size are read; where they are too many, all count as different.
    """
    first_N = np.arange(len(source))
    sizes_N = source.sizes() if len(source) <= MAX_COMPARED else None
    if sizes_N is None:
        return first_N
    _, place_N, counts = np.unique(sizes_N, return_inverse=True, return_counts=True)
    alike = np.flatnonzero(counts[place_N] > 1)
    if sizes_N[alike].sum() > MAX_READ:
        return first_N
    seen: dict[bytes, int] = {}
    for index, found in zip(alike.tolist(), content_digests(Subset(source, alike)), strict=True):
        if found is not None:
            first_N[index] = seen.setdefault(found, index)
    return first_N


def unseen(source: Source, provenance: Mapping[str, Any]) -> Source:
    """Of data without splits that a model of this provenance was trained on, the part that was held out."""
    seen_before = provenance.get("data")
    if seen_before is None:
        return source
    recipe = provenance.get("recipe") or {}
    seed = recipe.get("seed", 0)
    kept, held_out = hold_out(source, HELD_OUT_SHARE, seed)
    seen = take(kept, recipe.get("limit_train"), seed)
    if seen.fingerprint != seen_before:
        return source
    say(f"trained on {len(seen)} of these {len(source)} pictures; scored on the {len(held_out)} held out")
    return held_out


def take(source: Source, limit: int | None, seed: int = 0) -> Source:
    """At most `limit` pictures, drawn once by `seed`; all of them where `limit` is None."""
    if limit is None or limit >= len(source):
        return source
    drawn = np.random.default_rng(seed).permutation(len(source))[:limit]
    return Subset(source, np.sort(drawn))


def _blocks_of(blocks: tuple[int, ...], indices: NDArray[np.int64]) -> tuple[int, ...]:
    """Lengths of the runs of indices that lie in the same block."""
    if not blocks or not len(indices):
        return ()
    block_of = np.searchsorted(np.cumsum(blocks), indices, "right")
    ends = np.flatnonzero(np.diff(block_of)) + 1
    return tuple(np.diff([0, *ends.tolist(), len(indices)]).tolist())
