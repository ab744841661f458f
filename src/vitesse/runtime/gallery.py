"""A folder of drawn pictures, one file a source."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from vitesse.files import write_atomically
from vitesse.results import Detections, Masks, Record, SemanticMap
from vitesse.runtime.drawing import draw_classification
from vitesse.runtime.overlay import draw_detections, draw_map, draw_masks

MAX_STEM = 120
"""Bytes of a source's name that its file keeps; file systems take 255 in all."""


def draw(image: Image.Image, result: Record) -> Image.Image:
    """The picture in RGB with its result drawn on it."""
    if isinstance(result, Detections):
        return draw_detections(image, result)
    if isinstance(result, SemanticMap):
        return draw_map(image, result)
    return draw_classification(image, result)


class Gallery:
    """A folder of drawn pictures, one file a source: `STEM.labels.jpg`, numbered where names collide.

    Of a map of classes there is `STEM.classes.png` too, whose pixels are class indices.

    Nothing is written outside the folder, and what an earlier run wrote there is replaced.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._used: set[str] = set()

    def add(self, image: Image.Image, result: Record) -> Path:
        """Draw one picture and write it, whole or not at all; gives the path of the file.

        Raises:
            OSError: the file cannot be written.
        """
        path = self._folder / self._name(result.source)
        _write(draw(image, result), path)
        if isinstance(result, SemanticMap) and result.classes_HW is not None:
            _write(Image.fromarray(result.classes_HW), path.with_suffix("").with_suffix(".classes.png"))
        return path

    def _name(self, source: str) -> str:
        stem = _stem_of(source)
        number, name = 1, f"{stem}.labels.jpg"
        while name.lower() in self._used:
            number += 1
            name = f"{stem}-{number}.labels.jpg"
        self._used.add(name.lower())
        return name


def save_masks(folder: Path, image: Image.Image, result: Masks) -> list[Path]:
    """Write a picture with its masks in colours, STEM.masks.jpg, and each mask, STEM.mask-1.png and so on.

    The masks are as large as the picture, 255 inside and 0 outside.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = _stem_of(result.source)
    drawn = {folder / f"{stem}.masks.jpg": draw_masks(image, result)}
    for number, mask in enumerate(result.predictions, 1):
        drawn[folder / f"{stem}.mask-{number}.png"] = Image.fromarray(mask.mask_HW).convert("L")
    for path, picture in drawn.items():
        _write(picture, path)
    return [*drawn]


def _stem_of(source: str) -> str:
    """What the file of a source's picture begins with, safe on every system."""
    last = re.split(r"[/\\:]", source.rstrip("/\\"))[-1]
    stem = re.sub(r"[^\w. -]", "_", last.rpartition(".")[0] or last).strip(". -")
    return stem.encode()[:MAX_STEM].decode(errors="ignore") or "stdin"


def _write(image: Image.Image, path: Path) -> None:
    """JPEG or PNG by the path's suffix; a link there is replaced, not followed."""
    if path.is_symlink():
        path.unlink()
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if path.suffix == ".jpg" else "PNG", quality=92)
    write_atomically(path, buffer.getvalue())
