"""Pictures with boxes, masks and maps of classes drawn on them. Shape suffixes: H rows, W columns."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from vitesse.results import Detections, Masks, SemanticMap
from vitesse.runtime.drawing import fitted, scaled

Colour = tuple[int, int, int]
Corners = Sequence[float]
"""Left, top, right, bottom."""

GOLDEN = 0.618034
"""Turns of the colour circle from one class to the next, which keeps all of them apart."""
OPACITY = 0.55
_FONT_SHARE = 46
"""The longer side over the font size."""
_TAG_SHARE = 3.5
"""Of usual boxes, the shorter side over the font size at most."""
_MIN_FONT = 9
"""Pixels; smaller letters cannot be read."""
_DARK, _LIGHT, _PANEL = (16, 18, 22), (245, 246, 248), (21, 24, 29)


def palette(count: int) -> tuple[Colour, ...]:
    """So many colours, the neighbours far apart; the first ones are the same for every count."""
    shades = ((0.72, 0.95), (0.55, 0.80), (0.85, 0.70))
    return tuple(_rgb(0.38 + index * GOLDEN, *shades[index // 6 % len(shades)]) for index in range(count))


def blend(image: Image.Image, mask_HW: NDArray[np.bool_], colour: Colour) -> Image.Image:
    """The picture with the mask, scaled to it, laid on it in a colour that lets it shine through."""
    tint = Image.new("RGB", image.size, colour)
    mask = Image.fromarray(mask_HW).resize(image.size)
    return Image.composite(Image.blend(image, tint, OPACITY), image, mask)


def _edge(mask_HW: NDArray[np.bool_], size: tuple[int, int]) -> Image.Image:
    """The outermost pixels of a mask scaled to (width, height)."""
    mask = Image.fromarray(mask_HW).resize(size).convert("L")
    return ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(3)))


def draw_detections(image: Image.Image, result: Detections) -> Image.Image:
    """The picture in RGB, scaled as `scaled` does, with a box for each object, and its label and score where
    they do not lie on those of one that scores higher.

    Pixels of objects with masks are tinted in the colour of their box. The object with the highest score is
    drawn last, on top of the others.
    """
    canvas = scaled(image.convert("RGB"))
    scale_x, scale_y = canvas.width / image.width, canvas.height / image.height
    colours = palette(1 + max((p.index for p in result.predictions), default=0))
    for detection in reversed(result.predictions):
        if (mask_HW := detection.mask()) is not None:
            canvas = blend(canvas, mask_HW, colours[detection.index])
            canvas.paste(colours[detection.index], mask=_edge(mask_HW, canvas.size))
    draw = ImageDraw.Draw(canvas)
    thick = max(2, round(max(canvas.size) / 400))
    boxes_N4 = np.array([found.bbox for found in result.predictions]).reshape(-1, 4)
    boxes_N4[:, 2:] += boxes_N4[:, :2]
    boxes_N4 *= (scale_x, scale_y, scale_x, scale_y)
    for box, found in zip(boxes_N4[::-1].tolist(), reversed(result.predictions), strict=True):
        draw.rectangle(box, outline=colours[found.index], width=thick)
    font = _font(canvas, at_most=max(_MIN_FONT, _usual_side(boxes_N4) / _TAG_SHARE))
    tags: list[Corners] = []
    for box, found in zip(boxes_N4.tolist(), result.predictions, strict=True):
        text = fitted(f"{found.label} {found.score:.0%}", font, canvas.width)
        tag = _tag_corners(box, text, font, canvas.size)
        if not any(_meet(tag, other) for other in tags):
            tags.append(tag)
            _draw_tag(draw, tag, text, colours[found.index], font)
    return canvas


def draw_map(image: Image.Image, result: SemanticMap) -> Image.Image:
    """The picture in RGB, scaled as `scaled` does, tinted by its classes, and a legend under it.

    The legend names the classes with their share of the picture, the largest first.
    """
    assert result.classes_HW is not None
    canvas = scaled(image.convert("RGB"))
    colours = np.array(palette(1 + int(result.classes_HW.max())), np.uint8)
    classes = Image.fromarray(result.classes_HW).resize(canvas.size, Image.Resampling.NEAREST)
    canvas = Image.blend(canvas, Image.fromarray(colours[np.asarray(classes)]), OPACITY)
    legend = _legend(canvas, result, colours)
    whole = Image.new("RGB", (canvas.width, canvas.height + legend.height), _PANEL)
    whole.paste(canvas, (0, 0))
    whole.paste(legend, (0, canvas.height))
    return whole


def draw_masks(image: Image.Image, result: Masks) -> Image.Image:
    """The picture in RGB, in its own size, with every mask laid on it in a colour of its own."""
    canvas = image.convert("RGB")
    for mask, colour in zip(result.predictions, palette(len(result.predictions)), strict=True):
        canvas = blend(canvas, mask.mask_HW, colour)
    return canvas


def _legend(canvas: Image.Image, result: SemanticMap, colours: NDArray[np.uint8]) -> Image.Image:
    font = _font(canvas)
    row = round(font.size * 1.7)
    columns = max(1, canvas.width // round(font.size * 12))
    rows = -(-len(result.predictions) // columns)
    panel = Image.new("RGB", (canvas.width, row * rows + row), _PANEL)
    draw = ImageDraw.Draw(panel)
    width = canvas.width // columns
    for place, region in enumerate(result.predictions):
        left, middle = place % columns * width + row // 2, place // columns * row + row
        side = round(font.size * 0.45)
        draw.rectangle(
            (left, middle - side, left + 2 * side, middle + side), fill=tuple(colours[region.index])
        )
        text = fitted(f"{region.label} {region.share:.1%}", font, width - row - 3 * side)
        draw.text((left + 3 * side, middle), text, font=font, fill=_LIGHT, anchor="lm")
    return panel


def _tag_corners(box: Corners, text: str, font: ImageFont.FreeTypeFont, size: tuple[int, int]) -> Corners:
    """Where a label lies: on the upper edge of a box, inside of it where there is no room above."""
    width, height = font.getlength(text) + font.size * 0.5, font.size * 1.25
    left = max(0, min(box[0], size[0] - width))
    top = box[1] - height if box[1] >= height else box[1]
    return left, top, left + width, top + height


def _meet(one: Corners, other: Corners) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_tag(
    draw: ImageDraw.ImageDraw, tag: Corners, text: str, colour: Colour, font: ImageFont.FreeTypeFont
) -> None:
    draw.rectangle(tag, fill=colour)
    ink = _DARK if sum(colour) > 3 * 128 else _LIGHT
    draw.text((tag[0] + font.size * 0.25, (tag[1] + tag[3]) / 2), text, font=font, fill=ink, anchor="lm")


def _usual_side(boxes_N4: NDArray[np.float64]) -> float:
    """The median of the boxes' shorter sides."""
    return float(np.median((boxes_N4[:, 2:] - boxes_N4[:, :2]).min(axis=1))) if len(boxes_N4) else np.inf


def _font(canvas: Image.Image, at_most: float = np.inf) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=min(max(canvas.size) / _FONT_SHARE, at_most))
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue
