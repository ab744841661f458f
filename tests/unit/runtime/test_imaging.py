from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision import transforms

from vitesse.errors import ImageError
from vitesse.runtime import decode, imaging
from vitesse.runtime.imaging import load_tensor, preprocess, read_image, resized_size
from vitesse.spec import PreprocessSpec

SIZES = [(500, 375), (375, 500), (256, 256), (61, 47), (640, 200)]


def levels(x_CHW, spec):
    """A normalised tensor in levels of 0 to 255 again."""
    std, mean = (np.asarray(v, np.float32)[:, None, None] for v in (spec.std, spec.mean))
    return (x_CHW * std + mean) * 255


def reference(image, spec):
    """The same preprocessing as timm does it, on PIL pictures."""
    if spec.resize == "squash":
        filters = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
        parts = [
            transforms.Resize(spec.image_size, filters[spec.interpolation]),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
        return transforms.Compose(parts)(image).numpy()
    apply = transforms_imagenet_eval(
        spec.image_size, spec.crop_pct, interpolation=spec.interpolation, mean=spec.mean, std=spec.std
    )
    return apply(image).numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "spec",
    [
        PreprocessSpec(),
        PreprocessSpec(interpolation="bilinear", crop_pct=0.95),
        PreprocessSpec(image_size=(192, 320), crop_pct=1.0),
        PreprocessSpec(image_size=(96, 64)),
        PreprocessSpec(resize="squash", image_size=(192, 320)),
    ],
    ids=lambda spec: f"{spec.resize}-{spec.image_size}-{spec.interpolation}",
)
def test_preprocess_gives_the_pixels_of_timm(photo, size, spec):
    image = photo(*size)
    apart = np.abs(levels(preprocess(image, spec), spec) - levels(reference(image, spec), spec))
    assert apart.max() <= 2.01
    assert apart.mean() <= 0.03


def test_preprocess_is_exact_where_nothing_is_resized(photo):
    image, spec = photo(224, 224), PreprocessSpec(crop_pct=1.0)
    np.testing.assert_allclose(preprocess(image, spec), reference(image, spec), atol=1e-6)


def test_real_photos_agree_with_timm(data_dir):
    spec = PreprocessSpec()
    for path in sorted((data_dir / "in1k_samples" / "images").iterdir())[:12]:
        image = read_image(path)
        apart = np.abs(levels(preprocess(image, spec), spec) - levels(reference(image, spec), spec))
        assert apart.max() <= 2.01, path.name


def test_one_channel_means_grey(photo):
    spec = PreprocessSpec(image_size=(20, 30), mean=(0.5,), std=(0.25,))
    x_CHW = preprocess(photo(), spec)
    assert x_CHW.shape == (1, 20, 30)
    grey = PreprocessSpec(image_size=(20, 30), mean=(0.5,) * 3, std=(0.25,) * 3)
    np.testing.assert_array_equal(x_CHW[0], preprocess(photo().convert("L").convert("RGB"), grey)[1])


def test_other_channel_counts_are_refused(photo):
    with pytest.raises(
        ImageError, match=r"expected an array of 2 bands, a \.npy file, got a picture of colours"
    ):
        preprocess(photo(), PreprocessSpec(mean=(0.5,) * 2, std=(0.5,) * 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 2_000_000), (2_000_000, 1), (3, 4000)])
def test_odd_shapes_give_finite_tensors(size):
    x_CHW = preprocess(Image.new("RGB", size, (255, 0, 0)), PreprocessSpec(image_size=(32, 32)))
    assert x_CHW.shape == (3, 32, 32)
    assert x_CHW.dtype == np.float32
    assert np.ptp(x_CHW, axis=(1, 2)).max() < 1e-6


def test_resized_size_follows_timm():
    assert resized_size((375, 500), PreprocessSpec()) == (256, 341)
    assert resized_size((500, 375), PreprocessSpec()) == (341, 256)
    assert resized_size((480, 640), PreprocessSpec(image_size=(192, 320), crop_pct=1.0)) == (240, 320)
    assert resized_size((480, 640), PreprocessSpec(resize="squash")) == (224, 224)


def test_a_large_jpeg_decoded_small_stays_within_the_stated_tolerance(photo, encode):
    smooth = photo(600, 450).resize((1200, 900), Image.BICUBIC)
    spec = PreprocessSpec(image_size=(160, 160))
    data = encode(smooth, quality=90)
    apart = levels(load_tensor(data, spec), spec) - levels(preprocess(read_image(data), spec), spec)
    assert 0 < np.abs(apart).mean() < 1


def test_real_photos_decoded_small_stay_within_the_stated_tolerance(data_dir):
    spec = PreprocessSpec(image_size=(48, 48))
    means = []
    for path in sorted((data_dir / "in1k_samples" / "images").iterdir())[:40]:
        small, full = load_tensor(path, spec), preprocess(read_image(path), spec)
        means.append(np.abs(levels(small - full, dataclasses.replace(spec, mean=(0,) * 3))).mean())
    assert 0 < np.mean(means) < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_decoded_small_is_upright(photo, encode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(400, 250).resize((800, 500)), exif=exif, quality=95)
    spec = PreprocessSpec(image_size=(60, 90))
    apart = load_tensor(data, spec) - preprocess(read_image(data), spec)
    assert np.abs(levels(apart, dataclasses.replace(spec, mean=(0,) * 3))).mean() < 2


def test_min_size_picks_the_smallest_sufficient_fraction(photo, encode):
    data = encode(photo(800, 600))
    assert read_image(data, min_size=(75, 100)).size == (100, 75)
    assert read_image(data, min_size=(76, 100)).size == (200, 150)
    assert read_image(data, min_size=(301, 10)).size == (800, 600)
    assert read_image(encode(photo(800, 600), "PNG"), min_size=(10, 10)).size == (800, 600)


def test_small_jpegs_are_decoded_in_full(photo, encode):
    data, spec = encode(photo(320, 240)), PreprocessSpec()
    np.testing.assert_array_equal(load_tensor(data, spec), preprocess(read_image(data), spec))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_the_fast_decoder_gives_pillows_pixels(photo, encode, monkeypatch, mode, options):
    data = encode(photo(203, 151).convert(mode), **({} if mode == "L" else options))
    assert decode._simplejpeg() is not None
    fast = np.asarray(read_image(data)).astype(int)
    monkeypatch.setattr(decode, "_simplejpeg", lambda: None)
    np.testing.assert_allclose(fast, np.asarray(read_image(data)), atol=1)


def test_without_the_fast_decoder_pillow_does_it(photo, encode, monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    decode._simplejpeg.cache_clear()
    try:
        assert decode._simplejpeg() is None
        assert read_image(encode(photo())).size == (64, 48)
    finally:
        decode._simplejpeg.cache_clear()


def test_to_rgb_takes_arrays_and_opened_pictures(photo):
    image = photo()
    np.testing.assert_array_equal(np.asarray(imaging.to_rgb(np.asarray(image))), np.asarray(image))
    grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(np.asarray(imaging.to_rgb(grey))[..., 2], grey)
    assert imaging.to_rgb(image.convert("CMYK")).mode == "RGB"


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)]
)
def test_to_rgb_refuses_other_arrays(array):
    with pytest.raises(ImageError, match="expected an array"):
        imaging.to_rgb(array)
