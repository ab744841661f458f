"""Masks of objects as files: on the picture, and each by itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vitesse.files import write_atomically
from vitesse.runtime.drawing import stem_of
from vitesse.runtime.overlay import blend, palette

if TYPE_CHECKING:
    from vitesse.results import Masks


def draw_masks(image: Image.Image, result: Masks) -> Image.Image:
    """The picture in RGB with each of its masks in a colour of its own."""
    image = image.convert("RGB")
    for mask, colour in zip(result.predictions, palette(len(result.predictions)), strict=True):
        image = blend(image, mask.mask_HW, colour)
    return image


def save_masks(folder: Path, image: Image.Image, result: Masks) -> list[Path]:
    """Write the picture with its masks, STEM.masks.jpg, and each mask, STEM.mask-1.png and so on.

    The masks are as large as the picture, 255 inside and 0 outside.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = stem_of(result.source)
    pictures = {f"{stem}.masks.jpg": draw_masks(image, result)} | {
        f"{stem}.mask-{number}.png": Image.fromarray(mask.mask_HW).convert("L")
        for number, mask in enumerate(result.predictions, 1)
    }
    for name, picture in pictures.items():
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG" if name.endswith(".jpg") else "PNG", quality=92)
        write_atomically(folder / name, buffer.getvalue())
    return [folder / name for name in pictures]
