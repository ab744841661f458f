"""Large pictures by windows: nothing is lost, nothing comes twice, and memory stays small."""

from __future__ import annotations

import dataclasses
import itertools
import re
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

from vitesse.errors import ConfigError, EngineError
from vitesse.metrics.dense import count_maps, find_boxes, recorded_boxes, recorded_maps
from vitesse.metrics.run import Showing
from vitesse.results import Detection
from vitesse.runtime.decode import TILED_LIMITS, ImageLimits
from vitesse.runtime.imaging import place, preprocess
from vitesse.runtime.merging import COARSE, PARTIAL, SAME, ObjectMerge, Sighting, merged
from vitesse.runtime.postprocess import in_picture
from vitesse.runtime.predictor import Predictor
from vitesse.runtime.sliding import MapMerge, cell_size
from vitesse.runtime.windows import Tiling, Window
from vitesse.spec import Manifest, ModelSpec, PreprocessSpec

NAMES = ("dim", "bright", "other")
SIDES, TILES = st.integers(1, 300), st.integers(16, 200)


def artefact_for(artefact, task, side=64, resize="fit", names=NAMES):
    size = (side, side) if isinstance(side, int) else side
    spec = PreprocessSpec(image_size=size, resize=resize, mean=(0, 0, 0), std=(1, 1, 1))
    model = ModelSpec(name="finder", image_size=size, num_classes=len(names))
    manifest = Manifest(model=model, class_names=names, preprocess=spec, task=task)
    return dataclasses.replace(artefact, manifest=manifest, input_shape=(None, 3, *size))


class SquareFinder:
    """Finds every bright blob of five pixels or more a side, `bright` or, if it is red, `dim`.

    The score is its brightness. It fails where there is green alone.
    """

    name = "finder"

    def __init__(self):
        self.shown = 0

    def run(self, batch_BCHW):
        self.shown += len(batch_BCHW)
        found = [list(self.objects(x_CHW)) for x_CHW in batch_BCHW]
        most = max(1, *map(len, found))
        rows = [sorted(row, key=lambda one: -one[4]) + [(0,) * 6] * (most - len(row)) for row in found]
        table = np.array(rows, np.float32)
        return table[..., :4], table[..., 4], table[..., 5].astype(np.int64)

    def objects(self, x_CHW):
        if ((x_CHW[1] > 0.9) & (x_CHW[0] < 0.1)).any():
            raise EngineError("saw green")
        labelled, _ = ndimage.label(x_CHW[0] > 0.3)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labelled), 1):
            if min(rows.stop - rows.start, columns.stop - columns.start) > 4:
                inside = labelled[rows, columns] == number
                score = float(x_CHW[0, rows, columns][inside].max())
                is_white = x_CHW[1, rows, columns][inside].max() > 0.3
                yield columns.start, rows.start, columns.stop, rows.stop, score, int(is_white)


class MaskedFinder(SquareFinder):
    """Says of every blob that its box is full."""

    def run(self, batch_BCHW):
        boxes_BN4, scores_BN, labels_BN = super().run(batch_BCHW)
        return boxes_BN4, scores_BN, labels_BN, np.ones((*scores_BN.shape, 28, 28), np.float32)


class Blurry:
    """Logits at an eighth of the input: mean colours, and a share of the mean of all that is shown."""

    name = "blurry"

    def run(self, batch_BCHW):
        x = torch.from_numpy(batch_BCHW)
        logits = F.avg_pool2d(x, 8) + 0.3 * x.mean((2, 3), keepdim=True)
        return enlarged(logits, x.shape[2:]).argmax(1).to(torch.int32).numpy(), logits.numpy()


def enlarged(logits, size):
    return F.interpolate(logits, size=size, mode="bicubic", align_corners=False)


def finder(tiny_artefact, tile=64, side=64, **options):
    return Predictor(artefact_for(tiny_artefact, "detect", side), engine=SquareFinder(), tile=tile, **options)


def painted(size, boxes, colour=(255, 255, 255)):
    pixels = np.zeros((*size, 3), np.uint8)
    for left, top, width, height in boxes:
        pixels[top : top + height, left : left + width] = colour
    return pixels


# Windows


@given(SIDES, SIDES, TILES, TILES, st.floats(0, 0.9))
@settings(deadline=None)
def test_windows_cover_the_picture_and_overlap(height, width, tile_h, tile_w, overlap):
    tiling = Tiling((tile_h, tile_w), overlap)
    windows = tiling.windows((height, width))
    assert tiling.cuts((height, width)) == (len(windows) > 1)
    tops, lefts = (sorted({window[axis] for window in windows}) for axis in (0, 1))
    assert [(w.top, w.left) for w in windows] == list(itertools.product(tops, lefts))
    assert {w.size for w in windows} == {(min(height, tile_h), min(width, tile_w))}
    for starts, side, tile in ((tops, height, tile_h), (lefts, width, tile_w)):
        shown = min(side, tile)
        assert starts[0] == 0
        assert starts[-1] + shown == side
        steps = np.diff(starts)
        assert (steps <= tile - overlap * tile).all()
        assert len(steps) == 0 or steps.max() - steps.min() <= 1
        fewer = len(starts) - 1  # as few as possible
        assert fewer == 0 or tile + (fewer - 1) * (tile - int(np.ceil(overlap * tile))) < side


@given(SIDES, SIDES, TILES, st.floats(0, 0.8), st.data())
@settings(deadline=None)
def test_what_is_no_larger_than_the_overlap_is_whole_somewhere(height, width, tile, overlap, data):
    tiling = Tiling((tile, tile), overlap)
    sides = [min(side, shared) for side, shared in zip((height, width), tiling.shared, strict=True)]
    corner = [data.draw(st.integers(0, side - own)) for side, own in zip((height, width), sides, strict=True)]
    thing = Window(*corner, *sides)
    assert any(thing.is_inside(window) for window in tiling.windows((height, width)))


def test_a_window_of_a_picture_is_that_of_its_array(photo):
    image = photo(90, 70)
    window = Window(10, 20, 30, 40)
    np.testing.assert_array_equal(np.asarray(window.cut_from(image)), window.cut_from(np.asarray(image)))
    whole = Window(0, 0, 70, 90)
    assert whole.cut_from(image) is image


# Objects


def sightings():
    corner, side = st.integers(0, 60), st.integers(1, 40)
    box = st.tuples(corner, corner, side, side).map(lambda box: tuple(map(float, box)))
    found = st.builds(
        lambda index, score, box: Detection(label=NAMES[index], index=index, score=score, bbox=box),
        st.integers(0, 1),
        st.floats(0.01, 1),
        box,
    )
    return st.lists(
        st.builds(Sighting, found, st.integers(0, 3), st.sampled_from([1, COARSE, PARTIAL])),
        max_size=25,
        unique=True,
    )


def shows_the_same(greater, lesser):
    """By hand, for two sightings."""
    if greater.detection.index != lesser.detection.index or greater.view == lesser.view:
        return False
    (x, y, w, h), (other_x, other_y, other_w, other_h) = greater.detection.bbox, lesser.detection.bbox
    across = min(x + w, other_x + other_w) - max(x, other_x)
    down = min(y + h, other_y + other_h) - max(y, other_y)
    common = max(0, across) * max(0, down)
    if common > SAME * (w * h + other_w * other_h - common):
        return True
    return lesser.trust == PARTIAL and common > SAME * min(w * h, other_w * other_h)


@given(sightings(), st.randoms())
@settings(deadline=None)
def test_merging_is_greedy_suppression_in_any_order(seen, shuffler):
    kept = []
    for one in sorted(seen, key=lambda s: (-s.weight, -s.detection.score, s.detection.bbox, s.view)):
        if not any(shows_the_same(other, one) for other in kept):
            kept.append(one)
    result = merged(seen)
    assert sorted(result, key=repr) == sorted((one.detection for one in kept), key=repr)
    assert [one.score for one in result] == sorted((one.score for one in result), reverse=True)
    shuffler.shuffle(seen)
    assert sorted(merged(seen), key=repr) == sorted(result, key=repr)
    assert sorted(merged(kept), key=repr) == sorted(result, key=repr)


def test_far_apart_and_side_by_side_in_one_view_stay():
    def at(left, view, index=1, trust=1.0, score=0.5):
        found = Detection(label="x", index=index, score=score, bbox=(left, 0.0, 10.0, 10.0))
        return Sighting(found, view, trust)

    assert len(merged([at(20.0 * n, n % 3, trust=PARTIAL if n % 2 else 1) for n in range(50)])) == 50
    assert len(merged([at(1.0 * n, 0) for n in range(5)])) == 5
    assert len(merged([at(0.0, 0), at(0.0, 1, index=0)])) == 2
    part = at(4.0, 1, trust=PARTIAL, score=0.9)
    assert merged([part, at(0.0, 0)]) == (at(0.0, 0).detection,)
    junk = at(0.0, 0, score=0.9 * PARTIAL - 0.01)
    assert set(merged([part, junk])) == {part.detection, junk.detection}
    assert merged([]) == ()


@given(st.tuples(st.integers(40, 230), st.integers(65, 260)), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_every_square_is_found_once_at_its_place(tiny_artefact, size, seed):
    rng, pitch = np.random.default_rng(seed), 40
    corners = itertools.product(*(range(0, side - pitch, pitch) for side in size))
    boxes = [  # smaller than what neighbouring windows share
        (left + rng.integers(21), top + rng.integers(21), *rng.integers(6, 14, 2)) for top, left in corners
    ]
    (record,) = finder(tiny_artefact, overlap=0.25).predict([painted(size, boxes)])
    assert record.size == size
    assert sorted(one.bbox for one in record.predictions) == sorted(boxes)
    assert {one.label for one in record.predictions} <= {"bright"}


def test_masks_are_those_of_the_whole_picture(tiny_artefact):
    boxes = [
        (3, 4, 12, 10),
        (58, 50, 11, 14),
        (120, 61, 14, 12),
        (20, 130, 90, 40),
    ]  # the last: several tiles
    predictor = Predictor(artefact_for(tiny_artefact, "detect"), engine=MaskedFinder(), tile=64, overlap=0.25)
    (record,) = predictor.predict([painted((200, 180), boxes)])
    assert len(record.predictions) == len(boxes)
    for found in record.predictions:
        mask_HW, box_HW = found.mask(), painted((200, 180), [map(round, found.bbox)])[..., 0] > 0
        assert mask_HW.shape == (200, 180)
        assert (mask_HW & box_HW).sum() > 0.95 * (mask_HW | box_HW).sum()


def test_squares_on_every_seam_are_found_once(tiny_artefact):
    size, tiling = (200, 220), Tiling((64, 64), 0.25)
    sides = {
        side for w in tiling.windows(size) for side in ((w.top, 0), (w.bottom, 0), (w.left, 1), (w.right, 1))
    }
    inner = [(at, axis) for at, axis in sorted(sides) if 0 < at < size[axis]]
    assert len(inner) >= 10
    for at, axis in inner:
        for before in (0, 5, 9):
            box = (100, at - before, 12, 10) if axis == 0 else (at - before, 100, 10, 12)
            (record,) = finder(tiny_artefact, overlap=0.25).predict([painted(size, [box])])
            assert [one.bbox for one in record.predictions] == [box]


def test_what_is_larger_than_a_tile_is_found_whole_and_in_no_pieces(tiny_artefact):
    boxes = [(30, 40, 150, 120), (230, 200, 14, 12)]
    (record,) = finder(tiny_artefact, overlap=0.25).predict([painted((256, 256), boxes)])
    large, small = sorted(record.predictions, key=lambda one: -one.bbox[2])
    np.testing.assert_allclose(large.bbox, boxes[0], atol=4)  # a pixel of what is shown is four
    assert small.bbox == boxes[1]


def test_ten_thousand_objects(tiny_artefact):
    pixels = np.zeros((1500, 1500, 3), np.uint8)
    for top, left in itertools.product(range(6), range(6)):
        pixels[top::15, left::15] = 255
    (record,) = finder(tiny_artefact, tile=250, side=250, batch_size=4).predict([pixels])
    corners = {(one.bbox[0], one.bbox[1]) for one in record.predictions}
    assert len(record.predictions) == 10_000
    assert corners == set(itertools.product(range(0, 1500, 15), repeat=2))


def test_a_picture_that_is_no_larger_than_a_tile_is_seen_once(tiny_artefact, photo, encode):
    predictor = finder(tiny_artefact, tile=(80, 120))
    predictor.predict([np.zeros((80, 120, 3), np.uint8), photo(120, 80), encode(photo(100, 60))])
    assert predictor.engine.shown == 3
    predictor.predict([np.zeros((80, 121, 3), np.uint8)])
    assert predictor.engine.shown == 3 + 3  # two windows and the whole


@pytest.mark.parametrize("orientation", [1, 6])
def test_every_kind_of_source_gives_the_same(tiny_artefact, encode, tmp_path, orientation):
    boxes = [(20, 30, 10, 12), (120, 60, 14, 9), (57, 100, 12, 12)]
    pixels = painted((130, 200), boxes)
    image = Image.fromarray(np.rot90(pixels) if orientation == 6 else pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.png").write_bytes(encode(image, "PNG", exif=exif))
    np.save(tmp_path / "a.npy", pixels)
    opened = Image.open(tmp_path / "a.png")
    sources = [pixels, tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), opened, tmp_path / "a.npy"]
    records = finder(tiny_artefact, overlap=0.25).predict(sources)
    assert [record.error for record in records] == [None] * len(sources)
    for record in records:
        assert sorted(one.bbox for one in record.predictions) == sorted(boxes)
    assert records[0].source == "input 0"
    assert records[2].source == "input 2"


@pytest.mark.parametrize("streams", [1, 3])
def test_what_fails_spoils_no_other_picture(tiny_artefact, encode, streams):
    boxes = [(20, 30, 10, 12), (120, 60, 14, 9)]
    good = painted((130, 200), boxes)
    poisoned = good.copy()
    poisoned[100:103, 150:153] = poisoned[20:23, 10:13] = (0, 255, 0)
    broken = encode(Image.fromarray(good), "PNG", compress_level=0)[:9000]
    small = painted((64, 64), [(5, 6, 7, 8)])
    wrong = np.zeros((99, 99, 7), np.uint8)
    sources = [good, poisoned, b"no picture", small, broken, wrong, good]
    records = finder(tiny_artefact, batch_size=5, streams=streams).predict(sources)
    assert [record.source for record in records] == [f"input {number}" for number in range(7)]
    assert [record.error is None for record in records] == [True, False, False, True, False, False, True]
    assert records[1].error == "pixels 0,0 to 64,64: saw green"
    assert "cut short" in records[4].error
    assert records[3].predictions[0].bbox == (5, 6, 7, 8)
    assert sorted(one.bbox for one in records[6].predictions) == sorted(boxes)


def test_a_picture_whose_windows_the_model_refuses_spoils_no_other(tiny_artefact):
    predictor = Predictor(
        artefact_for(tiny_artefact, "segment", (64, 64), "short"),
        engine=Blurry(),
        tile=(64, 640),
        batch_size=2,
    )
    good, narrow = np.zeros((64, 700, 3), np.uint8), np.zeros((20, 900, 3), np.uint8)
    first, refused, last = predictor.predict([good, narrow, good])
    assert refused.error.startswith("expected sides of at most 16:1, got 640x20 pixels")
    assert first.error is last.error is None


def test_pictures_are_not_read_far_ahead(tiny_artefact):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield painted((130, 200), [])

    records = finder(tiny_artefact, batch_size=2).stream(endless())
    for number in range(1, 6):
        next(records)
        assert read <= number + 2
    records.close()


# Maps


def whole_map(engine, pixels, spec):
    classes_BHW, _ = engine.run(preprocess(Image.fromarray(pixels), spec)[None])
    return in_picture(classes_BHW[0], place(pixels.shape[:2], spec), len(NAMES))


@pytest.mark.parametrize("resize", ["fit", "squash"])
@pytest.mark.parametrize("size", [(64, 96), (50, 96), (90, 200), (31, 17)])
def test_one_window_is_the_picture_in_one_piece(tiny_artefact, photo, resize, size):
    pixels, engine = np.asarray(photo(size[1], size[0])), Blurry()
    spec = artefact_for(tiny_artefact, "segment", (64, 96), resize).manifest.preprocess
    expected_HW = whole_map(engine, pixels, spec)
    _, logits_BKhw = engine.run(preprocess(Image.fromarray(pixels), spec)[None])
    merge = MapMerge(size, Tiling(size), spec, NAMES)
    merge.add(Window(0, 0, *size), {"logits_Khw": logits_BKhw[0]})
    assert (merge.result()["classes_HW"] == expected_HW).mean() > 0.9995  # but for rounding
    predictor = Predictor(artefact_for(tiny_artefact, "segment", (64, 96), resize), engine=engine, tile=size)
    np.testing.assert_array_equal(predictor.predict([pixels])[0].classes_HW, expected_HW)


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_maps_are_those_of_the_mean_of_all_windows(tiny_artefact, data):
    size = data.draw(st.tuples(st.integers(30, 130), st.integers(30, 130)))
    tile = data.draw(st.tuples(st.integers(32, 90), st.integers(32, 90)))
    overlap = data.draw(st.floats(0, 0.6))
    artefact = artefact_for(tiny_artefact, "segment", (48, 64), data.draw(st.sampled_from(["fit", "squash"])))
    spec, tiling = artefact.manifest.preprocess, Tiling(tile, overlap)
    pixels = np.random.default_rng(0).integers(0, 256, (size[0] // 9 + 1, size[1] // 9 + 1, 3), np.uint8)
    pixels = pixels.repeat(9, 0).repeat(9, 1)[: size[0], : size[1]]
    total_KHW, times_HW = np.zeros((3, *size)), np.zeros(size)
    for window in tiling.windows(size):
        _, logits = Blurry().run(preprocess(Image.fromarray(window.cut_from(pixels)), spec)[None])
        at_input_KHW = enlarged(torch.from_numpy(logits).double(), spec.image_size)[0].numpy()
        placement = place(window.size, spec)
        rows, columns = (
            [min(int((n + 0.5) * shown / full), shown - 1) for n in range(full)]
            for full, shown in zip(placement.full, placement.shown, strict=True)
        )
        part = np.s_[window.top : window.bottom, window.left : window.right]
        total_KHW[(slice(None), *part)] += at_input_KHW[:, rows][:, :, columns]
        times_HW[part] += 1
    mean_KHW = total_KHW / times_HW
    low, high = np.sort(mean_KHW, axis=0)[-2:]
    predictor = Predictor(artefact, engine=Blurry(), tile=tile, overlap=overlap, batch_size=3)
    (record,) = predictor.predict([pixels])
    assert record.classes_HW.dtype == np.uint8
    clear_HW = high - low > 1e-4
    assert clear_HW.mean() > 0.9
    np.testing.assert_array_equal(record.classes_HW[clear_HW], mean_KHW.argmax(0)[clear_HW])
    assert sum(region.share for region in record.predictions) == pytest.approx(1)


@pytest.mark.parametrize(
    ("side", "cells", "factor"), [(96, 12, 8), (100, 13, 8), (33, 5, 8), (64, 64, 1), (64, 4, 16)]
)
def test_a_cell_of_logits_is_a_power_of_two_of_pixels(side, cells, factor):
    assert cell_size((side, side), (cells, cells)) == factor


def test_logits_are_never_held_for_the_whole_picture():
    names, size, tiling = tuple(map(str, range(150))), (480, 640), Tiling((320, 400), 0.1)
    spec = PreprocessSpec(image_size=(128, 128), resize="fit")
    logits_Khw = np.random.default_rng(0).normal(size=(150, 16, 16)).astype(np.float32)
    tracemalloc.start()
    try:
        merge = MapMerge(size, tiling, spec, names)
        for window in tiling.windows(size):
            merge.add(window, {"logits_Khw": logits_Khw})
        result = merge.result()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result["classes_HW"].shape == size
    assert peak < 70e6  # all logits in pixels of the picture are 184 MB


def test_logits_that_do_not_fit_the_classes_are_refused(tiny_artefact):
    class Odd(Blurry):
        def run(self, batch_BCHW):
            classes_BHW, logits_BKhw = super().run(batch_BCHW)
            return (classes_BHW, logits_BKhw[:, :2]) if batch_BCHW.mean() > 0.5 else (classes_BHW,)

    predictor = Predictor(artefact_for(tiny_artefact, "segment"), engine=Odd(), tile=64, batch_size=1)
    bright = np.full((70, 70, 3), 255, np.uint8)
    first, second = predictor.predict([bright, bright // 9])
    assert first.error == "expected logits (3, h, w), got (2, 8, 8)"
    assert "the logits that they were made from" in second.error


# What is refused, and what evaluation makes of it


def test_classifiers_and_impossible_tiles_are_refused(tiny_artefact):
    with pytest.raises(ConfigError, match="tile: expected a detector or segmenter, tiny classifies"):
        Predictor(tiny_artefact, engine=SquareFinder(), tile=64)
    for options, message in (
        ({"tile": 0}, "positive whole numbers of pixels"),
        ({"tile": 99, "overlap": 0.95}, "overlap: expected"),
    ):
        with pytest.raises(ConfigError, match=message):
            finder(tiny_artefact, **options)


def test_a_picture_beyond_the_limits_is_told_of_tiles_where_they_help(tiny_artefact, encode):
    large = encode(Image.new("1", (8000, 6000)), "PNG")
    refusal = "expected at most 40 megapixels, the header says 8000x6000 (48); shrink it or raise max_pixels"
    task = artefact_for(tiny_artefact, "detect")
    (helped,) = Predictor(task, engine=SquareFinder()).predict([large])
    assert helped.error == f"{refusal}, or look at it by tiles (--tile): up to 250 megapixels and 200 MiB"
    assert TILED_LIMITS.max_pixels == 250e6
    (classified,) = Predictor(tiny_artefact, engine="onnxruntime").predict([large])
    assert classified.error == refusal
    own = ImageLimits(max_pixels=50_000)
    (by_tiles,) = finder(tiny_artefact, limits=own).predict([large])
    assert by_tiles.error.endswith("shrink it or raise max_pixels")
    (array,) = finder(tiny_artefact, limits=own).predict([np.zeros((300, 300, 3), np.uint8)])
    assert array.error.startswith("expected at most 0.05 megapixels")
    (huge,) = finder(tiny_artefact).predict([encode(Image.new("1", (20_000, 15_000)), "PNG")])
    assert huge.error.startswith("expected at most 250 megapixels")


class Shown:
    """Pictures in memory, with label maps."""

    class_names, has_masks = NAMES, True

    def __init__(self, pictures, encode):
        self.encoded = [encode(Image.fromarray(pixels), "PNG") for pixels in pictures]
        self.maps = [pixels.argmax(2).astype(np.uint8) for pixels in pictures]

    def __len__(self):
        return len(self.encoded)

    def read(self, index):
        return self.encoded[index]

    def label_map(self, index):
        return self.maps[index]


def test_records_are_scored_as_what_an_engine_gives(tiny_artefact, encode, photo):
    pictures = [np.asarray(photo(60 + 9 * seed, 40 + 5 * seed, seed)) // 2 for seed in range(4)]
    for number, pixels in enumerate(pictures):
        pixels[10:20, 7 : 20 + number] = pixels[25:40, 30:] = 255
    source = Shown(pictures, encode)
    source.encoded[1] = b"broken"
    for task, engine, find, recorded in (
        ("detect", SquareFinder(), find_boxes, recorded_boxes),
        ("detect", MaskedFinder(), find_boxes, recorded_boxes),
        ("segment", Blurry(), count_maps, recorded_maps),
    ):
        artefact = artefact_for(tiny_artefact, task)
        showing = Showing(preprocess=artefact.manifest.preprocess, batch_size=2)
        by_engine = find(engine, source, showing)
        records = Predictor(artefact, engine=engine, min_score=0).predict(source.encoded)
        by_records = recorded(records, source)
        if task == "detect":
            assert by_records.by_picture.keys() == by_engine.by_picture.keys() == {0, 2, 3}
            for ours, theirs in zip(
                by_records.by_picture.values(), by_engine.by_picture.values(), strict=True
            ):
                assert len(ours[0])
                assert ours.masks == theirs.masks
                assert (ours.masks is not None) == isinstance(engine, MaskedFinder)
                for mine, other in zip(ours[:3], theirs[:3], strict=True):
                    np.testing.assert_allclose(mine, other, atol=1e-9)
        else:
            np.testing.assert_array_equal(by_records.confusion_KK, by_engine.confusion_KK)
            assert [one[:2] for one in by_records.worst] == [one[:2] for one in by_engine.worst]


def test_overlap_without_tiles_means_nothing(tiny_artefact):
    with pytest.raises(ConfigError, match="overlap: expected tile beside it"):
        Predictor(artefact_for(tiny_artefact, "detect"), engine=SquareFinder(), overlap=0.3)


def test_a_flood_of_windows_is_that_pictures_error(tiny_artefact):
    predictor = Predictor(
        artefact_for(tiny_artefact, "detect", 64), engine=SquareFinder(), tile=16, overlap=0.9
    )
    flood, small = np.zeros((700, 700, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)
    first, second = predictor.predict([flood, small])
    assert first.error is not None
    assert re.search(
        r"at most 100000 windows, 700x700 pixels would have \d+: take a larger tile", first.error
    )
    assert second.error is None


def test_whatever_goes_wrong_with_a_window_is_that_pictures_error(tiny_artefact, monkeypatch):
    def full(self, window, outcome):
        raise MemoryError

    monkeypatch.setattr(ObjectMerge, "add", full)
    large, small = np.zeros((90, 90, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)
    first, second = finder(tiny_artefact).predict([large, small])
    assert (first.error, second.error) == ("MemoryError: ", None)
