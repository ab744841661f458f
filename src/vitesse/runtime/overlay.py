"""Colours laid over pictures. Shape suffixes: H rows, W columns."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

GOLDEN = 0.618034
"""Turns of the colour circle from one colour to the next, which keeps all of them apart."""

OPACITY = 0.55


def palette(count: int) -> tuple[Colour, ...]:
    """So many colours, the neighbours far apart; the first ones are the same for every count."""
    return tuple(_rgb(0.38 + index * GOLDEN) for index in range(count))


def blend(image: Image.Image, mask_HW: NDArray[np.bool_], colour: Colour) -> Image.Image:
    """The picture, in RGB, with the mask laid on it in a colour that lets it shine through."""
    tint = Image.new("RGB", image.size, colour)
    return Image.composite(Image.blend(image, tint, OPACITY), image, Image.fromarray(mask_HW))


def _rgb(hue: float) -> Colour:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, 0.72, 0.95))
    return red, green, blue
