"""Task-aligned assignment on cases small enough to be worked out by hand, and against slow references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitesse.heads import assignment
from vitesse.heads.assignment import Assignment, assign
from vitesse.heads.fcos import boxes_around

GRID = torch.stack(torch.meshgrid(*[torch.arange(8) * 8.0 + 4] * 2, indexing="xy"), -1).flatten(0, 1)
"""Positions of an 8x8 map of stride 8, row by row."""


def objects(boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def on_grid(
    target: dict[str, Tensor], *, unique: bool, scores: Tensor | None = None, reach: float = 8.0
) -> Assignment:
    """Every position of the grid predicts a box of twice `reach` a side and, by default, the same scores."""
    points = len(GRID)
    return assign(
        torch.full((points, 3), 0.1) if scores is None else scores,
        boxes_around(GRID, torch.full((points, 4), reach)),
        GRID,
        torch.full((points,), 8.0),
        target,
        unique=unique,
    )


def owned(found: Assignment, owner: int = 0) -> list[int]:
    return (found.owner_P == owner).nonzero()[:, 0].tolist()


def iou(a: list[float], b: list[float]) -> float:
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(across, 0) * max(down, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_one_position_an_object_is_the_best_aligned() -> None:
    found = on_grid(objects([[12, 4, 28, 20]], [1]), unique=True)
    assert owned(found) == [10]  # row 1, column 2: centre (20, 12), whose box is the object's
    assert found.share_P[10] == 1
    assert found.score_P[10] == 1
    assert found.share_P.sum() == found.score_P.sum() == 1


def test_many_positions_an_object_share_by_alignment() -> None:
    box = [12.0, 4, 28, 20]
    found = on_grid(objects([box], [1]), unique=False)
    assert owned(found) == [1, 2, 3, 9, 10, 11, 17, 18, 19]  # the nine inside, the border counts
    beside = iou([4, 4, 20, 20], box) ** 6
    assert found.share_P[9].item() == pytest.approx(beside, rel=1e-4)
    assert found.score_P[9].item() == pytest.approx(beside * 1.0, rel=1e-4)


def test_no_more_positions_than_candidates() -> None:
    found = on_grid(objects([[0, 0, 64, 64]], [0]), unique=False, reach=20)
    assert len(owned(found)) == assignment.CANDIDATES


def test_the_class_score_counts_by_its_root() -> None:
    scores = torch.full((64, 3), 0.01)
    scores[9, 1] = 0.81  # nine times the root of the others, against a smaller overlap
    box = [9.0, 4, 25, 20]
    chosen, other = iou([4, 4, 20, 20], box), iou([12, 4, 28, 20], box)
    assert 9 * chosen**6 > other**6
    assert owned(on_grid(objects([box], [1]), unique=True, scores=scores)) == [9]
    assert owned(on_grid(objects([box], [2]), unique=True, scores=scores)) == [10]


@pytest.mark.parametrize("unique", [True, False])
def test_no_objects(unique: bool) -> None:
    found = on_grid(objects([], []), unique=unique)
    assert (found.owner_P == -1).all()
    assert not found.share_P.any()
    assert not found.score_P.any()


@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("box", [[1, 1, 2, 2], [7.5, 7.5, 8.5, 8.5], [62, 62, 64, 64], [0, 30, 64, 30.5]])
def test_an_object_smaller_than_a_cell_finds_a_position(unique: bool, box: list[float]) -> None:
    found = on_grid(objects([box], [0]), unique=unique)
    assert owned(found)
    assert found.share_P.max() == 1
    assert found.score_P.max() >= assignment.SCORE_FLOOR


@pytest.mark.parametrize("unique", [True, False])
def test_an_object_that_no_prediction_overlaps_is_learned_all_the_same(unique: bool) -> None:
    found = on_grid(objects([[9, 9, 11, 11]], [0]), unique=unique, reach=1e-6)
    assert owned(found)
    assert found.share_P[owned(found)].tolist() == [1] * len(owned(found))
    assert found.score_P.max().item() == pytest.approx(assignment.SCORE_FLOOR)


def test_a_position_that_several_want_goes_to_the_better_aligned() -> None:
    first, second = [12.0, 4, 28, 20], [14.0, 4, 30, 20]
    one = on_grid(objects([first, second], [0, 0]), unique=False)
    other = on_grid(objects([second, first], [0, 0]), unique=False)
    assert one.owner_P[10] == 0  # the position's own box is `first`
    assert other.owner_P[10] == 1
    swapped = torch.tensor([1, 0, -1])
    assert torch.equal(one.owner_P, swapped[other.owner_P])
    assert torch.equal(one.score_P, other.score_P)


def test_the_same_box_many_times_gets_as_many_positions() -> None:
    found = on_grid(objects([[12, 4, 28, 20]] * 5, [0] * 5), unique=True)
    assert sorted(found.owner_P[found.owner_P >= 0].tolist()) == [0, 1, 2, 3, 4]
    assert found.owner_P[10] == 0
    assert found.score_P[found.owner_P >= 0].max() == 1


def greedy(
    scores: Tensor, boxes: Tensor, points: Tensor, target: dict[str, Tensor], stride: float
) -> list[int]:
    """The owner of each position: all candidate pairs by alignment, each taken where both are still free."""
    pairs = []
    for g, (box, label) in enumerate(zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)):
        mine = []
        for p, (x, y) in enumerate(points.tolist()):
            width, height = max(box[2] - box[0], stride), max(box[3] - box[1], stride)
            centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            if abs(x - centre[0]) <= width / 2 and abs(y - centre[1]) <= height / 2:
                mine.append((scores[p, label].item() ** 0.5 * iou(box, boxes[p].tolist()) ** 6, p, g))
        pairs += sorted(mine, reverse=True)[: assignment.CANDIDATES]
    owner: dict[int, int] = {}
    for _, p, g in sorted(pairs, reverse=True):
        if p not in owner and g not in owner.values():
            owner[p] = g
    return [owner.get(p, -1) for p in range(len(points))]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 25))
def test_one_to_one_is_the_greedy_matching(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 40
    size = 3 + torch.rand(count, 2, generator=generator) * 20
    target = {
        "boxes": torch.cat((corner, corner + size), 1),
        "labels": torch.randint(3, (count,), generator=generator),
    }
    scores = torch.rand(64, 3, generator=generator)
    sides = 4.1 + torch.rand(64, 4, generator=generator) * 12  # so that each reaches an object around it
    boxes = boxes_around(GRID, sides)
    found = assign(scores, boxes, GRID, torch.full((64,), 8.0), target, unique=True)
    assert found.owner_P.tolist() == greedy(scores, boxes, GRID, target, 8.0)
    assert (found.share_P[found.owner_P >= 0] == 1).all()


@pytest.mark.parametrize("unique", [True, False])
def test_thousands_of_objects_in_pieces_are_as_all_at_once(
    unique: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(3000, 2, generator=generator) * 56
    target = {"boxes": torch.cat((corner, corner + 7), 1), "labels": torch.zeros(3000, dtype=torch.int64)}
    in_pieces = on_grid(target, unique=unique)
    monkeypatch.setattr(assignment, "CHUNK", 10_000)
    for found, expected in zip(in_pieces, on_grid(target, unique=unique), strict=True):
        assert torch.equal(found, expected)
    owners = in_pieces.owner_P[in_pieces.owner_P >= 0]
    assert len(owners) == 64
    assert not unique or len(owners.unique()) == 64


def test_nothing_flows_back_through_an_assignment() -> None:
    scores = torch.rand(64, 3, requires_grad=True)
    found = on_grid(objects([[12, 4, 28, 20]], [1]), unique=False, scores=scores)
    assert not found.score_P.requires_grad
