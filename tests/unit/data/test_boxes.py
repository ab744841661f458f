"""Boxes as they are drawn and as they come out: clipped, left out, never lost without a word."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from vitesse.data.boxes import BoxFiles, Drawn
from vitesse.data.dense import Boxes, Fault, Note, picture_size
from vitesse.data.masks import decode_masks, encode_masks
from vitesse.data.subset import part_of
from vitesse.errors import DataError

SIZE = (48, 64)
CLASSES = ("cat", "dog")


def source_of(*objects: Drawn, **options: Any) -> BoxFiles:
    return BoxFiles([Path("a.jpg")], [objects], CLASSES, **{"sizes": [SIZE], **options})


def box(left: float, top: float, right: float, bottom: float, label: int = 0, **more: Any) -> Drawn:
    return Drawn(corners=(left, top, right, bottom), label=label, **more)


@pytest.mark.parametrize(
    ("corners", "clipped"),
    [
        ((-5, 4, 10, 20), (0, 4, 10, 20)),
        ((50, 40, 70, 60), (50, 40, 64, 48)),
        ((-9, -9, 999, 999), (0, 0, 64, 48)),
    ],
)
def test_what_reaches_outside_is_clipped(corners: tuple[float, ...], clipped: tuple[float, ...]) -> None:
    source = source_of(box(*corners), box(1, 1, 5, 5))
    assert source.boxes(0).boxes_N4.tolist() == [list(clipped), [1, 1, 5, 5]]
    assert source.faults(0) == (Fault.OUTSIDE,)


@pytest.mark.parametrize(
    "corners",
    [(3, 3, 3, 9), (3, 3, 9, 3), (9, 3, 3, 9), (70, 3, 80, 9), (-9, 3, 0, 9), (3, 48, 9, 60), (0, 0, 0, 0)],
)
def test_what_has_no_area_in_the_picture_is_left_out(corners: tuple[float, ...]) -> None:
    source = source_of(box(*corners), box(1, 1, 5, 5, label=1))
    assert source.boxes(0).labels_N.tolist() == [1]
    assert source.faults(0) == (Fault.NO_AREA,)


def test_a_class_that_does_not_exist_is_left_out() -> None:
    source = source_of(box(1, 1, 5, 5, label=-1), box(2, 2, 6, 6, label=1))
    assert source.boxes(0).boxes_N4.tolist() == [[2, 2, 6, 6]]
    assert source.faults(0) == (Fault.NO_CLASS,)


def test_a_corner_off_by_rounding_is_no_fault() -> None:
    source = source_of(box(0, 0, 64.0000001, 48), box(-1e-9, 1, 9, 9))
    assert source.faults(0) == ()
    assert source.boxes(0).boxes_N4.max() == 64
    assert source_of(box(0.3, 0, 39_999.7, 9), sizes=[(1000, 40_000)]).faults(0) == ()


def test_a_part_tells_of_its_own_faults_and_all_notes() -> None:
    note = Note(Fault.MALFORMED, "line 3")
    drawn = [[box(1, 1, 5, 5)], [box(-5, 1, 5, 5)]]
    source = BoxFiles([Path("a.jpg"), Path("b.jpg")], drawn, CLASSES, sizes=[SIZE] * 2, notes=[note])
    part = part_of(source, np.array([1]))
    assert part.faults(0) == (Fault.OUTSIDE,)
    assert part.notes == (note,)


def test_a_picture_without_objects_has_empty_columns() -> None:
    boxes = source_of().boxes(0)
    assert (len(boxes), boxes.boxes_N4.shape, boxes.masks) == (0, (0, 4), None)


@given(
    objects=st.lists(
        st.tuples(*[st.floats(-1e6, 1e6) | st.sampled_from([0.0, 48.0, 64.0])] * 4, st.integers(-1, 1)),
        max_size=8,
    )
)
@settings(max_examples=60, deadline=None)
def test_every_object_is_kept_or_named(objects: list[tuple[Any, ...]]) -> None:
    source = source_of(*(box(*corners, label=label) for *corners, label in objects))
    boxes, faults = source.boxes(0), Counter(source.faults(0))
    assert len(boxes) + faults[Fault.NO_AREA] + faults[Fault.NO_CLASS] == len(objects)
    assert (boxes.boxes_N4 >= 0).all()
    assert (boxes.boxes_N4 <= [64, 48, 64, 48]).all()
    assert (boxes.boxes_N4[:, :2] < boxes.boxes_N4[:, 2:]).all()


def test_areas_are_those_written_or_measured() -> None:
    source = source_of(box(0, 0, 10, 10, area=7.5), box(0, 0, 10, 10), box(0, 0, 4, 4, area=0))
    assert source.boxes(0).area_N.tolist() == [7.5, 100, 16]


def test_ten_thousand_objects_are_ten_thousand_objects() -> None:
    rng = np.random.default_rng(0)
    corners_N4 = np.concatenate([low := rng.uniform(0, 40, (10_000, 2)), low + 5], axis=1)
    source = source_of(*(box(*corners) for corners in corners_N4.tolist()))
    assert len(source.boxes(0)) == 10_000


def test_shares_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    """A picture on its side, as its EXIF data says: 30 wide, 20 high as stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    drawn = [[box(0.5, 0.5, 1, 1)]]
    source = BoxFiles([tmp_path / "a.jpg"], drawn, CLASSES, relative=True)
    assert picture_size(source.read(0)) == (30, 20) == source.boxes(0).size
    assert source.boxes(0).boxes_N4.tolist() == [[10, 15, 20, 30]]


TRIANGLE = [4.0, 4, 40, 4, 4, 40]
RUNS = {"size": list(SIZE), "counts": [48 * 8, 48 * 8, 48 * 48]}
"""Columns 8 to 15."""


def pixels(source: BoxFiles) -> np.ndarray:
    boxes = source.boxes(0)
    assert boxes.masks is not None
    return decode_masks(boxes.masks, boxes.size)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_are_filled_as_pycocotools_does() -> None:
    segment = [TRIANGLE, [44.0, 20, 60, 20, 60, 40, 44, 40]]
    source = source_of(box(4, 4, 60, 40, segment=segment))
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segment, *SIZE)))
    np.testing.assert_array_equal(pixels(source)[0], expected)
    assert source.boxes(0).area_N.tolist() == [expected.sum()]


@pytest.mark.parametrize("compressed", [False, True])
def test_run_lengths_are_read_in_both_forms(compressed: bool) -> None:
    segment: dict[str, Any] = RUNS
    if compressed:
        segment = coco_mask.frPyObjects(RUNS, *SIZE)
        segment = {**segment, "counts": segment["counts"].decode()}
    mask_HW = pixels(source_of(box(8, 0, 16, 48, segment=segment)))[0]
    assert mask_HW[:, 8:16].all()
    assert mask_HW.sum() == 8 * 48


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    "polygon", [[-100, -9, 200, 20, 30, 300], [-9, -9, 90, -9, 30, 24], [70, 0, 90, 0, 64, 99]]
)
def test_of_polygons_outside_what_is_in_the_picture_counts(polygon: list[float]) -> None:
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], *SIZE)))
    source = source_of(box(0, 0, 64, 48, segment=[polygon]))
    if expected.any():
        np.testing.assert_array_equal(pixels(source)[0], expected)
    assert source.faults(0) == (() if expected.any() else (Fault.NO_MASK,))


def test_a_polygon_far_outside_costs_no_more() -> None:
    started = time.process_time()
    far = source_of(box(0, 0, 64, 48, segment=[[-3e6, -3e6, 3e6, -3e6, 3e6, 3e6, -3e6, 3e6]]))
    assert pixels(far).all()
    assert far.faults(0) == ()
    assert time.process_time() - started < 0.5


def test_polygons_in_shares_are_scaled(tmp_path: Path) -> None:
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.png")
    shares = [box(0.5, 0, 1, 1, segment=[[0.5, 0, 1, 0, 1, 1, 0.5, 1]])]
    half = pixels(BoxFiles([tmp_path / "a.png"], [shares], CLASSES, relative=True))[0]
    assert half[:, 32:].all()
    assert half.sum() == 32 * 48


NO_MASKS: dict[str, tuple[Any, Fault]] = {
    "another size": ({"size": [24, 32], "counts": [24 * 32]}, Fault.MASK_SIZE),
    "turned": ({**RUNS, "size": [64, 48]}, Fault.MASK_SIZE),
    "too short": ({"size": list(SIZE), "counts": [10, 10]}, Fault.NO_MASK),
    "too long": ({"size": list(SIZE), "counts": [10, 10**9]}, Fault.NO_MASK),
    "negative": ({"size": list(SIZE), "counts": [-10, 3082]}, Fault.NO_MASK),
    "garbled": ({"size": list(SIZE), "counts": "~~~~"}, Fault.NO_MASK),
    "cut": ({"size": list(SIZE), "counts": ";230009"}, Fault.NO_MASK),
    "without counts": ({"size": list(SIZE)}, Fault.NO_MASK),
    "a line": ([[1, 1, 5, 5]], Fault.NO_MASK),
    "odd": ([[1, 1, 5, 5, 1, 9, 3]], Fault.NO_MASK),
    "infinite": ([[1, 1, 5, 5, float("inf"), 9]], Fault.NO_MASK),
    "not nested": ([1, 1, 5, 5, 1, 9], Fault.NO_MASK),
    "words": ([["a", "b", "c", "d", "e", "f"]], Fault.NO_MASK),
    "a number": (7, Fault.NO_MASK),
    "empty": ({"size": list(SIZE), "counts": [48 * 64]}, Fault.NO_MASK),
    "absent": (None, Fault.NO_MASK),
}


@pytest.mark.parametrize("kind", NO_MASKS)
def test_the_box_stands_for_a_mask_that_is_none(kind: str) -> None:
    segment, fault = NO_MASKS[kind]
    source = source_of(box(10.6, 4, 20.2, 12, segment=segment), box(8, 0, 16, 48, segment=RUNS))
    assert source.faults(0) == (fault,)
    mask_HW = pixels(source)[0]
    assert mask_HW[4:12, 10:21].all()
    assert mask_HW.sum() == 8 * 11


def test_the_thinnest_box_still_has_a_pixel() -> None:
    source = source_of(box(10.4, 4.4, 10.45, 4.45), box(8, 0, 16, 48, segment=RUNS))
    assert pixels(source).sum(axis=(1, 2)).tolist() == [1, 8 * 48]


def test_masks_are_left_aside_when_they_are_not_asked_for() -> None:
    source = source_of(box(8, 0, 16, 48, segment=RUNS), masks=False)
    assert not source.has_masks
    assert source.boxes(0).masks is None
    assert source_of(box(8, 0, 16, 48, segment=RUNS)).has_masks


def test_a_fingerprint_sees_every_column() -> None:
    drawn = [
        (),
        (box(1, 1, 5, 5),),
        (box(1, 1, 5, 6),),
        (box(1, 1, 5, 5, label=1),),
        (box(1, 1, 5, 5, crowd=True),),
        (box(1, 1, 5, 5, area=3),),
        (box(1, 1, 5, 5, segment=[TRIANGLE]),),
    ]
    assert len({source_of(*objects).fingerprint for objects in drawn}) == len(drawn)
    moved = [BoxFiles([Path("a"), Path("b")], d, CLASSES) for d in ([drawn[1], ()], [(), drawn[1]])]
    assert moved[0].fingerprint != moved[1].fingerprint


def test_pixels_become_run_lengths_and_pixels_again() -> None:
    masks_NHW = np.random.default_rng(0).random((3, 7, 5)) < 0.5
    np.testing.assert_array_equal(decode_masks(encode_masks(masks_NHW), (7, 5)), masks_NHW)
    assert decode_masks((), (7, 5)).shape == (0, 7, 5)


GOOD: dict[str, Any] = {
    "boxes_N4": np.array([[1, 1, 5, 5]], np.float32),
    "labels_N": np.zeros(1, np.int64),
    "crowd_N": np.zeros(1, bool),
    "area_N": np.full(1, 16, np.float32),
    "size": SIZE,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes_N4": np.zeros((1, 5), np.float32)}, r"boxes_N4: expected \(1, 4\) of float32"),
        ({"boxes_N4": np.array([[1, 1, 5, 5.0]])}, "got .* of float64"),
        ({"labels_N": np.zeros(2, np.int64)}, "boxes_N4: expected"),
        ({"crowd_N": np.zeros(1)}, "crowd_N: expected"),
        ({"area_N": np.zeros(1, int)}, "area_N: expected"),
        ({"masks": ()}, "masks: expected 1, one an object, got 0"),
        ({"boxes_N4": np.array([[1, 1, 65, 5]], np.float32)}, "box 0: expected corners inside 64x48"),
        ({"boxes_N4": np.array([[5, 1, 5, 5]], np.float32)}, "box 0"),
        ({"boxes_N4": np.array([[1, 1, np.nan, 5]], np.float32)}, "box 0"),
        ({"boxes_N4": np.array([[-1, 1, 5, 5]], np.float32)}, "box 0"),
        ({"boxes_N4": np.array([[1, -1, 5, 5]], np.float32)}, "box 0"),
        ({"boxes_N4": np.array([[1, 1, 5, 49]], np.float32)}, "box 0"),
    ],
)
def test_boxes_check_themselves(changes: dict[str, Any], message: str) -> None:
    Boxes(**GOOD)
    with pytest.raises(DataError, match=message) as caught:
        Boxes(**{**GOOD, **changes})
    assert "\n" not in str(caught.value)
