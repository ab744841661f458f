"""Pictures with their labels: a caption under the picture, one bar a prediction. Lengths are in pixels."""

from __future__ import annotations

import io
import re
import unicodedata
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vitesse.files import write_atomically
from vitesse.results import Classification, Prediction

MIN_SIDE, MAX_SIDE = 480, 1280
"""The longer side of the drawn picture; smaller and larger ones are scaled to it."""

MAX_STEM = 120
"""Bytes of a source's name that its file keeps; file systems take 255 in all."""

_PANEL, _TRACK, _TEXT, _DIM_TEXT = "#15181d", "#2b313a", "#f2f4f7", "#a9b2bf"
_FIRST, _OTHERS = "#3fbf8f", "#5f7f9e"
_FONT_SHARE = 36
"""The caption's width over its font size."""


def draw_classification(image: Image.Image, result: Classification) -> Image.Image:
    """The picture in RGB, its longer side within `MIN_SIDE` and `MAX_SIDE`, with a caption panel under it.

    The panel is at least `MIN_SIDE` wide and has one row a prediction: label, bar, score in per cent. The
    font is ASCII: accents are left out, and what no ASCII letter stands for becomes `?`.
    """
    image = _scaled(image.convert("RGB"))
    width = max(MIN_SIDE, image.width)
    caption = _caption(width, result.predictions)
    canvas = Image.new("RGB", (width, image.height + caption.height), _PANEL)
    canvas.paste(image, ((width - image.width) // 2, 0))
    canvas.paste(caption, (0, image.height))
    return canvas


def stem_of(source: str) -> str:
    """What the file of a source's picture begins with, safe on every system."""
    last = re.split(r"[/\\:]", source.rstrip("/\\"))[-1]
    stem = re.sub(r"[^\w. -]", "_", last.rpartition(".")[0] or last).strip(". -")
    return stem.encode()[:MAX_STEM].decode(errors="ignore") or "stdin"


class Gallery:
    """A folder of drawn pictures, one file a source: `STEM.labels.jpg`, numbered where names collide.

    Nothing is written outside the folder, and what an earlier run wrote there is replaced.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._used: set[str] = set()

    def add(self, image: Image.Image, result: Classification) -> Path:
        """Draw one picture and write it, whole or not at all; gives the path of the file.

        Raises:
            OSError: the file cannot be written.
        """
        path = self._folder / self._name(result.source)
        if path.is_symlink():
            path.unlink()
        buffer = io.BytesIO()
        draw_classification(image, result).save(buffer, "JPEG", quality=92)
        write_atomically(path, buffer.getvalue())
        return path

    def _name(self, source: str) -> str:
        stem = stem_of(source)
        number, name = 1, f"{stem}.labels.jpg"
        while name.lower() in self._used:
            number += 1
            name = f"{stem}-{number}.labels.jpg"
        self._used.add(name.lower())
        return name


def _scaled(image: Image.Image) -> Image.Image:
    longer = max(image.size)
    scale = min(MAX_SIDE, max(MIN_SIDE, longer)) / longer
    if scale == 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def _caption(width: int, predictions: tuple[Prediction, ...]) -> Image.Image:
    size = width / _FONT_SHARE
    row, margin = round(size * 1.75), round(size)
    panel = Image.new("RGB", (width, row * len(predictions) + 2 * margin - row // 4), _PANEL)
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(size=size)
    bar_left, bar_right = round(width * 0.40), width - margin - round(size * 4.2)
    for rank, prediction in enumerate(predictions):
        middle = margin + rank * row + row // 2 - row // 8
        colour = _TEXT if rank == 0 else _DIM_TEXT
        label = _fitted(prediction.label, font, bar_left - 2 * margin)
        draw.text((margin, middle), label, font=font, fill=colour, anchor="lm")
        percent = f"{prediction.score:.1%}"
        draw.text((width - margin, middle), percent, font=font, fill=colour, anchor="rm")
        _bar(draw, (bar_left, middle, bar_right), round(size * 0.5), prediction.score, rank)
    return panel


def _bar(draw: ImageDraw.ImageDraw, line: tuple[int, int, int], height: int, share: float, rank: int) -> None:
    left, middle, right = line
    top, bottom = middle - height // 2, middle + height - height // 2
    draw.rounded_rectangle((left, top, right, bottom), radius=height // 2, fill=_TRACK)
    filled = round((right - left) * share)
    if filled > 0:
        end = left + max(filled, height)  # a rounded bar is at least as long as it is high
        draw.rounded_rectangle(
            (left, top, end, bottom), radius=height // 2, fill=_FIRST if rank == 0 else _OTHERS
        )


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, its end cut off where it is wider than `width`."""
    text = _ascii(" ".join(text.split()))
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def _ascii(text: str) -> str:
    """The text in the letters that Pillow's font has; it would draw an empty box for any other."""
    letters = unicodedata.normalize("NFKD", text)
    kept = [letter for letter in letters if unicodedata.category(letter) not in ("Mn", "Cc", "Cf")]
    return "".join(letter if letter.isascii() else "?" for letter in kept)
