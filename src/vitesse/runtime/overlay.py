"""Colours laid over pictures: masks that can be seen through. Shape suffixes: H rows, W columns."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

SHARE = 0.5
"""Of the colour where it lies over the picture."""

_GOLDEN = 0.618033988749895
"""Hues that are so far apart, as a share of the circle, stay apart however many there are."""


def palette(count: int) -> list[Colour]:
    """Bright colours that are easy to tell apart; more of them begin with the same."""
    hues = [(0.38 + index * _GOLDEN) % 1 for index in range(count)]
    return [_as_colour(colorsys.hsv_to_rgb(hue, 0.75, 0.95)) for hue in hues]


def _as_colour(shares: tuple[float, float, float]) -> Colour:
    red, green, blue = (round(255 * share) for share in shares)
    return red, green, blue


def blend(image: Image.Image, mask_HW: NDArray[np.bool_], colour: Colour) -> Image.Image:
    """The picture in RGB, half in this colour where the mask is, the mask's outermost pixels all of it.

    Raises:
        ValueError: the mask is of another size.
    """
    if mask_HW.shape != (image.height, image.width):
        raise ValueError(f"expected a mask of {(image.height, image.width)}, got {mask_HW.shape}")
    pixels_HW3 = np.array(image.convert("RGB"))
    inner_HW = _eroded(mask_HW)
    tinted = pixels_HW3[inner_HW] * (1 - SHARE) + np.asarray(colour) * SHARE
    pixels_HW3[inner_HW] = np.rint(tinted).astype(np.uint8)
    pixels_HW3[mask_HW & ~inner_HW] = colour
    return Image.fromarray(pixels_HW3)


def _eroded(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the mask whose four neighbours are in it too; beyond the picture there is none."""
    padded = np.pad(mask_HW, 1)
    return mask_HW & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
