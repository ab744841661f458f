"""Folders of pictures and of masks with the same names, described by a YAML file or a list of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.contract import of_split
from vitesse.data.dense import IGNORE, Fault, Note
from vitesse.data.layout import Pair, paired_folders, pictures_in
from vitesse.data.maps import ColouredMapError, Legend, MapFiles, packed, pair_up
from vitesse.data.yaml_files import located, numbered_names, read_yaml, splits_of
from vitesse.errors import DataError, ImageError

CLASS_FILE = "classes.txt"


def is_mask_folder(root: Path) -> bool:
    """Whether a folder holds pictures and masks side by side."""
    return bool(paired_folders(root, "images", "masks"))


def open_mask_yaml(path: Path, split: str | None) -> MapFiles:
    """A file with `names`, maybe `palette` and `ignore`, and for each split `images` and `masks`.

    `names` are a list, or names by the value that stands for them. `palette` has a colour `[red, green,
    blue]` for each name, in their order; masks are then read as colours. `ignore` lists other values, or
    colours, that stand for no class; 255 always does where it is no class.

    Raises:
        DataError: a key is missing or wrong, a folder is absent, or there is no such split.
    """
    values = read_yaml(path)
    pairs = [_pair(path, split, entry) for split, entry in splits_of(values).items()]
    return _read(path, pairs, split, _legend(path, values))


def open_mask_folder(root: Path, split: str | None) -> MapFiles:
    """`images` and `masks`, with folders named after splits or without, and `classes.txt`, a name a line.

    Raises:
        DataError: there is no class file, no picture with a mask or no such split.
    """
    class_file = located([root / CLASS_FILE])
    if class_file is None:
        raise DataError(f"{root}: expected {CLASS_FILE} or a YAML file that names the classes, found neither")
    names = [line.strip() for line in class_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    legend = Legend(class_names=tuple(names), values=tuple(range(len(names))))
    return _read(root, paired_folders(root, "images", "masks"), split, legend)


def _pair(path: Path, split: str, entry: Any) -> Pair:
    if not isinstance(entry, dict) or not {"images", "masks"} <= entry.keys():
        raise DataError(f"{path}: {split}: expected images and masks, two folders, got {entry!s:.60}")
    folders = [path.parent / str(entry[key]) for key in ("images", "masks")]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{path}: {split}: no folder {folder}")
    return Pair(split, *folders)


def _read(where: Path, pairs: Sequence[Pair], split: str | None, legend: Legend) -> MapFiles:
    if not pairs:
        raise DataError(f"{where}: expected train and val with images and masks, found neither")
    pair = of_split(where, pairs, split, lambda pair: pair.split)[0]
    pictures = pictures_in(pair.pictures)

    def map_of(picture: Path) -> Path:
        return (pair.annotations / picture.relative_to(pair.pictures)).with_suffix(".png")

    source = pair_up(where, pictures, map_of, legend)
    _check_numbers(where, source)
    expected = {map_of(picture) for picture in pictures}
    spare = [file for file in sorted(pair.annotations.rglob("*.png")) if file not in expected]
    source.notes += tuple(Note(Fault.NO_PICTURE, str(file)) for file in spare)
    return source


def _check_numbers(where: Path, source: MapFiles) -> None:
    """Notice by the first mask that masks have colours and the classes have none."""
    try:
        source.label_map(0)
    except ColouredMapError as error:
        raise DataError(f"{where}: {source.maps[0]}: {error}; say palette in a YAML file") from None
    except (ImageError, OSError):
        return


def _legend(path: Path, values: dict[str, Any]) -> Legend:
    names = numbered_names(path, values.get("names"))
    palette, ignored = values.get("palette"), values.get("ignore", [])
    if palette is None:
        ignored = _numbers(path, ignored if isinstance(ignored, list) else [ignored])
        kept = {number: name for number, name in names.items() if number not in ignored}
        return Legend(class_names=tuple(kept.values()), values=tuple(kept), ignored=(*ignored, IGNORE))
    colours = _colours(f"{path}: palette", palette)
    if len(colours) != len(names):
        raise DataError(
            f"{path}: palette: expected a colour for each of {len(names)} names, got {len(colours)}"
        )
    return Legend(
        class_names=tuple(names.values()),
        values=tuple(packed(colours).tolist()),
        ignored=tuple(packed(_colours(f"{path}: ignore", ignored)).tolist()) if ignored else (),
        coloured=True,
        colours=colours,
    )


def _numbers(path: Path, values: list[Any]) -> list[int]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise DataError(f"{path}: ignore: expected whole numbers, or colours with palette, got {values}")
    return values


def _colours(where: str, values: Any) -> NDArray[np.uint8]:
    """(K, 3) of a list of [red, green, blue]."""
    try:
        colours = np.array(values, np.uint8)
    except (TypeError, ValueError, OverflowError):
        colours = np.zeros(0, np.uint8)
    if colours.ndim != 2 or colours.shape[1] != 3:
        raise DataError(f"{where}: expected a list of [red, green, blue] of 0 to 255, got {values!s:.60}")
    return colours
