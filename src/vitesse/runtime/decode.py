"""Bytes to RGB: every picture comes through here, and only JPEG, PNG and WebP do."""

from __future__ import annotations

import functools
import importlib
import io
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from vitesse.errors import ImageError, TooLargeError
from vitesse.runtime.header import Header, read_header

_OPENERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """The largest picture that is decoded: width times height in pixels, and file size in bytes."""

    max_pixels: int = 40_000_000
    max_bytes: int = 20 * 2**20


DEFAULT_LIMITS = ImageLimits()
TILED_LIMITS = ImageLimits(max_pixels=250_000_000, max_bytes=200 * 2**20)
"""For pictures that are looked at by tiles: decoded, the largest takes 1 GB."""


@dataclass(frozen=True)
class Decoded:
    """An upright RGB picture at 1/`fraction` of `full_size`, its (height, width) when decoded in full."""

    image: Image.Image
    full_size: tuple[int, int]
    fraction: int


def read_image(
    source: bytes | Path, limits: ImageLimits = DEFAULT_LIMITS, min_size: tuple[int, int] | None = None
) -> Image.Image:
    """Decode a JPEG, PNG or WebP into an upright RGB picture of 8 bits a channel.

    The kind is read from the magic bytes, never the name; bytes and pixels are counted before decoding.
    EXIF orientation is applied. An animation gives its first frame. 16-bit channels are scaled to 8 bits,
    CMYK is converted without colour profiles, and whatever is transparent is laid on white.

    Args:
        source: the bytes of the file, or its path.
        limits: what is too large.
        min_size: (height, width) in pixels that suffice, upright. A JPEG is then decoded at 1/2, 1/4 or 1/8
            of its size when the result is still at least that large.

    Raises:
        ImageError: unreadable, too large, not one of the three kinds, corrupt or cut short.
    """
    return decode(source, limits, lambda height, width: min_size).image


def decode(
    source: bytes | Path, limits: ImageLimits, enough: Callable[[int, int], tuple[int, int] | None]
) -> Decoded:
    """Decode as `read_image` does; `enough` says the (height, width) that suffice for an upright full size.

    Raises:
        ImageError: see `read_image`.
    """
    header = read_header(read_bytes(source, limits))
    check_pixels(header.height, header.width, limits)
    height, width = header.size
    fraction, least = 1, enough(height, width)
    if header.kind == "JPEG" and least is not None:
        fraction = next(
            f for f in (8, 4, 2, 1) if f == 1 or (f * least[0] <= height and f * least[1] <= width)
        )
    try:
        image = _pixels(header, fraction)
        if header.orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[header.orientation])
    except (
        Exception
    ) as error:  # hostile bytes make a decoder raise anything; all of it is the picture's fault
        raise _refusal(error) from error
    return Decoded(image, (height, width), fraction)


def to_rgb(source: Image.Image | NDArray[np.uint8], limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """An opened picture or an array (H, W, 3) or (H, W) uint8 as an upright RGB picture.

    Raises:
        ImageError: too large, cut short, a picture of floats, or an array of another shape or dtype.
    """
    if isinstance(source, Image.Image):
        check_pixels(source.height, source.width, limits)
        if source.mode == "F":
            raise ImageError(
                "expected a picture of whole numbers, got floats; scale it to 0..255 of uint8 first"
            )
        try:
            return _flatten(ImageOps.exif_transpose(source))
        except Exception as error:
            raise _refusal(error) from error
    if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3)):
        raise ImageError(
            f"expected an array (H, W, 3) or (H, W) of uint8, got {source.shape} of {source.dtype}; "
            "RGB order, 0 to 255"
        )
    check_pixels(source.shape[0], source.shape[1], limits)
    return Image.fromarray(source).convert("RGB")


def read_bytes(source: bytes | Path, limits: ImageLimits) -> bytes:
    if isinstance(source, bytes):
        size, data = len(source), source
    else:
        try:
            if not stat.S_ISREG(source.stat().st_mode):
                raise ImageError("expected a picture file, this is a folder or a device")
            with source.open("rb") as file:
                data = file.read(limits.max_bytes + 1)
            size = max(len(data), source.stat().st_size)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ImageError(f"the file cannot be read: {reason.lower()}") from error
    if size > limits.max_bytes:
        raise TooLargeError(
            f"expected at most {limits.max_bytes / 2**20:g} MiB, the file has {size / 2**20:.1f}; "
            "shrink it or raise max_bytes"
        )
    return data


def check_pixels(height: int, width: int, limits: ImageLimits) -> None:
    if min(height, width) < 1:
        raise ImageError(f"expected a picture, its header says {width}x{height} pixels")
    if height * width > limits.max_pixels:
        raise TooLargeError(
            f"expected at most {limits.max_pixels / 1e6:g} megapixels, the header says {width}x{height} "
            f"({height * width / 1e6:.0f}); shrink it or raise max_pixels"
        )


def _pixels(header: Header, fraction: int) -> Image.Image:
    """Decode to RGB as stored. The plugin is called directly: stricter than `Image.open(formats=…)`, and it
    neither warns about large pictures nor needs the process-wide `MAX_IMAGE_PIXELS`."""
    if header.plain and fraction == 1 and (fast := _fast_pixels(header)) is not None:
        return fast
    image = _OPENERS[header.kind](io.BytesIO(header.data))
    if isinstance(image, JpegImageFile) and fraction > 1:
        image.draft(None, (header.width // fraction, header.height // fraction))
    image.load()
    return _flatten(image)


@functools.cache
def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def _fast_pixels(header: Header) -> Image.Image | None:
    """The picture from simplejpeg (the extra `fast`), or None where Pillow has to look at it."""
    if (simplejpeg := _simplejpeg()) is None:
        return None
    try:
        return Image.fromarray(simplejpeg.decode_jpeg(header.data, "RGB"))
    except ValueError:
        return None


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode to RGB; transparent pixels become white."""
    if image.mode.startswith("I"):
        return _from_sixteen_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(rgba, mask=rgba)
        return canvas
    return in_mode(image, "RGB")


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture in a Pillow mode; itself, not a copy, when it is in that mode already."""
    return image if image.mode == mode else image.convert(mode)


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).clip(0, 65535).astype(np.uint32)
    grey = ((values + 128) // 257).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _refusal(error: Exception) -> ImageError:
    if isinstance(error, ImageError):
        return error
    reason = " ".join(str(error).split()) or type(error).__name__
    return ImageError(f"the picture is corrupt or cut short ({reason}); get the file again")
