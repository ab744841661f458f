"""Picture to tensor: the one deterministic preprocess.

Evaluation, the predictor and serving all use this file, so a figure measured in one holds in the others.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitesse.errors import ConfigError
from vitesse.runtime.decode import DEFAULT_LIMITS, Decoded, ImageLimits, decode, in_mode, read_image, to_rgb
from vitesse.spec import PreprocessSpec

__all__ = [
    "DEFAULT_LIMITS",
    "DRAFT_GAP",
    "ImageLimits",
    "load_tensor",
    "preprocess",
    "read_image",
    "resized_size",
    "to_rgb",
]

DRAFT_GAP = 2.0
"""A JPEG decoded small stays at least this many times larger than the resized picture (see `load_tensor`)."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_MODES = {1: "L", 3: "RGB"}


def load_tensor(
    source: bytes | Path, spec: PreprocessSpec, limits: ImageLimits = DEFAULT_LIMITS
) -> NDArray[np.float32]:
    """Read a picture and preprocess it: `preprocess(read_image(source), spec)`, faster for large JPEGs.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size when it stays `DRAFT_GAP` times larger than the resized
    picture. That changes a pixel by less than one level in 255 on average, about what saving the photo once
    more at JPEG quality 90 does; at a gap of 1 it would be two levels. `benchmarks/decode.py` measures both.

    Returns:
        (C, H, W) float32.

    Raises:
        ImageError: see `read_image`.
        ConfigError: see `preprocess`.
    """

    def enough(height: int, width: int) -> tuple[int, int]:
        resized = resized_size((height, width), spec)
        return math.ceil(DRAFT_GAP * resized[0]), math.ceil(DRAFT_GAP * resized[1])

    return _normalise(_resample(decode(source, limits, enough), spec), spec)


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
        ConfigError: the spec asks for other than one or three channels.
    """
    return _normalise(_resample(Decoded(image, (image.height, image.width), 1), spec), spec)


def resized_size(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """(height, width) that a picture of `size` (height, width) is resized to before the crop, in pixels."""
    if spec.resize == "squash":
        return spec.image_size
    height, width = size
    target_h, target_w = (math.floor(side / spec.crop_pct) for side in spec.image_size)
    if target_h != target_w:
        ratio = min(height / target_h, width / target_w)
        return round(height / ratio), round(width / ratio)
    if width <= height:
        return target_h * height // width, target_w
    return target_h, target_w * width // height


def _resample(decoded: Decoded, spec: PreprocessSpec) -> Image.Image:
    """Resize and crop at once: a window of the full picture, scaled to the pixels that were decoded."""
    if (mode := _MODES.get(len(spec.mean))) is None:
        raise ConfigError(
            f"preprocess: expected 1 or 3 channels for a picture, the spec has {len(spec.mean)}"
        )
    resized = resized_size(decoded.full_size, spec)
    scales = [full / side / decoded.fraction for full, side in zip(decoded.full_size, resized, strict=True)]
    height, width = spec.image_size
    top, left = (round((side - kept) / 2) for side, kept in zip(resized, spec.image_size, strict=True))
    image = in_mode(decoded.image, mode)
    box = (
        left * scales[1],
        top * scales[0],
        min((left + width) * scales[1], image.width),
        min((top + height) * scales[0], image.height),
    )
    return image.resize((width, height), _FILTERS[spec.interpolation], box=box)


def _normalise(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.float32]:
    scale, offset = _scale_and_offset(spec.mean, spec.std)
    x_CHW = np.empty((len(scale), image.height, image.width), np.float32)
    for x_HW, band, factor, shift in zip(x_CHW, image.split(), scale, offset, strict=True):
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
