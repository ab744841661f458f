"""Pictures of any number of bands: the same rules as pictures of colours, and what is refused."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from vitesse.errors import ImageError
from vitesse.runtime.artefact import read_artefact
from vitesse.runtime.bands import read_bands
from vitesse.runtime.decode import ImageLimits
from vitesse.runtime.imaging import (
    load_tensor,
    preprocess,
    preprocess_array,
    preprocess_bands,
    read_for_display,
)
from vitesse.runtime.predictor import Predictor
from vitesse.spec import PreprocessSpec


def spec_of(num_bands, **changes):
    mean, std = (tuple(np.linspace(a, b, num_bands).tolist()) for a, b in ((0.1, 0.6), (0.2, 0.4)))
    return PreprocessSpec(**{"image_size": (24, 32), "mean": mean, "std": std, **changes})


def bands_of(height, width, num_bands, seed=0, dtype=np.uint8):
    generator = np.random.default_rng(seed)
    return generator.integers(0, np.iinfo(dtype).max, (height, width, num_bands), dtype, endpoint=True)


def as_file(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("size", [(40, 60), (61, 33), (24, 32), (9, 200)])
def test_three_bands_are_the_picture_of_their_colours(photo, resize, size):
    """The path of colours resamples whole levels, this one floats."""
    image = photo(*size)
    spec = spec_of(3, resize=resize)
    found, expected = preprocess_bands(np.asarray(image), spec), preprocess(image, spec)
    levels = np.abs(found - expected) * np.asarray(spec.std, np.float32)[:, None, None] * 255
    assert levels.mean() <= 0.5
    assert np.quantile(levels, 0.99) <= 2


@settings(max_examples=30, deadline=None)
@given(
    num_bands=st.integers(1, 20),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    seed=st.integers(0, 10**6),
)
def test_each_band_is_treated_alone(num_bands, height, width, seed):
    bands_HWC = bands_of(height, width, num_bands, seed)
    spec = spec_of(num_bands)
    x_CHW = preprocess_bands(bands_HWC, spec)
    assert x_CHW.shape == (num_bands, *spec.image_size)
    assert x_CHW.dtype == np.float32
    for band in range(num_bands):
        alone = PreprocessSpec(image_size=(24, 32), mean=(spec.mean[band],), std=(spec.std[band],))
        assert np.array_equal(preprocess_bands(bands_HWC[:, :, band : band + 1], alone)[0], x_CHW[band])


@pytest.mark.parametrize("dtype", [np.uint16, np.float16, np.float32, np.float64])
def test_whole_numbers_are_scaled_and_floats_are_not(dtype):
    constant = np.full((30, 40, 2), 0.25, np.float64)
    bands_HWC = (constant * 65535).astype(dtype) if dtype is np.uint16 else constant.astype(dtype)
    spec = PreprocessSpec(image_size=(24, 32), mean=(0.25, 0.0), std=(1.0, 0.5))
    x_CHW = preprocess_bands(bands_HWC, spec)
    assert np.allclose(x_CHW[0], 0, atol=1e-4)
    assert np.allclose(x_CHW[1], 0.5, atol=1e-4)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_gives_the_array(tmp_path, version, order):
    bands_HWC = np.asarray(bands_of(20, 30, 5, dtype=np.uint16), order=order)
    path = tmp_path / "scene.npy"
    with path.open("wb") as file:
        npy.write_array(file, bands_HWC, version=version)
    assert np.array_equal(load_tensor(path, spec_of(5)), preprocess_bands(bands_HWC, spec_of(5)))


def test_files_that_are_no_array_are_refused():
    whole = as_file(bands_of(8, 8, 2))
    objects = as_file(np.asarray([{}], dtype=object), allow_pickle=True)
    huge = io.BytesIO()
    npy.write_array_header_1_0(huge, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**9)})
    for data, told in [
        (whole[:-1], r"expected 128 bytes of \(8, 8, 2\) uint8, the file holds 127: it is cut or damaged"),
        (whole + b"x", "it is cut or damaged"),
        (whole[:40], "a whole .npy file, its header cannot be read"),
        (whole[:6] + b"\x09\x00" + whole[8:], "its header cannot be read"),
        (objects, "an array of numbers, got object"),
        (as_file(np.zeros(3, "V0")), "an array of numbers, got"),
        (huge.getvalue(), "it is cut or damaged"),
    ]:
        with pytest.raises(ImageError, match=told):
            read_bands(data)


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(6, 300), noise=st.binary(max_size=40))
def test_damage_is_an_image_error_or_an_array(cut, noise):
    data = as_file(bands_of(4, 4, 3))
    damaged = data[:cut] + noise + data[cut + len(noise) :]
    with contextlib.suppress(ImageError):
        assert read_bands(damaged).nbytes <= len(damaged)


def test_arrays_that_do_not_fit_are_refused():
    spoilt = np.zeros((6, 7, 4), np.float32)
    spoilt[2, 3, 1], spoilt[5, 0, 0] = np.nan, np.inf
    for bands_HWC, told in [
        (bands_of(6, 7, 3), r"expected an array \(height, width, 4 bands\), got \(6, 7, 3\)"),
        (bands_of(6, 7, 4)[0], r"got \(7, 4\)"),
        (np.zeros((0, 7, 4), np.float32), r"got \(0, 7, 4\)"),
        (np.full((6, 7, 4), 1e300), "expected values that are finite in float32, 168 are not"),
        (bands_of(6, 7, 4).astype(np.int32), "expected bands of uint8, uint16 or floats, got int32"),
        (spoilt, "2 are not, the first at row 2, column 3, band 1"),
        (bands_of(30, 40, 4), "pixels"),
    ]:
        with pytest.raises(ImageError, match=told):
            preprocess_bands(bands_HWC, spec_of(4), ImageLimits(max_pixels=1000))


@pytest.mark.parametrize("dtype", ["u1", ">u2", "<u2", "f2", ">f4", "f8"])
@pytest.mark.parametrize(
    ("shape", "num_bands"), [((9, 8), 1), ((9, 8, 1), 1), ((9, 8, 3), 3), ((9, 8, 5), 5)]
)
def test_a_file_is_the_same_as_its_array(dtype, shape, num_bands):
    array = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    from_file = load_tensor(as_file(array), spec_of(num_bands))
    assert np.array_equal(from_file, preprocess_array(array, spec_of(num_bands)))


def test_bytes_of_colours_are_a_picture(photo):
    colours_HWC = np.asarray(photo(40, 30))
    spec = PreprocessSpec(image_size=(24, 32))
    assert np.array_equal(preprocess_array(colours_HWC, spec), preprocess(photo(40, 30), spec))


def test_the_predictor_takes_arrays_and_files_and_goes_on(make_artefact, tmp_path):
    bands_HWC = bands_of(40, 50, 3)
    path = tmp_path / "three.npy"
    np.save(path, bands_HWC)
    (tmp_path / "bad.npy").write_bytes(path.read_bytes()[:-5])
    predictor = Predictor(read_artefact(make_artefact()), engine="onnxruntime")
    from_file, damaged, from_array = predictor.predict([path, tmp_path / "bad.npy", bands_HWC])
    assert damaged.error is not None
    assert "cut or damaged" in damaged.error
    assert from_file.predictions == from_array.predictions != ()


def test_bands_can_be_looked_at(photo):
    low, high = bands_of(20, 30, 9) // 4, bands_of(20, 30, 9)
    for bands_HWC in (low, high, low.astype(np.float32)):
        picture = read_for_display(as_file(bands_HWC))
        assert (picture.mode, picture.size) == ("RGB", (30, 20))
        assert np.asarray(picture).std() > 50, "each band is stretched to its own range"
    assert np.array_equal(np.asarray(read_for_display(as_file(np.asarray(photo(8, 9))))), photo(8, 9))
