"""What a source of labelled pictures is, and what every kind of source shares."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import DataError, did_you_mean

T = TypeVar("T")

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".npy"})
SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "val", "valid", "validation"),
}
ALIASES = {alias: names for names in SPLIT_NAMES.values() for alias in names}
MAX_CLASSES = 100_000
"""More than any data set has: a larger class index is an identity number in the wrong column."""


class Pictures(Protocol):
    """Encoded pictures, whatever is known of them.

    Attributes:
        class_names: name of each class index.
        fingerprint: hex digest that changes when the list of pictures or what is known of them changes.
        blocks: lengths of the runs of pictures, one after the other, that are cheap to read together; empty
            where any order is.
    """

    class_names: tuple[str, ...]
    fingerprint: str
    blocks: tuple[int, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where a picture came from, for error messages."""

    def read(self, index: int) -> bytes:
        """The encoded picture: JPEG, PNG, WebP, or an array as a `.npy` file.

        Raises:
            OSError: the file cannot be read.
        """

    def sizes(self) -> NDArray[np.int64] | None:
        """Bytes of each encoded picture, int64 (N,), 0 where it is absent; None where that takes long."""


class Source(Pictures, Protocol):
    """Pictures with one class each: `labels` are their class indices, int64 (N,)."""

    labels: NDArray[np.int64]


def check_labels(source: Source) -> None:
    """Refuse labels that are no class index.

    Raises:
        DataError: a label is below 0 or above the last class.
    """
    outside = np.flatnonzero((source.labels < 0) | (source.labels >= len(source.class_names)))
    if outside.size:
        first, last = int(outside[0]), len(source.class_names) - 1
        raise DataError(f"{source.name(first)}: expected a label of 0 to {last}, got {source.labels[first]}")


def digest(names: Sequence[str], labels: NDArray[Any], class_names: Sequence[str]) -> str:
    found = hashlib.sha256(json.dumps([list(names), list(class_names)]).encode())
    found.update(labels.tobytes())
    return found.hexdigest()[:16]


def numbered_classes(labels: NDArray[np.int64], where: Callable[[int], str]) -> tuple[str, ...]:
    """Names for classes that have only indices: "0", "1" and so on to the largest label.

    Raises:
        DataError: a label is no class index; the message begins with `where` of its position.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= MAX_CLASSES))
    if wrong.size:
        first = int(wrong[0])
        raise DataError(
            f"{where(first)}: expected a class index of 0 to {MAX_CLASSES - 1}, got {labels[first]}"
        )
    return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))


def index_labels(
    values: Sequence[str | int], where: Callable[[int], str], class_names: Sequence[str] = ()
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class indices int64 (N,) and class names of labels that are all indices, or all names.

    Names without `class_names` get their index in sorted order.

    Raises:
        DataError: a name is not among `class_names`, or an index is none; the message begins with `where`
            of its position.
    """
    index_of = {name: index for index, name in enumerate(class_names)}
    texts = [str(value) for value in values]
    if not all(text in index_of for text in texts) and all(re.fullmatch(r"-?[0-9]{1,18}", t) for t in texts):
        labels = np.array([int(text) for text in texts], np.int64)
        return labels, tuple(class_names) or numbered_classes(labels, where)
    if not class_names:
        index_of = {name: index for index, name in enumerate(sorted(set(texts)))}
    for position, text in enumerate(texts):
        if text not in index_of:
            raise DataError(f"{where(position)}: no such class {text!r}; {did_you_mean(text, index_of)}")
    return np.array([index_of[text] for text in texts], np.int64), tuple(index_of)


def of_split(where: object, entries: Sequence[T], split: str | None, named: Callable[[T], str]) -> list[T]:
    """The entries of a split, `named` by the split they belong to.

    Entries none of which is named after a split are data without splits: all of them, whichever is asked for.

    Raises:
        DataError: there are several splits and none is asked for, or there is no such split.
    """
    names = [named(entry) for entry in entries]
    found = sorted(set(names))
    if split not in found and not ALIASES.keys() & set(found):
        return list(entries)
    if split is None and len(found) > 1:
        raise DataError(f"{where}: holds the splits {', '.join(found)}; say which one (--split)")
    for wanted in (split, *ALIASES.get(split or "", ())):
        if chosen := [entry for entry, name in zip(entries, names, strict=True) if wanted in (name, None)]:
            return chosen
    raise DataError(f"{where}: has no split {split!r}; found {', '.join(found)}")


def leading_word(name: str) -> str:
    """What a file's name begins with: `train` of `train-00000-of-00002.parquet` and of `train_07.tar`."""
    return re.split(r"[-_.\d]", name, maxsplit=1)[0]


def is_url(place: str) -> bool:
    return "://" in place
