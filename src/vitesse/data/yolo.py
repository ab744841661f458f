"""YOLO's text files: a line an object, in shares of the picture's sides; boxes, or polygons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitesse.data.boxes import BoxFiles, Drawn
from vitesse.data.contract import of_split
from vitesse.data.dense import Fault, Note
from vitesse.data.layout import paired_folders, pictures_in
from vitesse.data.masks import LEAST_POLYGON
from vitesse.data.yaml_files import located, numbered_names, read_yaml, splits_of
from vitesse.errors import DataError

CLASS_FILE = "classes.txt"
BOX_VALUES = 4


def is_yolo_folder(root: Path) -> bool:
    """Whether a folder holds pictures and text files side by side."""
    pairs = paired_folders(root, "images", "labels")
    return any(next(pair.annotations.glob("*.txt"), None) for pair in pairs)


def open_yolo_yaml(path: Path, split: str | None, *, masks: bool = True) -> BoxFiles:
    """A file with `names`, `train` and `val` or `test`, and maybe the `path` they are relative to.

    Each split is a folder of pictures, a `.txt` file that lists some, or several of them. The labels of
    `…/images/a.jpg` are in `…/labels/a.txt`; a picture without that file is background.

    Raises:
        DataError: a key is missing or wrong, a folder or list is absent, or there is no such split.
    """
    values = read_yaml(path)
    names = numbered_names(path, values.get("names"))
    if list(names) != list(range(len(names))):
        raise DataError(
            f"{path}: names: expected numbers from 0 without gaps, got {', '.join(map(str, names))}"
        )
    if values.get("nc", len(names)) != len(names):
        raise DataError(f"{path}: nc says {values['nc']} classes, names has {len(names)}")
    splits = splits_of(values)
    if not splits:
        raise DataError(f"{path}: expected the keys train and val, with folders of pictures")
    (chosen,) = of_split(path, list(splits), split, str)[:1]
    entries = splits[chosen] if isinstance(splits[chosen], list) else [splits[chosen]]
    files = [file for entry in entries for file in _listed(path, values.get("path") or "", entry)]
    return _read(path, files, list(names.values()), masks)


def open_yolo_folder(root: Path, split: str | None, *, masks: bool = True) -> BoxFiles:
    """`images` and `labels`, with folders named after splits or without, and `classes.txt`.

    Raises:
        DataError: there is no class file, no picture or no such split.
    """
    pairs = paired_folders(root, "images", "labels")
    class_file = located([root / CLASS_FILE, *(pair.annotations / CLASS_FILE for pair in pairs)])
    if class_file is None:
        raise DataError(
            f"{root}: expected data.yaml with names, train and val, or {CLASS_FILE}; found neither"
        )
    chosen = of_split(root, pairs, split, lambda pair: pair.split)
    files = [file for pair in chosen for file in pictures_in(pair.pictures)]
    names = class_file.read_text(encoding="utf-8").split("\n")
    return _read(root, files, [name.strip() for name in names if name.strip()], masks)


def label_file(picture: Path) -> Path:
    """Where a picture's labels are: in `labels` for the last `images` of its path, or beside it."""
    parts = list(picture.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _listed(yaml_file: Path, base: str, entry: Any) -> list[Path]:
    """The pictures of one entry: a folder's, or those that a text file lists."""
    roots = [yaml_file.parent / base, Path(base), yaml_file.parent]
    names = [str(entry), str(entry).removeprefix("../")]
    place = located(root / name for root in roots for name in names)
    if place is None:
        raise DataError(f"{yaml_file}: no {entry} in {roots[0]}; set path to the folder it is in")
    if place.is_dir():
        return pictures_in(place)
    lines = [line.strip() for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
    base_of_lines = next(
        (root for root in (place.parent, *roots) if (root / lines[0]).exists()), place.parent
    )
    return [base_of_lines / line for line in lines]


def _read(where: Path, files: Sequence[Path], class_names: Sequence[str], masks: bool) -> BoxFiles:
    if not files:
        raise DataError(f"{where}: expected pictures (.jpg, .png, .webp), found none")
    notes = [Note(Fault.NO_PICTURE, str(file)) for file in _spare(files)]
    drawn = {file: _objects(label_file(file), len(class_names), notes) for file in files}
    readable = {file: objects for file, objects in drawn.items() if objects is not None}
    return BoxFiles(
        list(readable), list(readable.values()), class_names, relative=True, masks=masks, notes=notes
    )


def _spare(files: Sequence[Path]) -> Iterator[Path]:
    """Files of labels that no picture is there for."""
    for pictures in sorted({file.parent for file in files}):
        labels = label_file(pictures / "any.jpg").parent
        if labels != pictures and labels.is_dir():
            known = {file.stem for file in pictures_in(pictures)} | {Path(CLASS_FILE).stem}
            yield from (file for file in sorted(labels.glob("*.txt")) if file.stem not in known)


def _objects(path: Path, num_classes: int, notes: list[Note]) -> list[Drawn] | None:
    """The objects of a file, none where it is absent; None where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError):
        notes.append(Note(Fault.MALFORMED, str(path)))
        return None
    found = {
        number: _object(line.split(), num_classes) for number, line in enumerate(lines, 1) if line.strip()
    }
    notes += [Note(Fault.MALFORMED, f"{path}: line {number}") for number, one in found.items() if one is None]
    return [one for one in found.values() if one is not None]


def _object(words: Sequence[str], num_classes: int) -> Drawn | None:
    """The object of one line, or None where it is none."""
    try:
        number, *shape = map(float, words)
    except ValueError:
        return None
    if not number.is_integer() or not all(map(math.isfinite, shape)):
        return None
    label = int(number) if 0 <= number < num_classes else -1
    if len(shape) == BOX_VALUES:
        x, y, width, height = shape
        return Drawn(corners=(x - width / 2, y - height / 2, x + width / 2, y + height / 2), label=label)
    if len(shape) < LEAST_POLYGON or len(shape) % 2:
        return None
    corners = (min(shape[::2]), min(shape[1::2]), max(shape[::2]), max(shape[1::2]))
    return Drawn(corners=corners, label=label, segment=[shape])
