"""A folder of drawn pictures, one file a source."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from vitesse.files import write_atomically
from vitesse.results import Detections, Record, SemanticMap
from vitesse.runtime.drawing import draw_classification
from vitesse.runtime.overlay import draw_detections, draw_map

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
        if path.is_symlink():
            path.unlink()
        buffer = io.BytesIO()
        draw(image, result).save(buffer, "JPEG", quality=92)
        write_atomically(path, buffer.getvalue())
        if isinstance(result, SemanticMap) and result.classes_HW is not None:
            classes = io.BytesIO()
            Image.fromarray(result.classes_HW).save(classes, "PNG")
            write_atomically(path.with_suffix("").with_suffix(".classes.png"), classes.getvalue())
        return path

    def _name(self, source: str) -> str:
        last = re.split(r"[/\\:]", source.rstrip("/\\"))[-1]
        stem = re.sub(r"[^\w. -]", "_", last.rpartition(".")[0] or last).strip(". -")
        stem = stem.encode()[:MAX_STEM].decode(errors="ignore") or "stdin"
        number, name = 1, f"{stem}.labels.jpg"
        while name.lower() in self._used:
            number += 1
            name = f"{stem}-{number}.labels.jpg"
        self._used.add(name.lower())
        return name
