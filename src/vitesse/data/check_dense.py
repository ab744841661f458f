"""What is wrong with pictures that have boxes or label maps: a line for each kind of fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.check import NAMES_SHOWN
from vitesse.data.contract import Pictures
from vitesse.data.dense import (
    COUNTED_DETECTIONS,
    IGNORE,
    Annotated,
    BoxSource,
    Fault,
    MapSource,
    Note,
    picture_size,
)
from vitesse.errors import DataError, ImageError
from vitesse.progress import track
from vitesse.runtime.imaging import read_image

_Look = tuple[list[Note], NDArray[np.int64]]
"""What is wrong with a picture and its annotations, and how much of each class (K,) it shows."""

HARMLESS = frozenset({Fault.BACKGROUND, Fault.CROWDED})


@dataclass(frozen=True, kw_only=True)
class DenseCheck:
    """What `check_boxes` or `check_maps` found.

    Attributes:
        class_names: of the data.
        class_counts: objects, or labelled pixels, of each class.
        pictures: that were looked at.
        notes: every fault and where it is, in the order of the pictures.
    """

    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    pictures: int
    notes: tuple[Note, ...]

    def counts(self) -> dict[Fault, int]:
        """How often each fault is there."""
        return dict(Counter(note.fault for note in self.notes))

    @property
    def faulty(self) -> bool:
        """Whether anything is wrong but what is harmless."""
        return any(note.fault not in HARMLESS for note in self.notes)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values: where each kind of fault is."""
        faults: dict[str, list[str]] = {}
        for fault, where in self.notes:
            faults.setdefault(fault.name.lower(), []).append(where)
        return {
            "pictures": self.pictures,
            "classes": dict(zip(self.class_names, self.class_counts, strict=True)),
            "faults": faults,
        }

    def lines(self) -> list[str]:
        """What a person should know, a line for each kind of fault."""
        first = {note.fault: note.where for note in reversed(self.notes)}
        lines = [
            f"{fault.value}: {count:,}, the first is {first[fault]}" for fault, count in self.counts().items()
        ]
        empty = [name for name, n in zip(self.class_names, self.class_counts, strict=True) if not n]
        return lines + ([f"classes that are nowhere: {', '.join(map(repr, empty))}"] if empty else [])


def check_boxes(
    source: BoxSource,
    *,
    strict: bool = False,
    decode: bool = True,
    workers: int = 2,
    check: Callable[[], None] = lambda: None,
) -> DenseCheck:
    """Look at every picture and its objects.

    Args:
        strict: refuse data with any fault but those of `HARMLESS`.
        decode: decode every picture, not only its header.
        workers: threads.
        check: called before every picture, in these threads; may raise.

    Raises:
        DataError: `strict`, and there is a fault.
    """
    classes = len(source.class_names)

    def look(index: int) -> tuple[list[Fault], NDArray[np.int64]]:
        size = _size_of(source.read(index), decode)
        boxes = source.boxes(index)
        faults, counts_K = [*source.faults(index)], np.bincount(boxes.labels_N, minlength=classes)
        if boxes.size != size:
            faults.append(Fault.OTHER_SIZE)
        if not len(boxes):
            faults.append(Fault.BACKGROUND)
        if counts_K.max() > COUNTED_DETECTIONS:
            faults.append(Fault.CROWDED)
        return faults, counts_K

    return _checked(source, look, strict, workers, check)


def check_maps(
    source: MapSource,
    *,
    strict: bool = False,
    decode: bool = True,
    workers: int = 2,
    check: Callable[[], None] = lambda: None,
) -> DenseCheck:
    """Look at every picture and its label map; arguments and errors as of `check_boxes`."""
    classes = len(source.class_names)

    def look(index: int) -> tuple[list[Fault], NDArray[np.int64]]:
        size, labels_HW = _size_of(source.read(index), decode), source.label_map(index)
        faults, counts_K = [*source.faults(index)], np.bincount(labels_HW.ravel(), minlength=IGNORE)[:classes]
        if labels_HW.shape != size:
            faults.append(Fault.OTHER_SIZE)
        if not counts_K.any():
            faults.append(Fault.BACKGROUND)
        return faults, counts_K

    return _checked(source, look, strict, workers, check)


def check_same_classes(train: Pictures, val: Pictures) -> None:
    """Refuse splits in which an index means different classes.

    Raises:
        DataError: their class names, or the order of them, differ.
    """
    if train.class_names != val.class_names:
        differ = sorted(set(train.class_names) ^ set(val.class_names)) or ["their order"]
        raise DataError(
            f"training and validation data hold different classes: {', '.join(differ[:NAMES_SHOWN])}"
        )


def _size_of(encoded: bytes, decode: bool) -> tuple[int, int]:
    if not decode:
        return picture_size(encoded)
    image = read_image(encoded)
    return image.height, image.width


def _checked(
    source: Annotated,
    look: Callable[[int], tuple[list[Fault], NDArray[np.int64]]],
    strict: bool,
    workers: int,
    check: Callable[[], None],
) -> DenseCheck:
    def look_at(index: int) -> _Look:
        check()
        try:
            faults, counts_K = look(index)
            return [Note(fault, source.name(index)) for fault in faults], counts_K
        except (ImageError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            return [Note(Fault.UNREADABLE, f"{source.name(index)}: {reason}")], nothing_K

    nothing_K = np.zeros(len(source.class_names), np.int64)
    notes, counts_K = [*source.notes], nothing_K.copy()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        seen = pool.map(look_at, range(len(source)))
        for found, counts in track(seen, "check annotations", len(source)):
            notes += found
            counts_K += counts
    checked = DenseCheck(
        class_names=source.class_names,
        class_counts=tuple(counts_K.tolist()),
        pictures=len(source),
        notes=tuple(notes),
    )
    wrong = [note for note in notes if note.fault not in HARMLESS]
    if strict and wrong:
        raise DataError(f"{len(wrong)} faults, such as {wrong[0].where}: {wrong[0].fault.value}")
    return checked
