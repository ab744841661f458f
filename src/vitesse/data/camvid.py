"""CamVid as of SegNet: `train` and `trainannot`, 11 classes."""

from __future__ import annotations

from pathlib import Path

from vitesse.data.contract import of_split
from vitesse.data.files import subfolders
from vitesse.data.layout import pictures_in
from vitesse.data.maps import Legend, MapFiles, pair_up
from vitesse.errors import DataError

SUFFIX = "annot"


def is_camvid(root: Path) -> bool:
    return bool(_splits(root))


def open_camvid(root: Path, split: str | None) -> MapFiles:
    """The pictures of a split: those that `SPLIT.txt` lists, each with its label map, or all in its folder.

    Raises:
        DataError: there is no such split, a line of the list is none, or there are no label maps.
    """
    pictures = of_split(root, _splits(root), split, lambda folder: folder.name)[0]
    listed = root / f"{pictures.name}.txt"
    maps = _listed(root, listed) if listed.is_file() else {}
    if not maps:
        annotations = pictures.with_name(pictures.name + SUFFIX)
        maps = {file: annotations / f"{file.stem}.png" for file in pictures_in(pictures)}
    return pair_up(root, list(maps), lambda picture: maps[picture], Legend.named("camvid"))


def _splits(root: Path) -> list[Path]:
    return [folder for folder in subfolders(root) if folder.with_name(folder.name + SUFFIX).is_dir()]


def _listed(root: Path, file: Path) -> dict[Path, Path]:
    """Pictures and label maps of a list, relative to its folder.

    The paths of SegNet's own lists begin elsewhere (`/SegNet/CamVid/train/…`): their last two parts count.
    """
    pairs = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if len(words) not in (0, 2):
            raise DataError(f"{file}: line {number}: expected a picture and its label map, got {line:.60}")
        if words:
            picture, annotation = (root / Path(*Path(word).parts[-2:]) for word in words)
            pairs[picture] = annotation
    return pairs
