from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitesse.errors import ImageError
from vitesse.runtime.header import read_header

KINDS = ["JPEG", "PNG", "WebP"]


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    kind=st.sampled_from(KINDS),
    mode=st.sampled_from(["RGB", "L", "RGBA"]),
    lossless=st.booleans(),
)
def test_sizes_are_those_that_pillow_reads(width, height, kind, mode, lossless):
    if kind == "JPEG" and mode == "RGBA":
        mode = "CMYK"
    data = saved(Image.new(mode, (width, height)), kind, **({"lossless": lossless} if kind == "WebP" else {}))
    header = read_header(data)
    assert (header.kind, header.width, header.height) == (kind, *Image.open(io.BytesIO(data)).size)
    assert header.plain == (kind == "JPEG" and mode != "CMYK")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [b"II", b"MM"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_the_one_that_pillow_reads(kind, order, orientation):
    mark = "<" if order == b"II" else ">"
    entries = [(0x010F, 2, 4, b"abc\0"), (0x0112, 3, 1, struct.pack(f"{mark}HH", orientation, 0))]
    body = b"".join(
        struct.pack(f"{mark}HHI", tag, type_, count) + value for tag, type_, count, value in entries
    )
    tiff = order + struct.pack(f"{mark}HI", 42, 8) + struct.pack(f"{mark}H", len(entries)) + body + b"\0" * 4
    data = saved(Image.new("RGB", (9, 5)), kind, exif=b"Exif\0\0" * (kind == "JPEG") + tiff)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == orientation
    assert read_header(data).orientation == orientation


@pytest.mark.parametrize(
    "exif",
    [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"garbage" * 20]
    + [b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, value, 0) for value in (0, 9, 65535)],
)
def test_unreadable_orientation_means_upright(exif):
    data = saved(Image.new("RGB", (9, 5)), "JPEG", exif=b"Exif\0\0" + exif)
    assert b"Exif" in data
    assert read_header(data).orientation == 1


def test_metadata_leaves_no_trace():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    secret = b"secret " * 40
    jpeg = saved(image, "JPEG", comment=secret, icc_profile=secret, exif=b"Exif\0\0" + secret, xmp=secret)
    png = saved(image, "PNG", icc_profile=secret, exif=secret)
    for data in (jpeg, png):
        assert secret in data or b"iCCP" in data
        stripped = read_header(data).data
        assert secret not in stripped
        assert b"iCCP" not in stripped
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(stripped))), np.asarray(Image.open(io.BytesIO(data)))
        )


def test_junk_between_jpeg_segments_is_skipped():
    data = saved(Image.new("RGB", (33, 22)), "JPEG")
    end = 4 + struct.unpack_from(">H", data, 4)[0]
    header = read_header(data[:end] + b"junk\xff\xff" + data[end:])
    assert (header.width, header.height) == (33, 22)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"GIF89a" + b"\0" * 50, "expected a JPEG, PNG or WebP"),
        (b"%!PS-Adobe", "expected a JPEG, PNG or WebP"),
        (b"II*\0" + b"\0" * 50, "expected a JPEG, PNG or WebP"),
        (b"\xff\xd8\xff", "corrupt or cut short"),
        (b"\xff\xd8\xff\xd9", "holds no picture"),
        (b"\xff\xd8\xff\xc0\x00\x11", "corrupt or cut short"),
        (b"\x89PNG\r\n\x1a\n", "no header chunk"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0", "corrupt or cut short"),
        (b"RIFF\0\0\0\0WEBP", "first chunk"),
        (b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0", "corrupt or cut short"),
    ],
)
def test_what_is_no_picture_is_refused(data, message):
    with pytest.raises(ImageError, match=message):
        read_header(data)
