"""Picture to tensor: the one deterministic preprocess.

Evaluation, the predictor and serving all use this file, so a figure measured in one holds in the others.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitesse.errors import ImageError
from vitesse.runtime.bands import NPY_MAGIC, check_bands, false_colour, read_bands
from vitesse.runtime.decode import (
    DEFAULT_LIMITS,
    Decoded,
    ImageLimits,
    decode,
    in_mode,
    read_bytes,
    read_image,
    to_rgb,
)
from vitesse.spec import PreprocessSpec

__all__ = [
    "DEFAULT_LIMITS",
    "DRAFT_GAP",
    "ImageLimits",
    "Placement",
    "fitted_size",
    "input_size",
    "load_tensor",
    "load_tensor_and_size",
    "place",
    "preprocess",
    "preprocess_array",
    "preprocess_bands",
    "read_for_display",
    "read_image",
    "resized_size",
    "short_sided_size",
    "to_rgb",
]

DRAFT_GAP = 2.0
"""A JPEG decoded small stays at least this many times larger than the resized picture (see `load_tensor`)."""

SHORT_MULTIPLE = 32
"""Pixels, see `PreprocessSpec.resize`: the stride of the coarsest feature map."""

LONGEST = 16
"""Of such a picture, the longer side over the shorter at most: its input would have no bounds."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Placement:
    """Where the pixels of a picture lie in a model's input. All pairs are (vertical, horizontal).

    Attributes:
        full: size of the picture in its own pixels.
        resized: size of the whole picture in pixels of the input.
        offset: row and column of the resized picture that come first in the input.
        shown: size of the part of the input that shows the picture.
    """

    full: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    shown: tuple[int, int]

    @property
    def scales(self) -> tuple[float, float]:
        """Pixels of the picture to one of the input."""
        return self.full[0] / self.resized[0], self.full[1] / self.resized[1]

    def box_in_picture(self, box_N4: NDArray[Any], *, clip: bool = True) -> NDArray[np.float64]:
        """Boxes (..., 4) left, top, right, bottom in the input, in the picture; cut off at its edges."""
        scale_y, scale_x = self.scales
        top, left = self.offset
        moved: NDArray[np.float64] = box_N4 + np.array([left, top, left, top], np.float64)
        height, width = self.full
        moved *= (scale_x, scale_y, scale_x, scale_y)
        return moved.clip(0, (width, height, width, height)) if clip else moved


def place(size: tuple[int, int], spec: PreprocessSpec) -> Placement:
    """Where a picture of `size` (height, width) lies in the input that `spec` makes of it."""
    resized = resized_size(size, spec)
    if spec.resize in ("fit", "short"):
        return Placement(size, resized, (0, 0), resized)
    top, left = (round((side - kept) / 2) for side, kept in zip(resized, spec.image_size, strict=True))
    return Placement(size, resized, (top, left), spec.image_size)


def load_tensor(
    source: bytes | Path, spec: PreprocessSpec, limits: ImageLimits = DEFAULT_LIMITS
) -> NDArray[np.float32]:
    """Read a picture and preprocess it: `preprocess(read_image(source), spec)`, faster for large JPEGs.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size when it stays `DRAFT_GAP` times larger than the resized
    picture. That changes a pixel by less than one level in 255 on average, about what saving the photo once
    more at JPEG quality 90 does; at a gap of 1 it would be two levels. `benchmarks/decode.py` measures both.

    A `.npy` file holds an array of `preprocess_array`.

    Returns:
        (C, H, W) float32.

    Raises:
        ImageError: see `read_image`.
    """
    return load_tensor_and_size(source, spec, limits)[0]


def load_tensor_and_size(
    source: bytes | Path, spec: PreprocessSpec, limits: ImageLimits = DEFAULT_LIMITS
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """As `load_tensor`, with the (height, width) of the upright picture in its own pixels."""

    def enough(height: int, width: int) -> tuple[int, int]:
        resized = resized_size((height, width), spec)
        return math.ceil(DRAFT_GAP * resized[0]), math.ceil(DRAFT_GAP * resized[1])

    data = read_bytes(source, limits)
    if data.startswith(NPY_MAGIC):
        array = read_bands(data)
        return preprocess_array(array, spec, limits), (array.shape[0], array.shape[1])
    decoded = decode(data, limits, enough)
    return _normalise(_resample(decoded, spec), spec), decoded.full_size


def read_for_display(source: bytes | Path, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """A picture file in RGB as `read_image`; of a `.npy` file with other than colours, `false_colour`.

    Raises:
        ImageError: see `read_image` and `check_bands`.
    """
    data = read_bytes(source, limits)
    if not data.startswith(NPY_MAGIC):
        return read_image(data, limits)
    array = read_bands(data)
    if _is_picture(array):
        return to_rgb(array, limits)
    return false_colour(check_bands(array, array.shape[2] if array.ndim == 3 else 1, limits))


def preprocess(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Resize, crop, scale to 0..1 and normalise: deterministic, and the same wherever a model runs.

    Resize and centre crop are one resize with a window, which gives the pixels of resizing all and then
    cropping (as torchvision and timm do) up to rounding: 0.03 levels in 255 on average, 2 at the most.

    Args:
        image: a picture in RGB, or any mode that Pillow converts to it; see `to_rgb` for orientation.
        spec: one or three channels.

    Returns:
        (C, H, W) float32.

    Raises:
        ImageError: the spec asks for other than one or three channels.
    """
    return _normalise(_resample(Decoded(image, (image.height, image.width), 1), spec), spec)


def resized_size(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """(height, width) that a picture of `size` (height, width) is resized to before the crop, in pixels."""
    if spec.resize == "squash":
        return spec.image_size
    height, width = size
    if spec.resize == "fit":
        return fitted_size(size, spec.image_size)
    if spec.resize == "short":
        return short_sided_size(size, min(spec.image_size))
    target_h, target_w = (math.floor(side / spec.crop_pct) for side in spec.image_size)
    if target_h != target_w:
        ratio = min(height / target_h, width / target_w)
        return round(height / ratio), round(width / ratio)
    if width <= height:
        return target_h * height // width, target_w
    return target_h, target_w * width // height


def fitted_size(size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) of a picture that is as large as fits the room in its own shape; halves go up."""
    scale = min(space / side for space, side in zip(room, size, strict=True))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def short_sided_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """The (height, width) of a picture with a shorter side of `shorter`, the other a multiple of 32 pixels.

    Raises:
        ImageError: one side is more than `LONGEST` times the other.
    """
    if max(size) > LONGEST * min(size):
        raise ImageError(f"expected sides of at most {LONGEST}:1, got {size[1]}x{size[0]} pixels; cut it up")
    longer = math.ceil(max(size) * shorter / min(size) / SHORT_MULTIPLE) * SHORT_MULTIPLE
    return (shorter, longer) if size[0] <= size[1] else (longer, shorter)


def preprocess_array(
    array: NDArray[Any], spec: PreprocessSpec, limits: ImageLimits = DEFAULT_LIMITS
) -> NDArray[np.float32]:
    """An array as what it is: uint8 colours (H, W, 3) or greys (H, W) as `preprocess`, else bands.

    Raises:
        ImageError: see `to_rgb` and `preprocess_bands`.
    """
    if _is_picture(array) and len(spec.mean) in _MODES:
        return preprocess(to_rgb(array, limits), spec)
    return preprocess_bands(array, spec, limits)


def preprocess_bands(
    bands_HWC: NDArray[Any], spec: PreprocessSpec, limits: ImageLimits = DEFAULT_LIMITS
) -> NDArray[np.float32]:
    """Resize, crop and normalise a picture of any number of bands by the rules of `preprocess`.

    Args:
        bands_HWC: (H, W, C), or (H, W) for one band. uint8 and uint16 are scaled to 0..1; floats are taken
            as they are, in the unit of the spec's mean and std.
        spec: C channels.

    Returns:
        (C, H, W) float32.

    Raises:
        ImageError: another number of bands, another type, too many pixels, values that are not finite.
    """
    checked_HWC = check_bands(bands_HWC, len(spec.mean), limits)
    size = (checked_HWC.shape[0], checked_HWC.shape[1])
    placed = place(size, spec)
    (height, width), box = placed.shown, _window(placed, size)
    x_CHW = np.zeros((len(spec.mean), *input_size(placed.shown, spec)), np.float32)
    for x_HW, band_HW, mean, std in zip(
        x_CHW, np.ascontiguousarray(checked_HWC.transpose(2, 0, 1)), spec.mean, spec.std, strict=True
    ):
        resized = Image.fromarray(band_HW).resize((width, height), _FILTERS[spec.interpolation], box=box)
        x_HW[:height, :width] = (np.asarray(resized) - mean) / std
    return x_CHW


def _is_picture(array: NDArray[Any]) -> bool:
    return array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3))


def _window(
    placed: Placement, decoded_size: tuple[int, int], fraction: int = 1
) -> tuple[float, float, float, float]:
    """What the input shows, (left, top, right, bottom), in pixels of a picture decoded at 1/`fraction`."""
    scale_y, scale_x = (scale / fraction for scale in placed.scales)
    (top, left), (height, width) = placed.offset, placed.shown
    return (
        left * scale_x,
        top * scale_y,
        min((left + width) * scale_x, decoded_size[1]),
        min((top + height) * scale_y, decoded_size[0]),
    )


def input_size(shown: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """(height, width) of the input of which a picture fills `shown`."""
    return shown if spec.resize == "short" else spec.image_size


def _resample(decoded: Decoded, spec: PreprocessSpec) -> Image.Image:
    """Resize and crop at once: a window of the full picture, scaled to the pixels that were decoded."""
    if (mode := _MODES.get(len(spec.mean))) is None:
        raise ImageError(
            f"expected an array of {len(spec.mean)} bands, a .npy file, got a picture of colours"
        )
    image = in_mode(decoded.image, mode)
    placed = place(decoded.full_size, spec)
    box = _window(placed, (image.height, image.width), decoded.fraction)
    height, width = placed.shown
    return image.resize((width, height), _FILTERS[spec.interpolation], box=box)


def _normalise(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.float32]:
    """(C, H, W) of the input's size; where a picture that was fitted leaves room, the mean: 0."""
    scale, offset = _scale_and_offset(spec.mean, spec.std)
    shown = image.height, image.width
    size = input_size(shown, spec)
    x_CHW = (np.empty if shown == size else np.zeros)((len(scale), *size), np.float32)
    shown_CHW = x_CHW[:, : image.height, : image.width]
    for x_HW, band, factor, shift in zip(shown_CHW, image.split(), scale, offset, strict=True):
        np.multiply(np.asarray(band), factor, out=x_HW)
        x_HW += shift
    return x_CHW


@functools.lru_cache(maxsize=16)
def _scale_and_offset(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(x / 255 - mean) / std as x * scale + offset."""
    std_C = np.asarray(std, np.float64)
    return (1 / 255 / std_C).astype(np.float32), (-np.asarray(mean, np.float64) / std_C).astype(np.float32)
