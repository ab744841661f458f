"""Other labels for the same pictures, several of which may be right: ImageNet-ReaL (arXiv 2006.07159)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from vitesse.errors import DataError

if TYPE_CHECKING:
    from vitesse.data.sources import Source
    from vitesse.metrics.scores import Outcomes

NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True, kw_only=True)
class LabelSetScores:
    """Share of the pictures whose first class is in their set; those whose set is empty are left out."""

    top1: float
    images: int
    left_out: int


def score_label_sets(found: Outcomes, source: Source, sets: Mapping[str, frozenset[int]]) -> LabelSetScores:
    """Score what a model said by the sets that `read_label_sets` gave.

    Raises:
        DataError: the sets of all pictures are empty.
    """
    right = [sets[source.name(index)] for index in found.pictures_B.tolist()]
    hits = [
        first in classes for first, classes in zip(found.firsts_B.tolist(), right, strict=True) if classes
    ]
    if not hits:
        raise DataError("--labels: no picture that could be read has a label")
    return LabelSetScores(top1=sum(hits) / len(hits), images=len(hits), left_out=len(right) - len(hits))


def read_label_sets(path: str | Path, source: Source, num_classes: int) -> dict[str, frozenset[int]]:
    """Class indices by the name of each picture of a source.

    Args:
        path: JSON. A list of lists of class indices is matched by the number in the names of the pictures
            where these begin like `ILSVRC2012_val_00000001`, counted from 1, and by the pictures' order
            otherwise. A mapping has lists under file names, alone or behind their folder's: `cat/1.jpg`.
        source: all the pictures that the file is about.
        num_classes: of the model.

    Raises:
        DataError: the file cannot be read, is of another form, or does not fit the pictures or the model.
    """
    path = Path(path)
    entries = _read(path)
    names = [source.name(index) for index in range(len(source))]
    keys: Sequence[str | int] = (
        _names_in(path, entries, names) if isinstance(entries, dict) else _places_in(path, entries, names)
    )
    return {
        name: _checked(path, key, entries[key], num_classes) for name, key in zip(names, keys, strict=True)
    }


def _read(path: Path) -> Any:
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON: {error}") from None
    if not isinstance(entries, list | dict):
        raise DataError(
            f"{path}: expected a list of lists of class indices, or lists by file name, "
            f"got {type(entries).__name__}"
        )
    return entries


def _names_in(path: Path, entries: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The key of each picture: its file name, with the folder's where the mapping has it."""
    keys = [next((key for key in _endings(name) if key in entries), "") for name in names]
    if missing := [name for name, key in zip(names, keys, strict=True) if not key]:
        raise DataError(
            f"{path}: has nothing for {len(missing)} of {len(names)} pictures, {missing[0]} for one; "
            "an empty list leaves a picture out"
        )
    key, count = Counter(keys).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: {key!r} is the name of {count} pictures; write it behind its folder's name")
    return keys


def _endings(name: str) -> tuple[str, str]:
    path = PurePath(name)
    return f"{path.parent.name}/{path.name}", path.name


def _places_in(path: Path, entries: Sequence[Any], names: Sequence[str]) -> Sequence[int]:
    """The place of each picture in the list: by the number in its name where they have one, or its own."""
    numbers = [int(found[1]) for name in names if (found := NUMBERED.match(PurePath(name).name))]
    if not numbers and len(entries) == len(names):
        return range(len(names))
    if len(numbers) < len(names):
        raise DataError(
            f"{path}: expected {len(names)} lists, one a picture, or pictures that are all named like "
            f"ILSVRC2012_val_00000001; got {len(entries)} lists and {len(numbers)} such pictures"
        )
    if not 1 <= min(numbers) <= max(numbers) <= len(entries):
        raise DataError(
            f"{path}: has {len(entries)} lists, the pictures are ILSVRC2012_val_{min(numbers):08} to "
            f"{max(numbers):08}"
        )
    return [number - 1 for number in numbers]


def _checked(path: Path, key: str | int, classes: Any, num_classes: int) -> frozenset[int]:
    if not isinstance(classes, list) or not all(type(c) is int and 0 <= c < num_classes for c in classes):
        raise DataError(
            f"{path}: expected a list of class indices of 0 to {num_classes - 1} for {key!r}, "
            f"got {json.dumps(classes):.60}"
        )
    return frozenset(classes)
