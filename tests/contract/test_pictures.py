"""Pictures, good and bad (design §8): the right pixels, or one line for that file."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from vitesse.errors import ImageError
from vitesse.runtime.imaging import ImageLimits, load_tensor, read_image
from vitesse.spec import PreprocessSpec

KINDS = ["JPEG", "PNG", "WebP"]
SPEC = PreprocessSpec(image_size=(16, 16))


def pixels(source, **options):
    image = read_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def refused(source, message=".", limits=ImageLimits()):  # noqa: B008
    with pytest.raises(ImageError, match=message) as caught:
        read_image(source, limits)
    assert "\n" not in str(caught.value)
    with pytest.raises(ImageError):
        load_tensor(source, SPEC, limits)


def png(width, height, depth=8, colour=2, rows=b"", *chunks):
    """A PNG put together by hand, so that its header can say anything."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join(chunk(name, data) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_picture_is_pillows(photo, encode, kind):
    data = encode(photo(61, 47), kind)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_says_nothing_about_the_kind(photo, encode, kind, tmp_path):
    path = tmp_path / "picture.txt"
    path.write_bytes(encode(photo(), kind))
    assert pixels(path).shape == (48, 64, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_one_pixel(encode, kind):
    options = {"lossless": True} if kind == "WebP" else {}
    (pixel,) = pixels(encode(Image.new("RGB", (1, 1), (255, 255, 255)), kind, **options)).reshape(-1, 3)
    assert pixel.tolist() == [255, 255, 255]
    assert load_tensor(encode(Image.new("RGB", (1, 1)), kind), SPEC).shape == (3, 16, 16)


def test_grey_of_sixteen_bits_is_scaled(encode):
    values = np.asarray([[0, 128, 129, 257, 30000, 65406, 65535]], np.uint16)
    expected = np.rint(values / 257)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(values), "PNG"))[..., 1], expected)


def test_transparent_grey_of_sixteen_bits_is_white():
    data = png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 7, 5000), (b"tRNS", struct.pack(">H", 7)))
    assert pixels(data)[0].tolist() == [[255] * 3, [19] * 3]


def test_colour_of_sixteen_bits_is_scaled():
    data = png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 65535, 32768, 0))
    np.testing.assert_allclose(pixels(data)[0, 0], [255, 128, 0], atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_few_colours(photo, encode, mode):
    image = photo().convert(mode)
    np.testing.assert_array_equal(pixels(encode(image, "PNG")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "WebP"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(photo, encode, kind, mode):
    image = photo().convert(mode)
    alpha = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))
    image.putalpha(Image.fromarray(alpha))
    colour = np.asarray(image.convert("RGBA")).astype(float)
    expected = 255 + (colour[..., :3] - 255) * colour[..., 3:] / 255
    options = {"lossless": True, "exact": True} if kind == "WebP" else {}
    np.testing.assert_allclose(pixels(encode(image, kind, **options)), expected, atol=1.01)


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255, 255])])
def test_a_palette_with_transparency(encode, transparency):
    image = Image.new("P", (4, 1))
    image.putdata([0, 1, 2, 3])
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    data = encode(image, "PNG", transparency=transparency)
    expected = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", expected.size, "white")
    white.alpha_composite(expected)
    np.testing.assert_allclose(pixels(data), np.asarray(white.convert("RGB")), atol=1)


def test_cmyk(photo, encode):
    image = photo().convert("CMYK")
    data = encode(image, quality=100, subsampling=0)
    np.testing.assert_allclose(pixels(data).astype(int), np.asarray(photo()).astype(int), atol=12)


@pytest.mark.parametrize("kind", ["PNG", "WebP"])
def test_an_animation_gives_its_first_frame(photo, encode, kind):
    frames = [photo(seed=seed) for seed in range(3)]
    options = {"lossless": True} if kind == "WebP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=40, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(pixels(data), np.asarray(frames[0]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(photo, encode, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(40, 24), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pixels(data), np.asarray(expected.convert("RGB")))


def test_many_pixels_are_refused_by_the_header_alone(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(50_000, 50_000))
    started = time.perf_counter()
    refused(path, r"at most 40 megapixels, the header says 50000x50000 \(2500\)")
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixel_cap_is_exact_and_can_be_moved(photo, encode, kind):
    data = encode(photo(40, 25), kind)
    assert pixels(data, limits=ImageLimits(max_pixels=1000)).shape == (25, 40, 3)
    refused(data, "megapixels", ImageLimits(max_pixels=999))


def test_a_raised_cap_neither_warns_nor_touches_pillows(encode, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encode(Image.new("L", (30, 30)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(data).shape == (30, 30, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_the_byte_cap_holds_for_bytes_and_files(photo, encode, tmp_path):
    data = encode(photo())
    (tmp_path / "a.jpg").write_bytes(data)
    for source in (data, tmp_path / "a.jpg"):
        assert pixels(source, limits=ImageLimits(max_bytes=len(data))).shape == (48, 64, 3)
        refused(source, "expected at most .* MiB", ImageLimits(max_bytes=len(data) - 1))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000"])
def test_other_kinds_are_refused_whatever_their_name(photo, encode, kind, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode(photo(), kind))
    refused(path, "expected a JPEG, PNG or WebP picture")


@pytest.mark.parametrize(
    "data", [b"", b"text", b"%!PS-Adobe-3.0 EPSF", b"\xff\xd8\xff" + b"x" * 500, b"\0" * 9]
)
def test_what_is_no_picture_is_refused(data):
    refused(data)


def test_paths_that_cannot_be_read(tmp_path, photo, encode):
    refused(tmp_path / "none.jpg", "cannot be read: no such file")
    refused(tmp_path, "folder or a device")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", "cannot be read")
    refused(tmp_path / "nul\0byte", "cannot be read")


def test_a_file_without_permission_is_refused(tmp_path, photo, encode, monkeypatch):
    def deny(self, *args, **options):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.jpg").write_bytes(encode(photo()))
    monkeypatch.setattr("pathlib.Path.open", deny)
    refused(tmp_path / "a.jpg", "cannot be read: permission denied")


def test_a_pipe_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "folder or a device")


@pytest.mark.parametrize("kind", [*KINDS, "progressive", "lossless"])
def test_cut_short_at_every_per_cent(photo, encode, kind):
    options = {"progressive": {"progressive": True}, "lossless": {"lossless": True}}.get(kind, {})
    kind = {"progressive": "JPEG", "lossless": "WebP"}.get(kind, kind)
    data = encode(photo(80, 60), kind, **options)
    whole = pixels(data)
    for percent in range(100):
        cut = data[: len(data) * percent // 100]
        if percent < 98:
            refused(cut)
        else:  # only the end marker may be missing
            try:
                np.testing.assert_array_equal(pixels(cut), whole)
            except ImageError:
                continue


def test_a_process_that_allows_cut_pictures_still_gets_a_result_or_a_line(photo, encode, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encode(photo(80, 60))
    with contextlib.suppress(ImageError):
        assert pixels(data[: len(data) // 2]).shape == (60, 80, 3)


@pytest.fixture(scope="module")
def healthy(photo, encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = encode(photo(48, 40), exif=exif, icc_profile=b"profile" * 9, comment=b"hello")
    apng = encode(photo(20, 20), "PNG", save_all=True, append_images=[photo(20, 20, 1)], exif=exif)
    webp = encode(photo(48, 40), "WebP", exif=exif, save_all=True, append_images=[photo(48, 40, 1)])
    palette = encode(photo(20, 20).convert("P"), "PNG", transparency=3)
    return [jpeg, encode(photo(48, 40), progressive=True), apng, palette, webp]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bits_give_a_picture_or_a_line(healthy, data):
    broken = bytearray(data.draw(st.sampled_from(healthy)))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, min(len(broken), 700) - 1) | st.integers(0, len(broken) - 1))
        broken[place] ^= 1 << data.draw(st.integers(0, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(ImageError):
            assert pixels(bytes(broken), limits=ImageLimits(max_pixels=1_000_000)).ndim == 3


def test_corrupt_metadata_neither_warns_nor_spoils_the_picture(photo, encode):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(256)) * 4
    data = encode(photo(), exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pixels(data), pixels(encode(photo())))
