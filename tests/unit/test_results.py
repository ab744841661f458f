"""Results check themselves and survive JSON."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from vitesse.results import (
    Classification,
    Detection,
    Detections,
    Prediction,
    Region,
    SemanticMap,
    from_run_lengths,
    regions,
    run_lengths,
)

OF = {"source": "a.jpg", "model": "m"}
CELL = Detection(label="cell", index=0, score=0.9, bbox=(1.0, 2.0, 3.0, 4.0))
MASKS = npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, max_side=9))


@given(MASKS)
def test_run_lengths_are_columns_of_outside_and_inside(mask_HW):
    rle = run_lengths(mask_HW)
    pixels = [inside for inside, count in enumerate(rle["counts"]) for _ in range(count)]
    assert [place % 2 == 1 for place in pixels] == mask_HW.T.ravel().tolist()
    assert (from_run_lengths(rle) == mask_HW).all()


@given(MASKS, st.data())
def test_run_lengths_of_a_part_are_those_of_the_whole(mask_HW, data):
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, side)] * 2))) for side in mask_HW.shape]
    (top, bottom), (left, right) = ends
    whole_HW = np.zeros_like(mask_HW)
    whole_HW[top:bottom, left:right] = part = mask_HW[top:bottom, left:right]
    assert run_lengths(part, mask_HW.shape, (top, left)) == run_lengths(whole_HW)
    assert (from_run_lengths(run_lengths(whole_HW)) == whole_HW).all()


@given(MASKS)
def test_a_mask_of_an_object_survives_json(mask_HW):
    found = dataclasses.replace(CELL, segmentation=run_lengths(mask_HW))
    result = Detections(**OF, size=mask_HW.shape, predictions=(found, CELL))
    raw = json.loads(json.dumps(result.to_dict()))
    again = Detections.from_dict(raw)
    assert again == result
    assert (again.predictions[0].mask() == mask_HW).all()
    assert again.predictions[1].mask() is None
    assert ["segmentation" in one for one in raw["predictions"]] == [True, False]


def test_run_lengths_of_another_size_are_refused():
    with pytest.raises(ValueError, match="expected counts of 6 pixels, got 5"):
        from_run_lengths({"size": [2, 3], "counts": [2, 3]})


@given(
    npst.arrays(np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 4))
)
def test_a_map_survives_json(classes_HW):
    names = ("a", "b", "c", "d", "e")
    result = SemanticMap(**OF, classes_HW=classes_HW, predictions=regions(classes_HW, names))
    again = SemanticMap.from_dict(json.loads(json.dumps(result.to_dict())))
    assert (again.classes_HW == classes_HW).all()
    assert again.predictions == result.predictions
    assert sum(region.share for region in again.predictions) == pytest.approx(1)
    assert {region.label for region in again.predictions} == {names[i] for i in np.unique(classes_HW)}


@pytest.mark.parametrize(
    "result",
    [
        Detections(**OF, size=(30, 40), predictions=(CELL,)),
        Detections(**OF, size=(30, 40)),
        Detections(**OF, error="cut short"),
        Classification(**OF, predictions=(Prediction(label="cat", index=3, score=0.5),)),
    ],
    ids=["objects", "no object", "refused", "classes"],
)
def test_results_survive_json(result):
    assert type(result).from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_refused_map_survives_json():
    result = SemanticMap(**OF, error="cut short")
    again = SemanticMap.from_dict(json.loads(json.dumps(result.to_dict())))
    assert (again.classes_HW, again.size, again.error) == (None, None, "cut short")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Detections(**OF), "a result or an error"),
        (lambda: Detections(**OF, size=(1, 1), error="x"), "a result or an error"),
        (lambda: SemanticMap(**OF), "a result or an error"),
        (lambda: Detection(label="x", index=0, score=1.5, bbox=(0, 0, 1, 1)), "score of 'x': expected 0..1"),
        (lambda: Detection(label="x", index=0, score=0.5, bbox=(0, 0, -1, 1)), "bbox of 'x'"),
        (lambda: Detection(label="x", index=0, score=0.5, bbox=(0, 0, float("nan"), 1)), "bbox of 'x'"),
        (lambda: Region(label="x", index=0, share=float("nan")), "share of 'x'"),
        (
            lambda: Detections(
                **OF,
                size=(9, 9),
                predictions=(Detection(label="x", index=0, score=0.1, bbox=CELL.bbox), CELL),
            ),
            "expected the highest first",
        ),
        (
            lambda: dataclasses.replace(CELL, segmentation={"size": [2, 2], "counts": [3]}),
            "expected counts of 4 pixels, got 3",
        ),
        (
            lambda: dataclasses.replace(CELL, segmentation={"size": [2, 2], "counts": [5, -1]}),
            "expected counts of 4 pixels, none below 0",
        ),
        (
            lambda: Detections(
                **OF,
                size=(9, 9),
                predictions=(dataclasses.replace(CELL, segmentation={"size": [9, 8], "counts": [72]}),),
            ),
            r"a\.jpg: expected masks of \(9, 9\), got \[9, 8\]",
        ),
    ],
)
def test_impossible_results_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
