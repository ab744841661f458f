"""ADE20K as of its scene parsing challenge: `images/training` and `annotations/training`, 150 classes."""

from __future__ import annotations

from pathlib import Path

from vitesse.data.contract import of_split
from vitesse.data.layout import Pair, paired_folders, pictures_in
from vitesse.data.maps import Legend, MapFiles, pair_up


def is_ade20k(root: Path) -> bool:
    return any(next(pair.annotations.glob("ADE_*.png"), None) for pair in _pairs(root))


def open_ade20k(root: Path, split: str | None) -> MapFiles:
    """Its pictures; a value of 0 is no class, 1 the first.

    Raises:
        DataError: there is no such split, or it has no label maps.
    """
    pair = of_split(root, _pairs(root), split, lambda pair: pair.split)[0]
    return pair_up(
        root,
        pictures_in(pair.pictures),
        lambda picture: pair.annotations / f"{picture.stem}.png",
        Legend.named("ade20k"),
    )


def _pairs(root: Path) -> list[Pair]:
    return [pair for pair in paired_folders(root, "images", "annotations") if pair.split]
