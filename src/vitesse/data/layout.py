"""Where pictures and their annotations lie beside each other, and which belong together."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vitesse.data.contract import ALIASES
from vitesse.data.files import subfolders

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG")


class Pair(NamedTuple):
    """A folder of pictures, that of their annotations, and the split both are named after, or ""."""

    split: str
    pictures: Path
    annotations: Path


def paired_folders(root: Path, one: str, other: str) -> list[Pair]:
    """`ONE` and `OTHER`, `ONE/SPLIT` and `OTHER/SPLIT`, or `SPLIT/ONE` and `SPLIT/OTHER` in a folder."""
    if (root / one).is_dir() and (root / other).is_dir():
        splits = [folder.name for folder in subfolders(root / one) if folder.name in ALIASES]
        splits = [split for split in splits if (root / other / split).is_dir()]
        return [Pair(split, root / one / split, root / other / split) for split in splits] or [
            Pair("", root / one, root / other)
        ]
    folders = subfolders(root) if root.is_dir() else []
    return [
        Pair(folder.name, folder / one, folder / other)
        for folder in folders
        if (folder / one).is_dir() and (folder / other).is_dir()
    ]


def pictures_in(folder: Path) -> list[Path]:
    """Pictures in a folder and those within, by name; hidden ones left out."""
    return sorted(file for file in folder.rglob("*") if _is_picture(file))


def picture_named(folder: Path, stem: str) -> Path:
    """The picture of a name without suffix; a `.jpg` that is not there where there is none."""
    candidates = [folder / f"{stem}{suffix}" for suffix in PICTURE_SUFFIXES]
    return next((file for file in candidates if file.is_file()), candidates[0])


def _is_picture(file: Path) -> bool:
    return file.suffix in PICTURE_SUFFIXES and not file.name.startswith(".")
