"""Parts of a source, and a source under other labels."""

from __future__ import annotations

from typing import Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from vitesse.data.contract import Pictures, Source, digest
from vitesse.data.dense import Annotated, Boxes, BoxSource, Fault, MapSource

P = TypeVar("P", bound=Pictures)
A = TypeVar("A", bound=Annotated)

HELD_OUT_SHARE = 0.1
"""Of data without splits, what is held out of training."""


class PictureSubset(Generic[P]):
    """Some pictures of a source, by index."""

    def __init__(self, source: P, indices: NDArray[np.int64]) -> None:
        self.source, self.indices = source, indices
        self.class_names = source.class_names
        self.fingerprint = digest([source.fingerprint], indices, ())
        self.blocks = _blocks_of(source.blocks, indices)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def read(self, index: int) -> bytes:
        return self.source.read(int(self.indices[index]))


class Subset(PictureSubset[Source]):
    """Some pictures of a source of labelled ones."""

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        super().__init__(source, indices)
        self.labels = source.labels[indices]


class AnnotatedSubset(PictureSubset[A]):
    """Some pictures of a source of annotated ones, with all its notes."""

    def __init__(self, source: A, indices: NDArray[np.int64]) -> None:
        super().__init__(source, indices)
        self.notes = source.notes

    def faults(self, index: int) -> tuple[Fault, ...]:
        return self.source.faults(int(self.indices[index]))


class BoxSubset(AnnotatedSubset[BoxSource]):
    """Some pictures of a source of boxes."""

    def __init__(self, source: BoxSource, indices: NDArray[np.int64]) -> None:
        super().__init__(source, indices)
        self.category_ids, self.has_masks = source.category_ids, source.has_masks

    def boxes(self, index: int) -> Boxes:
        return self.source.boxes(int(self.indices[index]))


class MapSubset(AnnotatedSubset[MapSource]):
    """Some pictures of a source of label maps."""

    def __init__(self, source: MapSource, indices: NDArray[np.int64]) -> None:
        super().__init__(source, indices)
        self.colours = source.colours

    def label_map(self, index: int) -> NDArray[np.uint8]:
        return self.source.label_map(int(self.indices[index]))


class Relabelled:
    """A source with other labels and class names."""

    def __init__(self, source: Source, labels: NDArray[np.int64], class_names: tuple[str, ...]) -> None:
        self.source, self.labels, self.class_names = source, labels, class_names
        self.fingerprint = digest([source.fingerprint], labels, class_names)
        self.name, self.read, self.blocks = source.name, source.read, source.blocks

    def __len__(self) -> int:
        return len(self.source)


def hold_out(source: P, share: float, seed: int) -> tuple[P, P]:
    """A seeded split into (training part, held-out part).

    The held-out part keeps the proportions of the classes; pictures with boxes or label maps count as one.
    """
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(source), dtype=bool)
    labels = getattr(source, "labels", np.zeros(len(source), np.int64))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out[members[: round(len(members) * share)]] = True
    return part_of(source, np.flatnonzero(~held_out)), part_of(source, np.flatnonzero(held_out))


def take(source: P, limit: int | None, seed: int = 0) -> P:
    """At most `limit` pictures, drawn once by `seed`; all of them where `limit` is None."""
    if limit is None or limit >= len(source):
        return source
    drawn = np.random.default_rng(seed).permutation(len(source))[:limit]
    return part_of(source, np.sort(drawn))


def part_of(source: P, indices: NDArray[np.int64]) -> P:
    """The pictures of some indices, as a source of the same kind."""
    known: object = source
    if hasattr(known, "boxes"):
        return cast(P, BoxSubset(cast(BoxSource, known), indices))
    if hasattr(known, "label_map"):
        return cast(P, MapSubset(cast(MapSource, known), indices))
    return cast(P, Subset(cast(Source, known), indices))


def _blocks_of(blocks: tuple[int, ...], indices: NDArray[np.int64]) -> tuple[int, ...]:
    """Lengths of the runs of indices that lie in the same block."""
    if not blocks or not len(indices):
        return ()
    block_of = np.searchsorted(np.cumsum(blocks), indices, "right")
    ends = np.flatnonzero(np.diff(block_of)) + 1
    return tuple(np.diff([0, *ends.tolist(), len(indices)]).tolist())
