"""Pascal VOC's layout: an XML file a picture, and lists of splits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from vitesse.data.boxes import BoxFiles, Drawn
from vitesse.data.contract import of_split
from vitesse.data.dense import Fault, Note
from vitesse.data.layout import picture_named
from vitesse.data.yaml_files import located
from vitesse.errors import DataError

ANNOTATIONS = ("Annotations", "annotations")
PICTURES = ("JPEGImages", "images", "Images")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def is_voc(root: Path) -> bool:
    """Whether a folder has XML annotations."""
    return any(next((root / name).glob("*.xml"), None) for name in ANNOTATIONS)


def open_voc(root: Path, split: str | None) -> BoxFiles:
    """`Annotations/*.xml`, `JPEGImages` and, where there are splits, `ImageSets/Main/SPLIT.txt`.

    Classes are the names of all annotations in sorted order, or VOC's own twenty where they are all of those.
    Corners are taken as written; a difficult object is neither asked for nor wrong to find.

    Raises:
        DataError: there is no such split, or nothing annotated.
    """
    folder = located(root / name for name in ANNOTATIONS if (root / name).is_dir()) or root
    pictures = located(root / name for name in PICTURES) or root
    stems = _stems(root, split) or [file.stem for file in sorted(folder.glob("*.xml"))]
    trees = {stem: _tree(folder / f"{stem}.xml") for stem in stems}
    notes = [
        Note(Fault.MALFORMED, str(folder / f"{stem}.xml")) for stem, tree in trees.items() if tree is None
    ]
    read = {stem: tree for stem, tree in trees.items() if tree is not None}
    class_names = _class_names(folder)
    label_of = {name: label for label, name in enumerate(class_names)}
    return BoxFiles(
        [picture_named(pictures, stem) for stem in read],
        [_objects(folder / f"{stem}.xml", tree, label_of, notes) for stem, tree in read.items()],
        class_names,
        sizes=[_size(tree) for tree in read.values()],
        notes=notes,
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    """Of all splits, so that a class has the same index in each."""
    trees = map(_tree, sorted(folder.glob("*.xml")))
    names = {_text(entry, "name") for tree in trees if tree is not None for entry in tree.findall("object")}
    if not names - {""}:
        raise DataError(f"{folder}: expected annotated objects with names, found none")
    return CLASSES if names <= set(CLASSES) else tuple(sorted(names - {""}))


def _stems(root: Path, split: str | None) -> list[str]:
    """The pictures of a split; none where there are no lists of splits."""
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    whole = [file for file in lists if "_" not in file.stem]  # cow_train.txt says which pictures show a cow
    if not whole:
        return []
    (chosen,) = of_split(root, whole, split, lambda file: file.stem)[:1]
    lines = chosen.read_text(encoding="utf-8").splitlines()
    stems = [line.split()[0] for line in lines if line.strip()]
    if not stems:
        raise DataError(f"{chosen}: expected a picture's name a line, found none")
    return stems


def _tree(file: Path) -> ElementTree.Element | None:
    """None where it is no XML."""
    try:
        return ElementTree.fromstring(file.read_bytes())
    except (OSError, ElementTree.ParseError, ValueError):
        return None


def _objects(
    file: Path, tree: ElementTree.Element, label_of: dict[str, int], notes: list[Note]
) -> Sequence[Drawn]:
    objects = []
    for number, entry in enumerate(tree.findall("object"), 1):
        corners = [_number(entry.findtext(f"bndbox/{corner}")) for corner in CORNERS]
        if not all(map(math.isfinite, corners)):
            notes.append(Note(Fault.MALFORMED, f"{file}: object {number}"))
            continue
        left, top, right, bottom = corners
        label, crowd = label_of.get(_text(entry, "name"), -1), _text(entry, "difficult") == "1"
        objects.append(Drawn(corners=(left, top, right, bottom), label=label, crowd=crowd))
    return objects


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """(height, width) as written, None where it is not."""
    height, width = (_number(tree.findtext(f"size/{side}")) for side in ("height", "width"))
    return (int(height), int(width)) if height > 0 and width > 0 and math.isfinite(height * width) else None


def _text(entry: ElementTree.Element, tag: str) -> str:
    return (entry.findtext(tag) or "").strip()


def _number(text: str | None) -> float:
    """NaN where it is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
