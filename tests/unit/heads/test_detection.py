"""What detection heads share: targets, the best of all pairs, suppression to a fixed number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms

from vitesse.errors import ConfigError, DataError
from vitesse.heads.detection import best_pairs, check_targets, clip_boxes, gather, suppress


def target(boxes: list[list[float]], labels: list[int], **more: Tensor) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        **more,
    }


FINE = target([[1, 2, 3, 4]], [1])
IMAGES = torch.zeros(2, 3, 32, 48)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (None, ConfigError, "expected one for each of the 2 images to train on, got none"),
        ([FINE], ConfigError, "expected one for each of the 2 images to train on, got 1"),
        (
            [FINE, {"boxes": torch.zeros(0, 4)}],
            DataError,
            "image 1: expected boxes, labels, labels is missing",
        ),
        (
            [FINE, target([[1, 2, 3, 4]], [])],
            DataError,
            r"image 1: expected labels of shape \(1,\), got \(0,\)",
        ),
        (
            [{"boxes": torch.zeros(1, 5), "labels": torch.zeros(1)}, FINE],
            DataError,
            r"image 0: expected boxes of shape \(1, 4\), got \(1, 5\)",
        ),
        ([FINE, target([[3, 2, 3, 4]], [0])], DataError, r"image 1: object 0: expected finite left < right"),
        ([FINE, target([[1, 4, 3, 2]], [0])], DataError, r"image 1: object 0: expected finite left < right"),
        ([FINE, target([[1, 2, math.nan, 4]], [0])], DataError, "image 1: object 0: expected finite"),
        ([FINE, target([[1, 2, math.inf, 4]], [0])], DataError, "image 1: object 0: expected finite"),
        (
            [target([], []), target([[1, 2, 3, 4], [1, 2, 3, 4]], [0, 3])],
            DataError,
            r"image 1: object 1: expected a label in 0\.\.2, got 3",
        ),
        ([FINE, target([[1, 2, 3, 4]], [-1])], DataError, r"expected a label in 0\.\.2, got -1"),
    ],
)
def test_targets_that_cannot_be_are_refused(targets: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        check_targets(targets, IMAGES, 3)
    assert "\n" not in str(caught.value)


def test_masks_are_asked_for_where_needed() -> None:
    with pytest.raises(DataError, match="image 0: expected boxes, labels, masks, masks is missing"):
        check_targets([FINE, FINE], IMAGES, 3, masks=True)
    wrong = [{**FINE, "masks": torch.zeros(1, 48, 32)}] * 2
    with pytest.raises(DataError, match=r"expected masks of shape \(1, 32, 48\), got \(1, 48, 32\)"):
        check_targets(wrong, IMAGES, 3, masks=True)
    right = [{**FINE, "masks": torch.zeros(1, 32, 48)}] * 2
    assert check_targets(right, IMAGES, 3, masks=True) is right


def test_images_without_objects_are_fine() -> None:
    empty = [target([], [])] * 2
    assert check_targets(empty, IMAGES, 3) is empty


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 30), st.integers(1, 4), st.integers(1, 9))
def test_the_best_pairs_are_those_of_a_full_sort(seed: int, b: int, p: int, k: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores_BPK = torch.randperm(b * p * k, generator=generator).view(b, p, k).float()
    scores, positions, labels = best_pairs(scores_BPK, count)
    expected = scores_BPK.flatten(1).sort(dim=1, descending=True)
    number = min(count, p * k)
    assert torch.equal(scores, expected.values[:, :number])
    assert torch.equal(positions * k + labels, expected.indices[:, :number])


def test_gather_takes_rows_of_each_image() -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    index = torch.tensor([[2, 0], [1, 1]])
    assert torch.equal(gather(x, index), torch.stack((x[0, [2, 0]], x[1, [1, 1]])))


def test_boxes_are_clipped_to_height_and_width() -> None:
    boxes = torch.tensor([[[-5.0, -6.0, 70.0, 80.0], [40.0, 2.0, 45.0, 4.0], [60.0, 40.0, -3.0, -4.0]]])
    assert clip_boxes(boxes, (32, 48)).tolist() == [[[0, 0, 48, 32], [40, 2, 45, 4], [48, 32, 0, 0]]]


def crowd(seed: int, count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, count, 2, generator=generator) * 40
    boxes = torch.cat((corner, corner + 4 + torch.rand(2, count, 2, generator=generator) * 20), -1)
    return torch.rand(2, count, generator=generator), boxes, torch.randint(3, (2, count), generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_suppression_is_that_of_torchvision(seed: int) -> None:
    scores, boxes, labels = crowd(seed)
    parts = [(scores[:, :20], boxes[:, :20], labels[:, :20]), (scores[:, 20:], boxes[:, 20:], labels[:, 20:])]
    found = suppress(parts, (64, 64), max_overlap=0.4, min_score=0.3, count=50)
    fewer = suppress(parts, (64, 64), max_overlap=0.4, min_score=0.3, count=4)
    assert all(torch.equal(a, b[:, :4]) for a, b in zip(fewer, found, strict=True))
    for i in range(2):
        keep = batched_nms(boxes[i], scores[i], labels[i], 0.4)
        keep = keep[scores[i][keep] > 0.3]
        number = len(keep)
        assert number > 5
        assert torch.equal(found[0][i, :number], boxes[i][keep])
        assert torch.equal(found[1][i, :number], scores[i][keep])
        assert torch.equal(found[2][i, :number], labels[i][keep])
        assert not any(values[i, number:].any() for values in found)


def test_boxes_without_area_are_no_detections() -> None:
    boxes = torch.tensor([[[1.0, 1, 9, 9], [20, 5, 20, 9], [5, 20, 9, 20]]])
    found = suppress(
        [(torch.tensor([[0.5, 0.9, 0.8]]), boxes, torch.zeros(1, 3, dtype=torch.int64))],
        (32, 32),
        max_overlap=0.5,
        min_score=0,
        count=3,
    )
    assert found[1].tolist() == [[0.5, 0, 0]]
    assert found[0].tolist() == [[[1, 1, 9, 9], [0] * 4, [0] * 4]]
