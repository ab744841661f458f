"""Parts of a source, and a source under other labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitesse.data.contract import Source, digest

HELD_OUT_SHARE = 0.1
"""Of data without splits, what is held out of training."""


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


class Relabelled:
    """A source with other labels and class names."""

    def __init__(self, source: Source, labels: NDArray[np.int64], class_names: tuple[str, ...]) -> None:
        self.source, self.labels, self.class_names = source, labels, class_names
        self.fingerprint = digest([source.fingerprint], labels, class_names)
        self.name, self.read, self.blocks = source.name, source.read, source.blocks

    def __len__(self) -> int:
        return len(self.source)


def hold_out(source: Source, share: float, seed: int) -> tuple[Source, Source]:
    """A seeded split into (training part, held-out part); the held-out part keeps the class proportions."""
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(source), dtype=bool)
    for label in np.unique(source.labels):
        members = rng.permutation(np.flatnonzero(source.labels == label))
        held_out[members[: round(len(members) * share)]] = True
    return Subset(source, np.flatnonzero(~held_out)), Subset(source, np.flatnonzero(held_out))


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
