"""What a picture may come as: to its name, its pixels, its tensor.

Shape suffixes: C channels, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitesse.errors import ImageError
from vitesse.runtime.bands import NPY_MAGIC, read_bands
from vitesse.runtime.decode import check_pixels, decode, read_bytes
from vitesse.runtime.header import read_header
from vitesse.runtime.imaging import (
    ImageLimits,
    load_tensor_and_size,
    preprocess,
    preprocess_array,
    to_rgb,
)
from vitesse.spec import PreprocessSpec

Source = str | Path | bytes | tuple[str, bytes] | Image.Image | NDArray[Any]
"""A path, the bytes of a file (with or without a name), an opened picture, or an array.

Arrays are as `preprocess_array` takes them: RGB (H, W, 3) uint8, or bands (H, W, C).
"""

Pixels = Image.Image | NDArray[Any]
"""A decoded picture: upright and in RGB, or an array as it came."""

Size = tuple[int, int]
"""Height and width in pixels."""


def tensor_and_size(
    source: Source, spec: PreprocessSpec, limits: ImageLimits
) -> tuple[NDArray[np.float32], Size]:
    """A source preprocessed, (C, H, W), and its own (height, width).

    Raises:
        ImageError: the source is refused.
    """
    if isinstance(source, Image.Image):
        source = to_rgb(source, limits)
    if isinstance(source, Image.Image | np.ndarray):
        return tensor_of(source, spec, limits), size_of(source)
    data = _file(source)
    if data is None:
        raise ImageError(f"expected a path, bytes, a picture or an array, got {type(source).__name__}")
    return load_tensor_and_size(data, spec, limits)


def tensor_of(pixels: Pixels, spec: PreprocessSpec, limits: ImageLimits) -> NDArray[np.float32]:
    """Pixels preprocessed, (C, H, W).

    Raises:
        ImageError: an array that is refused.
    """
    if isinstance(pixels, Image.Image):
        return preprocess(pixels, spec)
    return preprocess_array(pixels, spec, limits)


def size_of(pixels: Pixels) -> Size:
    """(height, width)."""
    if isinstance(pixels, Image.Image):
        return pixels.height, pixels.width
    return pixels.shape[0], pixels.shape[1]


def pixels_if(wanted: Callable[[Size], bool], source: Source, limits: ImageLimits) -> Pixels | None:
    """All pixels of a source whose (height, width) is wanted; others are not decoded, and None.

    Raises:
        ImageError: the source is refused.
    """
    if isinstance(source, Image.Image):
        image = to_rgb(source, limits)
        return image if wanted(size_of(image)) else None
    file = None if isinstance(source, np.ndarray) else _file(source)
    if file is not None:
        data = read_bytes(file, limits)
        if not data.startswith(NPY_MAGIC):
            is_wanted = wanted(read_header(data).size)
            return decode(data, limits, lambda height, width: None).image if is_wanted else None
        source = read_bands(data)
    if not isinstance(source, np.ndarray) or source.ndim not in (2, 3) or not wanted(size_of(source)):
        return None
    check_pixels(*size_of(source), limits)
    return source


def name_of(source: Source, index: int) -> str:
    """What records call a source: its own name, or its place in the order."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, tuple):
        return str(source[0])
    named = getattr(source, "filename", None)
    return os.fspath(named) if named else f"input {index}"


def _file(source: Any) -> bytes | Path | None:
    """A path or the bytes of a file; None of anything else."""
    if isinstance(source, tuple):
        source = source[1]
    if isinstance(source, str):
        return Path(source)
    return source if isinstance(source, bytes | Path) else None
