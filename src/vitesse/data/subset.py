"""Parts of a source, and a source under other labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from vitesse.data.check import content_digests, of_same_size
from vitesse.data.contract import Pictures, Source, digest
from vitesse.data.dense import Annotated, Boxes, BoxSource, Fault, MapSource
from vitesse.progress import say

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

    def sizes(self) -> NDArray[np.int64] | None:
        sizes_N = self.source.sizes()
        return None if sizes_N is None else sizes_N[self.indices]


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

    def sizes(self) -> NDArray[np.int64] | None:
        return self.source.sizes()


def hold_out(source: P, share: float, seed: int) -> tuple[P, P]:
    """A seeded split into (training part, held-out part).

    The held-out part keeps the proportions of the classes; pictures with boxes or label maps count as one.
    Copies of a picture fall where the first of them does, which alone is counted.
    """
    rng = np.random.default_rng(seed)
    first_N = _first_copies(source)
    is_first_N = first_N == np.arange(len(source))
    held_out_N = np.zeros(len(source), dtype=bool)
    labels = getattr(source, "labels", np.zeros(len(source), np.int64))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero((labels == label) & is_first_N))
        held_out_N[members[: round(len(members) * share)]] = True
    held_out_N = held_out_N[first_N]
    return part_of(source, np.flatnonzero(~held_out_N)), part_of(source, np.flatnonzero(held_out_N))


def _first_copies(source: Pictures) -> NDArray[np.int64]:
    """Index (N,) of the first picture of the same bytes: its own where there is none before it.

    Only pictures of the same size are read; where they are too many, all count as different.
    """
    first_N = np.arange(len(source))
    seen: dict[bytes, int] = {}
    for alike in of_same_size(source) or ():
        for index, found in content_digests(source, alike).items():
            first_N[index] = seen.setdefault(found, index)
    return first_N


def unseen(source: P, provenance: Mapping[str, Any]) -> P:
    """Of data without splits that a model of this provenance was trained on, the part that was held out."""
    if (parts := _as_trained(source, provenance)) is None:
        return source
    seen, held_out = parts
    say(f"trained on {len(seen)} of these {len(source)} pictures; scored on the {len(held_out)} held out")
    return held_out


def seen_in_training(source: P, provenance: Mapping[str, Any]) -> P:
    """The other part, that training saw; all of other data."""
    parts = _as_trained(source, provenance)
    return source if parts is None else parts[0]


def _as_trained(source: P, provenance: Mapping[str, Any]) -> tuple[P, P] | None:
    """What training saw and what it held out, where this is the data without splits that it was given."""
    seen_before = provenance.get("data")
    if seen_before is None:
        return None
    recipe = provenance.get("recipe") or {}
    seed = recipe.get("seed", 0)
    kept, held_out = hold_out(source, HELD_OUT_SHARE, seed)
    seen = take(kept, recipe.get("limit_train"), seed)
    return (seen, held_out) if seen.fingerprint == seen_before else None


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
