"""Masks as results: their boxes, their run lengths, their JSON form and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from vitesse.results import Mask, Masks, from_run_lengths, run_lengths

ANY_MASK = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


def counted(mask_HW: np.ndarray) -> list[int]:
    """COCO's counts, pixel by pixel: down each column, outside first."""
    counts, inside = [0], False
    for column in range(mask_HW.shape[1]):
        for row in range(mask_HW.shape[0]):
            if mask_HW[row, column] != inside:
                inside = not inside
                counts.append(0)
            counts[-1] += 1
    return counts


@settings(max_examples=40, deadline=None)
@given(ANY_MASK)
def test_run_lengths_are_cocos_and_come_back(mask_HW):
    rle = run_lengths(mask_HW)
    assert rle == {"size": list(mask_HW.shape), "counts": counted(mask_HW)}
    assert np.array_equal(from_run_lengths(json.loads(json.dumps(rle))), mask_HW)


@settings(max_examples=40, deadline=None)
@given(ANY_MASK)
def test_the_box_is_the_smallest_around_all_pixels(mask_HW):
    mask = Mask(mask_HW=mask_HW, score=0.5)
    left, top, width, height = mask.bbox
    assert mask.area == mask_HW.sum() == mask_HW[top : top + height, left : left + width].sum()
    if mask.area:
        inner = mask_HW[top : top + height, left : left + width]
        assert all(edge.any() for edge in (inner[0], inner[-1], inner[:, 0], inner[:, -1]))
    else:
        assert mask.bbox == (0, 0, 0, 0)


def test_a_record_survives_json():
    mask_HW = np.zeros((3, 4), np.bool_)
    mask_HW[1, 1:3] = True
    record = Masks(source="a.jpg", model="m", size=(3, 4), predictions=(Mask(mask_HW=mask_HW, score=0.25),))
    raw = json.loads(json.dumps(record.to_dict()))
    assert raw == {
        "source": "a.jpg",
        "task": "promptable",
        "model": "m",
        "size": [3, 4],
        "predictions": [
            {
                "score": 0.25,
                "bbox": [1, 1, 2, 1],
                "area": 2,
                "segmentation": {"size": [3, 4], "counts": [4, 1, 2, 1, 4]},
            }
        ],
    }
    back = Masks.from_dict(raw)
    assert (back.source, back.size, back.predictions[0].score) == ("a.jpg", (3, 4), 0.25)
    assert np.array_equal(back.predictions[0].mask_HW, mask_HW)


def test_what_is_no_mask_is_refused():
    good = np.zeros((3, 4), np.bool_)
    for mask_HW, score in ((good.astype(np.uint8), 0.5), (good[0], 0.5), (good, 1.5), (good, float("nan"))):
        with pytest.raises(ValueError, match="expected"):
            Mask(mask_HW=mask_HW, score=score)
    with pytest.raises(ValueError, match=r"expected masks of \(4, 3\), got \(3, 4\)"):
        Masks(source="a", model="m", size=(4, 3), predictions=(Mask(mask_HW=good, score=0.5),))
    with pytest.raises(ValueError, match="expected counts of 12 pixels, got 11"):
        from_run_lengths({"size": [3, 4], "counts": [4, 7]})
