"""Objects and maps come back in pixels of the picture, however it was resized."""

from __future__ import annotations

import dataclasses
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from vitesse.errors import ConfigError, EngineError, ImageError
from vitesse.results import Detection, Detections, SemanticMap, regions
from vitesse.runtime.gallery import Gallery, draw
from vitesse.runtime.imaging import place, preprocess, resized_size
from vitesse.runtime.overlay import blend, palette
from vitesse.runtime.postprocess import found_objects, in_picture
from vitesse.runtime.predictor import Predictor
from vitesse.spec import Manifest, ModelSpec, PreprocessSpec

NAMES = ("ground", "square")
SIDES = st.integers(1, 3000)


def spec(resize, size=(96, 128)):
    return PreprocessSpec(image_size=size, resize=resize, mean=(0, 0, 0), std=(1, 1, 1))


def task_artefact(artefact, task, resize):
    model = ModelSpec(name="finder", image_size=(96, 128), num_classes=2)
    manifest = Manifest(model=model, class_names=NAMES, preprocess=spec(resize), task=task)
    return dataclasses.replace(artefact, manifest=manifest, input_shape=(None, 3, 96, 128))


class Finder:
    """Sees what is bright: as a box with the score of its brightness, or as the second class."""

    name = "finder"

    def __init__(self, task):
        self.task = task

    def run(self, batch_BCHW):
        bright_BHW = batch_BCHW.mean(1) > 0.5
        if self.task == "segment":
            return (bright_BHW.astype(np.int64),)
        rows = []
        for bright_HW in bright_BHW:
            y, x = np.nonzero(bright_HW)
            rows.append(
                [[0, 0, 0, 0], [x.min(), y.min(), x.max() + 1, y.max() + 1]] if y.size else [[0] * 4] * 2
            )
        boxes_BN4 = np.array(rows, np.float32)
        scores_BN = np.array([[0.3, 0.9] if bright.any() else [0, 0] for bright in bright_BHW], np.float32)
        return boxes_BN4, scores_BN, np.ones(scores_BN.shape, np.int64)


def picture(height=300, width=500, box=(120, 60, 360, 210)):
    """Black with a white rectangle: left, top, right, bottom."""
    pixels = np.zeros((height, width, 3), np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = 255
    return pixels


def predictor(tiny_artefact, task, resize="fit", **options):
    return Predictor(task_artefact(tiny_artefact, task, resize), engine=Finder(task), **options)


@pytest.mark.parametrize("resize", ["fit", "squash", "short"])
@pytest.mark.parametrize("size", [(300, 500), (700, 240), (96, 128), (60, 70)])
def test_boxes_are_found_where_they_are_painted(tiny_artefact, resize, size):
    box = np.array([0.2, 0.3, 0.7, 0.8]) * (size[1], size[0], size[1], size[0])
    pixels = picture(*size, box.astype(int))
    (record,) = predictor(tiny_artefact, "detect", resize).predict([pixels])
    assert isinstance(record, Detections)
    assert record.size == size
    (found,) = record.predictions  # the box of no area is no object
    assert (found.label, found.score) == ("square", pytest.approx(0.9))
    left, top, width, height = found.bbox
    corners = left, top, left + width, top + height
    pixel = max(size[0] / 96, size[1] / 128, 1)  # of the input
    np.testing.assert_allclose(corners, box.astype(int), atol=1.1 * pixel)


@pytest.mark.parametrize("resize", ["fit", "squash", "short"])
@pytest.mark.parametrize("size", [(300, 500), (700, 240), (96, 128), (60, 70)])
def test_maps_are_those_of_the_picture(tiny_artefact, resize, size):
    box = (int(0.2 * size[1]), int(0.3 * size[0]), int(0.7 * size[1]), int(0.8 * size[0]))
    pixels = picture(*size, box)
    (record,) = predictor(tiny_artefact, "segment", resize).predict([pixels])
    assert isinstance(record, SemanticMap)
    assert record.classes_HW.dtype == np.uint8
    truth_HW = pixels[..., 0] > 0
    both, either = (record.classes_HW & truth_HW).sum(), (record.classes_HW | truth_HW).sum()
    assert both / either > 0.94
    assert record.predictions[0].label == "ground"


def test_a_low_score_is_asked_for(tiny_artefact):
    pixels = picture()
    assert predictor(tiny_artefact, "detect", min_score=0.95).predict([pixels])[0].predictions == ()
    with pytest.raises(ConfigError, match="min_score: expected 0 to 1, got 2"):
        predictor(tiny_artefact, "detect", min_score=2)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_picture_that_cannot_be_read_refuses_itself_alone(tiny_artefact, task):
    first, second, third = predictor(tiny_artefact, task).predict([picture(), b"no picture", picture()])
    assert first.to_dict()["predictions"] == third.to_dict()["predictions"]
    assert second.error is not None
    assert second.task == task


def test_a_crop_would_lose_objects(tiny_artefact):
    with pytest.raises(
        ConfigError, match="to detect, preprocess must keep the whole picture: squash, fit or short"
    ):
        task_artefact(tiny_artefact, "detect", "crop")


@given(SIDES, SIDES, SIDES, SIDES)
def test_a_fitted_picture_fills_one_side_and_keeps_its_shape(height, width, out_h, out_w):
    fitted_h, fitted_w = resized_size((height, width), spec("fit", (out_h, out_w)))
    assert 1 <= fitted_h <= out_h
    assert 1 <= fitted_w <= out_w
    assert fitted_h == out_h or fitted_w == out_w
    scale = min(out_h / height, out_w / width)
    assert abs(fitted_h - max(1, height * scale)) <= 0.5 + 1e-6
    assert abs(fitted_w - max(1, width * scale)) <= 0.5 + 1e-6


@given(SIDES, SIDES, st.integers(1, 20))
def test_a_picture_by_its_shorter_side_follows_ade20ks_evaluation(height, width, thirty_twos):
    """Shorter side as told, the longer up to the next multiple of 32, as its released evaluation has it."""
    shorter = 32 * thirty_twos
    settings = spec("short", (shorter, shorter + 64))
    if max(height, width) > 16 * min(height, width):
        with pytest.raises(ImageError, match=r"expected sides of at most 16:1, got .* cut it up"):
            resized_size((height, width), settings)
        return
    found = resized_size((height, width), settings)
    exact = Fraction(max(height, width) * shorter, min(height, width))
    assert min(found) == shorter
    assert max(found) % 32 == 0
    assert 0 <= max(found) - exact < 32
    assert (found[0] <= found[1]) == (height <= width) or found[0] == found[1]


def test_pictures_of_several_shapes_come_in_one_batch(tiny_artefact):
    """Inputs of several sizes cannot be one batch; the results are those of each picture alone, in order."""
    sizes = [(300, 500), (300, 500), (500, 300), (96, 100), (300, 500)]
    pictures = [picture(*size, (10, 20, 60, 70)) for size in sizes]
    many = predictor(tiny_artefact, "segment", "short").predict(pictures)
    alone = [predictor(tiny_artefact, "segment", "short").predict([one])[0] for one in pictures]
    for first, second, size in zip(many, alone, sizes, strict=True):
        assert first.size == size
        np.testing.assert_array_equal(first.classes_HW, second.classes_HW)


def test_the_room_beside_a_fitted_picture_is_the_mean(photo):
    settings = PreprocessSpec(image_size=(64, 96), resize="fit")
    image = photo(40, 80)  # twice as high as wide
    x_CHW = preprocess(image, settings)
    assert x_CHW.shape == (3, 64, 96)
    assert (x_CHW[:, :, 32:] == 0).all()
    whole = preprocess(image, dataclasses.replace(settings, resize="squash", image_size=(64, 32)))
    np.testing.assert_array_equal(x_CHW[:, :, :32], whole)


@given(st.tuples(SIDES, SIDES), st.sampled_from(["fit", "squash", "crop", "short"]), st.data())
def test_a_box_of_the_input_comes_back_to_the_picture(size, resize, data):
    assume(resize != "short" or max(size) <= 16 * min(size))
    placement = place(size, spec(resize))
    point = [data.draw(st.floats(0, side)) for side in size]
    on_input = [
        y * resized / full - offset
        for y, resized, full, offset in zip(point, placement.resized, size, placement.offset, strict=True)
    ]
    box = np.array([[*on_input[::-1], *on_input[::-1]]])
    np.testing.assert_allclose(
        placement.box_in_picture(box)[0], [*point[::-1], *point[::-1]], atol=1e-6 * max(size)
    )


def test_labels_of_no_class_are_refused():
    placement = place((96, 128), spec("fit"))
    box, score, label = np.array([[0, 0, 9, 9]]), np.array([0.5]), np.array([2])
    with pytest.raises(EngineError, match="expected labels of 0 to 1, got 2"):
        found_objects(box, score, label, placement, NAMES, 0.1)
    with pytest.raises(EngineError, match="expected classes of 0 to 1, got 0 to 7"):
        in_picture(np.array([[0, 7]]), place((1, 2), spec("fit", (1, 2))), 2)


def test_ten_thousand_objects_are_kept():
    placement = place((96, 128), spec("fit"))
    boxes_N4 = np.tile([[3.0, 4, 9, 9]], (10_000, 1))
    scores_N = np.random.default_rng(0).random(10_000).astype(np.float32)
    found = found_objects(boxes_N4, scores_N, np.zeros(10_000, np.int64), placement, NAMES, 0.5)
    assert len(found) == (scores_N >= 0.5).sum()
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_colours_stay_the_same_and_apart():
    assert palette(3) == palette(20)[:3]
    near = [
        sum(abs(a - b) for a, b in zip(x, y, strict=True))
        for x, y in zip(palette(19), palette(20)[1:], strict=True)
    ]
    assert min(near) > 80
    assert len(set(palette(150))) == 150


def test_a_mask_shines_through():
    image = Image.new("RGB", (4, 2), (100, 100, 100))
    mask_HW = np.array([[True, False, False, False], [False] * 4])
    tinted = np.asarray(blend(image, mask_HW, (200, 0, 0)))
    assert (tinted[~mask_HW] == 100).all()
    assert tinted[0, 0, 0] > 140
    assert tinted[0, 0, 1] < 60


def test_labels_do_not_cover_each_other_and_are_small_where_boxes_are():
    def drawn(*boxes):
        found = [
            Detection(label="a name", index=index, score=0.9 - index / 10, bbox=box)
            for index, box in enumerate(boxes)
        ]
        result = Detections(source="a", model="m", size=(480, 640), predictions=tuple(found))
        return np.asarray(draw(Image.new("RGB", (640, 480)), result)).astype(int)

    def above(pixels, box, colour):
        """Rows that a label takes above a box, at its left edge."""
        x, y = map(int, box[:2])
        return (np.abs(pixels[: y - 2, x + 1] - palette(3)[colour]).sum(1) < 12).sum()

    surest, beside, apart = (100.0, 100.0, 90.0, 90.0), (120.0, 104.0, 90.0, 90.0), (400.0, 300.0, 90.0, 90.0)
    pixels = drawn(surest, beside, apart)
    assert above(pixels, surest, 0) == above(pixels, apart, 2) > 12
    assert (pixels[80:97, 102:140] == drawn(surest)[80:97, 102:140]).all()
    is_beside_HW = np.abs(pixels - palette(2)[1]).sum(2) < 12
    assert not is_beside_HW[:103].any(), "its label would lie on another"
    assert is_beside_HW[193, 125:205].all(), "its box is there"
    small = [(*corner, 25.0, 25.0) for corner in (surest[:2], apart[:2])]
    assert 8 <= above(drawn(*small), small[0], 0) <= 12


def test_a_map_is_coloured_at_the_size_that_it_is_drawn_in():
    classes_HW = np.zeros((2000, 3000), np.uint8)
    classes_HW[:1000] = 1
    result = SemanticMap(source="a", model="m", classes_HW=classes_HW, predictions=regions(classes_HW, NAMES))
    image = Image.new("RGB", (3000, 2000))
    tracemalloc.start()
    try:
        draw(image, result)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * classes_HW.size  # a colour for each of its pixels takes three times its size


def test_boxes_and_maps_are_drawn_and_kept(tiny_artefact, tmp_path, photo):
    pixels = picture()
    image = Image.fromarray(pixels)
    objects = predictor(tiny_artefact, "detect").predict([pixels])[0]
    drawn = np.asarray(draw(image, objects)).astype(int)
    edge = drawn[60:210, 121]  # the left edge of the rectangle
    assert (np.abs(edge - palette(2)[1]).sum(1) < 12).mean() > 0.9
    classes_HW = (pixels[..., 0] > 0).astype(np.uint8)
    result = SemanticMap(
        source="road.jpg", model="m", classes_HW=classes_HW, predictions=regions(classes_HW, NAMES)
    )
    path = Gallery(tmp_path).add(image, result)
    assert path.name == "road.labels.jpg"
    with Image.open(tmp_path / "road.classes.png") as kept, Image.open(path) as coloured:
        assert (np.asarray(kept) == classes_HW).all()
        assert coloured.height > image.height  # the legend
