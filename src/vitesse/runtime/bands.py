"""Pictures of any number of bands, as NumPy arrays and `.npy` files: read, checked, as floats.

Shape suffixes: H rows, W columns, C bands.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitesse.errors import ImageError
from vitesse.runtime.decode import ImageLimits, check_pixels

NPY_MAGIC = b"\x93NUMPY"


def read_bands(data: bytes) -> NDArray[Any]:
    """The array in the bytes of a `.npy` file; its header is checked before anything is allocated.

    Raises:
        ImageError: damaged, cut short, or an array of other things than numbers.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
    except Exception as error:  # NumPy reads the header as Python and lets every error of its parser through
        told = " ".join(str(error).split())
        raise ImageError(f"expected a whole .npy file, its header cannot be read ({told})") from error
    if dtype.kind not in "biuf":
        raise ImageError(f"expected an array of numbers, got {dtype}")
    offset = file.tell()
    wanted, got = math.prod(shape) * dtype.itemsize, len(data) - offset
    if wanted != got or min(shape, default=0) < 0:
        raise ImageError(
            f"expected {wanted} bytes of {shape} {dtype}, the file holds {got}: it is cut or damaged"
        )
    return np.frombuffer(data, dtype, offset=offset).reshape(shape, order="F" if is_fortran else "C")


def check_bands(bands_HWC: NDArray[Any], num_bands: int, limits: ImageLimits) -> NDArray[np.float32]:
    """A picture's bands as float32: whole numbers divided by the largest of their type, floats as they are.

    Raises:
        ImageError: another shape or number of bands, too many pixels, another type, NaN or infinite values.
    """
    if bands_HWC.ndim == 2 and num_bands == 1:
        bands_HWC = bands_HWC[:, :, None]
    if bands_HWC.ndim != 3 or bands_HWC.shape[2] != num_bands or 0 in bands_HWC.shape:
        raise ImageError(f"expected an array (height, width, {num_bands} bands), got {bands_HWC.shape}")
    check_pixels(bands_HWC.shape[0], bands_HWC.shape[1], limits)
    kind, size = bands_HWC.dtype.kind, bands_HWC.dtype.itemsize
    if kind == "u" and size <= 2:
        scaled_HWC: NDArray[np.float32] = np.divide(
            bands_HWC, np.iinfo(bands_HWC.dtype).max, dtype=np.float32
        )
        return scaled_HWC
    if kind != "f":
        raise ImageError(f"expected bands of uint8, uint16 or floats, got {bands_HWC.dtype}")
    with np.errstate(over="ignore"):
        x_HWC = bands_HWC.astype(np.float32)
    if not (finite := np.isfinite(x_HWC)).all():
        row, column, band = np.argwhere(~finite)[0].tolist()
        bad = int((~finite).sum())
        raise ImageError(
            f"expected values that are finite in float32, {bad} are not, the first at row {row}, "
            f"column {column}, band {band}"
        )
    return x_HWC


def false_colour(bands_HWC: NDArray[Any]) -> Image.Image:
    """An RGB picture to look at: the last, the middle and the first band, each stretched to its own range."""
    last = bands_HWC.shape[2] - 1
    chosen_HW3 = bands_HWC[:, :, [last, last // 2, 0]].astype(np.float64)
    low, high = np.quantile(chosen_HW3, (0.02, 0.98), axis=(0, 1))
    stretched_HW3 = (chosen_HW3 - low) / np.maximum(high - low, 1e-12)
    return Image.fromarray((np.clip(stretched_HW3, 0, 1) * 255).astype(np.uint8))
