"""The outside of a picture file: its kind, size and orientation, read before any decoder sees the bytes.

JPEG and PNG leave here without metadata (EXIF, XMP, ICC, text, animation), so that no metadata parser runs on
bytes from strangers and no decoder warns about them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vitesse.errors import ImageError

Kind = Literal["JPEG", "PNG", "WebP"]

_EXIF = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_JPEG_SIZES = {0xC0 + n for n in range(16)} - {0xC4, 0xC8, 0xCC}  # SOF0..15 without DHT, JPG, DAC
_JPEG_BARE = {0x00, 0x01, *range(0xD0, 0xD9)}  # escaped FF, TEM, RST0..7, SOI: nothing follows them
_JPEG_SCAN = {0xD9, 0xDA}  # EOI, SOS: the header ends
_JPEG_DROPPED = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # APP1..13, APP15, COM; APP0 and APP14 say the colour space


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the first bytes say.

    Attributes:
        kind: the file format.
        width, height: in pixels, as stored (before orientation).
        orientation: the EXIF orientation, 1 (upright) to 8.
        plain: a JPEG of 8-bit grey or three components.
        data: the bytes to decode, without metadata for JPEG and PNG.
    """

    kind: Kind
    width: int
    height: int
    orientation: int
    plain: bool
    data: bytes

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture held upright."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes) -> Header:
    """Read kind, size and orientation from the bytes of a picture.

    Raises:
        ImageError: not a JPEG, PNG or WebP by its magic bytes, or its header is corrupt or cut short.
    """
    if not data:
        raise ImageError("expected a picture, the file is empty")
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _read_jpeg(data)
        if data.startswith(_PNG_MAGIC):
            return _read_png(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _read_webp(data)
    except (struct.error, IndexError, ValueError) as error:
        raise ImageError(
            f"the header is corrupt or cut short after {len(data)} bytes; get the file again"
        ) from error
    raise ImageError(
        f"expected a JPEG, PNG or WebP picture, the file begins with {data[:8]!r}; convert it first"
    )


def _read_jpeg(data: bytes) -> Header:
    kept, start = [], 0
    orientation, frame = 1, None
    for marker, begin, end in _jpeg_segments(data):
        if marker in _JPEG_SIZES and frame is None:
            frame = struct.unpack_from(">BHHB", data, begin + 4)
        if marker == 0xE1 and data[begin + 4 : begin + 10] == _EXIF:
            orientation = _exif_orientation(data[begin + 4 : end])
        if marker in _JPEG_DROPPED:
            kept.append(data[start:begin])
            start = end
    if frame is None:
        raise ImageError("expected a JPEG picture, the file begins like one and holds no picture")
    bits, height, width, components = frame
    return Header(
        kind="JPEG",
        width=width,
        height=height,
        orientation=orientation,
        plain=bits == 8 and components in (1, 3),
        data=b"".join([*kept, data[start:]]) if kept else data,
    )


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of every segment before the first scan; bytes between segments are skipped."""
    at = 2
    while True:
        at = data.index(b"\xff", at)
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _JPEG_BARE:
            at += 2
        elif marker in _JPEG_SCAN:
            return
        else:
            end = at + 2 + max(2, struct.unpack_from(">H", data, at + 2)[0])
            yield marker, at, end
            at = end


def _read_png(data: bytes) -> Header:
    if data[12:16] != b"IHDR":
        raise ImageError("expected a PNG picture, the file begins like one and holds no header chunk")
    width, height = struct.unpack_from(">II", data, 16)
    kept, orientation, at = [_PNG_MAGIC], 1, 8
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at) if at + 8 <= len(data) else (0, b"")
        end = at + 12 + length
        if name == b"eXIf":
            orientation = _exif_orientation(data[at + 8 : end - 4])
        if name in _PNG_KEPT:
            kept.append(data[at:end])
        at = end
    return Header(
        kind="PNG", width=width, height=height, orientation=orientation, plain=False, data=b"".join(kept)
    )


def _read_webp(data: bytes) -> Header:
    first, body = data[12:16], data[20:30]
    if first == b"VP8X":  # extended: sizes less one, 24 bits each
        width = 1 + int.from_bytes(body[4:7], "little")
        height = 1 + int.from_bytes(body[7:10], "little")
    elif first == b"VP8L":  # lossless: sizes less one, 14 bits each after a signature byte
        bits = struct.unpack_from("<I", body, 1)[0]
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif first == b"VP8 ":  # lossy: 14 bits each after a frame tag and a start code
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 6))
    else:
        raise ImageError(f"expected a WebP picture, the first chunk is {first!r}")
    return Header(
        kind="WebP",
        width=width,
        height=height,
        orientation=_webp_orientation(data),
        plain=False,
        data=data,
    )


def _webp_orientation(data: bytes) -> int:
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            return _exif_orientation(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return 1


def _exif_orientation(exif: bytes) -> int:
    """The orientation tag of the first directory, or 1 when there is none that can be read."""
    tiff = exif.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == _ORIENTATION_TAG:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
