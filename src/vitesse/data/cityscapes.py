"""Cityscapes: `leftImg8bit/SPLIT/CITY` and `gtFine/SPLIT/CITY`, 19 classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vitesse.data.contract import of_split
from vitesse.data.files import subfolders
from vitesse.data.maps import Legend, MapFiles, pair_up
from vitesse.errors import DataError

PICTURES, MAPS = "leftImg8bit", "gtFine"


def is_cityscapes(root: Path) -> bool:
    return (root / PICTURES).is_dir() and (root / MAPS).is_dir()


def open_cityscapes(root: Path, split: str | None) -> MapFiles:
    """Its pictures, with `…_gtFine_labelIds.png` or, where these are absent, `…_gtFine_labelTrainIds.png`.

    The labels of its test pictures were never published, so that `test` means `val`.

    Raises:
        DataError: there is no such split, or it has no label maps.
    """
    folders = [folder for folder in subfolders(root / PICTURES) if folder.name != "test"]
    if not folders:
        raise DataError(f"{root}: expected {PICTURES}/train and {PICTURES}/val, found neither")
    pictures = of_split(root, folders, split, lambda folder: folder.name)[0]
    maps = root / MAPS / pictures.name
    by_id = next(maps.glob("*/*_labelIds.png"), None) is not None
    legend = Legend.named("cityscapes")
    if not by_id:
        legend = dataclasses.replace(legend, values=tuple(range(len(legend.values))), ignored=(255,))
    kind = "labelIds" if by_id else "labelTrainIds"

    def map_of(picture: Path) -> Path:
        name = picture.name.replace(f"_{PICTURES}.png", f"_{MAPS}_{kind}.png")
        return maps / picture.parent.name / name

    return pair_up(root, sorted(pictures.glob(f"*/*_{PICTURES}.png")), map_of, legend)
