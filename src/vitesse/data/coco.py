"""COCO's json: pictures, boxes, and masks as polygons or run lengths."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitesse.data.boxes import BoxFiles, Drawn
from vitesse.data.contract import ALIASES, of_split
from vitesse.data.dense import Fault, Note, check_class_names
from vitesse.errors import DataError

PLACES = (
    "annotations/*.json",
    "_annotations.coco.json",
    "*/_annotations.coco.json",
    "instances*.json",
    "annotations*.json",
)
OTHER_KINDS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")
PARTS = ("images", "annotations", "categories")


def find_coco(root: Path) -> list[Path]:
    """The files of boxes in a folder; those named `instances…` where there are some."""
    files = [file for place in PLACES for file in sorted(root.glob(place))]
    files = [file for file in files if not file.name.startswith((".", *OTHER_KINDS))]
    return [file for file in files if file.name.startswith("instances")] or files


def open_coco(root: Path, split: str | None, *, masks: bool = True) -> BoxFiles:
    """The file of a split among those that `find_coco` finds.

    Raises:
        DataError: there is no such split, or several files of it, or see `read_coco`.
    """
    chosen = of_split(root, find_coco(root), split, lambda file: split_word(file.relative_to(root)))
    if len(chosen) > 1:
        names = ", ".join(str(file.relative_to(root)) for file in chosen)
        raise DataError(f"{root}: several files may be meant; name one of {names}")
    return read_coco(chosen[0], masks=masks)


def split_word(path: Path) -> str:
    """The split that a file or its folder is named after: `val` of `instances_val2017.json`."""
    words = re.findall("[a-z]+", path.stem.lower()) + re.findall("[a-z]+", path.parent.name.lower())
    return next((word for word in words if word in ALIASES), "")


def read_coco(path: Path, *, masks: bool = True) -> BoxFiles:
    """The pictures and objects of one file; pictures and class indices follow the ids.

    Raises:
        DataError: it is no COCO json of boxes, or none of its pictures is found.
    """
    images, annotations, categories = _parts(path)
    class_names = check_class_names(path, [category.get("name") for category in categories])
    category_ids = [category["id"] for category in categories]
    label_of = {number: label for label, number in enumerate(category_ids)}
    place_of = {image["id"]: place for place, image in enumerate(images)}
    drawn: list[list[Drawn]] = [[] for _ in images]
    notes = []
    for annotation in annotations:
        fault = _add(annotation, label_of, place_of, drawn)
        if fault is not None:
            notes.append(Note(fault, f"{path}: annotation {annotation.get('id')}"))
    return BoxFiles(
        _files(path, [image["file_name"] for image in images]),
        drawn,
        class_names,
        category_ids=category_ids,
        sizes=[_size(image) for image in images],
        masks=masks,
        notes=notes,
    )


def _parts(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON: {error}") from None
    parts = [content.get(part) if isinstance(content, dict) else None for part in PARTS]
    for name, part in zip(PARTS, parts, strict=True):
        if not isinstance(part, list) or not all(isinstance(entry, dict) for entry in part):
            raise DataError(f"{path}: expected COCO's lists {', '.join(PARTS)}; {name} is absent or no list")
    images, annotations, categories = ([*part] for part in parts if part is not None)
    _check_ids(path, "images", images, "file_name")
    _check_ids(path, "categories", categories, "name")
    if any("segments_info" in annotation for annotation in annotations[:1]):
        raise DataError(f"{path}: expected boxes (instances), this is a panoptic file")
    return sorted(images, key=_number), annotations, sorted(categories, key=_number)


def _number(entry: dict[str, Any]) -> int:
    return int(entry["id"])


def _check_ids(path: Path, part: str, entries: Sequence[dict[str, Any]], text: str) -> None:
    """Each entry has an id of its own, a whole number, and a text."""
    seen: set[int] = set()
    for entry in entries:
        number = entry.get("id")
        if type(number) is not int or number in seen or not isinstance(entry.get(text), str):
            raise DataError(
                f"{path}: {part}: expected an id of its own and a {text} of each, got {json.dumps(entry):.80}"
            )
        seen.add(number)
    if not entries:
        raise DataError(f"{path}: {part}: expected some, found none")


def _add(
    annotation: dict[str, Any],
    label_of: dict[int, int],
    place_of: dict[int, int],
    drawn: list[list[Drawn]],
) -> Fault | None:
    """Put an object to its picture, or say why not."""
    try:
        left, top, width, height = (float(value) for value in annotation["bbox"])
        label, place = label_of.get(annotation["category_id"], -1), place_of.get(annotation["image_id"])
        area = annotation.get("area")
        corners = (left, top, left + width, top + height)
        if not np.isfinite(corners).all():
            return Fault.MALFORMED
    except (KeyError, TypeError, ValueError):
        return Fault.MALFORMED
    if place is None:
        return Fault.NO_PICTURE
    drawn[place].append(
        Drawn(
            corners=corners,
            label=label,
            crowd=bool(annotation.get("iscrowd")),
            area=area if isinstance(area, int | float) and np.isfinite(area) else None,
            segment=annotation.get("segmentation"),
        )
    )
    return None


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    known = type(height) is int and type(width) is int and min(height, width) > 0
    return (int(str(height)), int(str(width))) if known else None


def _files(path: Path, names: Sequence[str]) -> list[Path]:
    """The pictures, in the first likely folder that has one of them."""
    folders = list(_folders(path))
    found = next((folder for name in names for folder in folders if (folder / name).is_file()), None)
    if found is None:
        places = ", ".join(map(str, folders[:3]))
        raise DataError(f"{path}: none of its {len(names)} pictures is there, such as {places}/{names[0]}")
    return [found / name for name in names]


def _folders(path: Path) -> Iterable[Path]:
    """Where pictures may lie: `images` beside the file or its folder, in folders named after its split."""
    word = split_word(path)
    year = re.search(rf"{word}\d*", path.stem.lower()) if word else None
    names = dict.fromkeys([year[0] if year else "", word])
    for base in (path.parent, path.parent.parent):
        for name in filter(None, names):
            yield from (base / "images" / name, base / name)
        yield from (base / "images", base)
