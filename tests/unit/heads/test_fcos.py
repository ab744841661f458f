"""The real-time head: geometry, losses against their formulas, detections, and that it learns."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitesse.errors import ConfigError, DataError
from vitesse.heads import fcos
from vitesse.heads.assignment import assign
from vitesse.heads.fcos import (
    ConvNormAct,
    EndToEndHead,
    PointPredictor,
    boxes_around,
    dense_losses,
    positions,
)
from vitesse.heads.fpn import FeaturePyramid
from vitesse.spec import FeatureSpec

STRIDES, WIDTH, CLASSES = (8, 16, 32), 16, 2
Tiny = Callable[[nn.Module, nn.Module], nn.Module]
Scenes = tuple[Tensor, list[dict[str, Tensor]]]


@pytest.fixture
def detector(tiny: Tiny, features: tuple[FeatureSpec, ...]) -> nn.Module:
    torch.manual_seed(0)
    return tiny(FeaturePyramid(features, STRIDES, WIDTH, ConvNormAct), EndToEndHead(STRIDES, WIDTH, CLASSES))


def levels(height: int, width: int, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, WIDTH, height // s, width // s, generator=generator) for s in STRIDES]


def targets(*counts: int, seed: int = 0, side: int = 64) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * (side - 8)
        size = 2 + torch.rand(count, 2, generator=generator) * 30
        boxes = torch.cat((corner, (corner + size).clamp(max=side)), 1)
        found.append({"boxes": boxes, "labels": torch.randint(CLASSES, (count,), generator=generator)})
    return found


def test_positions_are_the_centres_of_cells_row_by_row() -> None:
    points, strides = positions([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 2)], (8, 16))
    assert points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8], [24, 8]]
    assert strides.tolist() == [8] * 6 + [16] * 2


def test_boxes_reach_left_up_right_and_down_from_their_points() -> None:
    boxes = boxes_around(torch.tensor([[10.0, 20.0]]), torch.tensor([[[1.0, 2, 3, 4]]]))
    assert boxes.tolist() == [[[9, 18, 13, 24]]]


@torch.no_grad()
def test_an_untrained_head_expects_nothing_and_boxes_of_four_strides() -> None:
    logits, boxes = PointPredictor(STRIDES, WIDTH, CLASSES).eval()(levels(640, 640))
    for scores in logits.sigmoid().split([80**2, 40**2, 20**2], dim=1):
        assert ((scores.sum((1, 2)) - 5).abs() < 2).all()
    points, strides = positions(levels(640, 640), STRIDES)
    expected = boxes_around(points, 2 * strides[:, None].expand(-1, 4))
    assert ((boxes - expected).abs() < 0.2 * strides[:, None]).all()


def giou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Loss 1 - GIoU of pairs of boxes, in float64."""
    shared = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    hull = (np.maximum(a[:, 2:], b[:, 2:]) - np.minimum(a[:, :2], b[:, :2])).prod(1)
    return 1 - (shared / union - (hull - union) / hull)


@pytest.mark.parametrize("unique", [True, False])
def test_losses_are_their_formulas_in_float64(unique: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    points, strides = positions(levels(64, 64), STRIDES)
    logits = torch.randn(3, len(points), CLASSES, generator=generator) - 2
    distances = torch.rand(3, len(points), 4, generator=generator) * 3
    boxes, wanted = boxes_around(points, distances * strides[:, None]), targets(6, 0, 3)
    classify, locate = dense_losses(logits, boxes, points, strides, wanted, unique=unique)

    x = logits.double().numpy()
    goal, total, weight = np.zeros_like(x), 0.0, 0.0
    for i, target in enumerate(wanted):
        found = assign(logits[i].sigmoid(), boxes[i], points, strides, target, unique=unique)
        for p, owner in enumerate(found.owner_P.tolist()):
            if owner < 0:
                continue
            goal[i, p, target["labels"][owner]] = found.score_P[p].item()
            pair = boxes[i, p].double().numpy()[None], target["boxes"][owner].double().numpy()[None]
            apart = np.abs(pair[0] - pair[1]).mean() / strides[p].item()
            share = found.share_P[p].item()
            total += share * (fcos.BOX_WEIGHT * giou(*pair)[0] + fcos.SIDE_WEIGHT * apart)
            weight += share
    entropy = np.maximum(x, 0) - x * goal + np.log1p(np.exp(-np.abs(x)))
    assert weight > 5
    assert classify.item() == pytest.approx(entropy.sum() / max(goal.sum(), 1), rel=1e-5)
    assert locate.item() == pytest.approx(total / weight, rel=1e-5)


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (1, 0), (500, 2), (10_000, 0)])
def test_losses_and_gradients_are_finite_whatever_the_number_of_objects(
    detector: nn.Module, counts: tuple[int, int]
) -> None:
    losses = detector(torch.randn(2, 3, 64, 64), targets(*counts))
    assert set(losses) == {"one_to_many_class", "one_to_many_box", "one_to_one_class", "one_to_one_box"}
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    if counts == (0, 0):
        assert losses["one_to_many_box"] == losses["one_to_one_box"] == 0


@pytest.mark.parametrize(
    "box", [[0, 0, 64, 64], [10, 10, 10.01, 10.01], [63, 63, 64, 64], [-9, -9, 90, 80], [0, 3, 64, 3.1]]
)
def test_odd_boxes_have_finite_losses(detector: nn.Module, box: list[float]) -> None:
    target = {"boxes": torch.tensor([box], dtype=torch.float32), "labels": torch.tensor([1])}
    losses = detector(torch.randn(1, 3, 64, 64), [target])
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())
    assert losses["one_to_one_box"] > 0


def test_the_gradient_reaches_everything_and_levels_learn_from_many_alone(detector: nn.Module) -> None:
    losses = detector(torch.randn(2, 3, 64, 64), targets(60, 40))
    (losses["one_to_one_class"] + losses["one_to_one_box"]).backward(retain_graph=True)
    reached = {name for name, p in detector.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, _ in detector.named_parameters() if name.startswith("head.one_to_one")}
    (losses["one_to_many_class"] + losses["one_to_many_box"]).backward()
    assert all(p.grad is not None and p.grad.any() for p in detector.parameters())


def test_targets_are_checked(detector: nn.Module) -> None:
    with pytest.raises(ConfigError, match="expected one for each of the 1 images"):
        detector(torch.randn(1, 3, 64, 64))
    with pytest.raises(DataError, match=r"expected a label in 0\.\.1, got 2"):
        detector(
            torch.randn(1, 3, 64, 64),
            [{"boxes": torch.tensor([[1.0, 2, 3, 4]]), "labels": torch.tensor([2])}],
        )


def test_detections_are_the_best_of_all_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    head, maps = EndToEndHead(STRIDES, WIDTH, CLASSES).eval(), levels(96, 128)
    generator = torch.Generator().manual_seed(0)
    number = sum(level[0, 0].numel() for level in maps)
    logits = (torch.randperm(2 * number * CLASSES, generator=generator) / 200 - 6).view(2, number, CLASSES)
    everywhere = torch.rand(2, number, 4, generator=generator) * 200 - 30
    monkeypatch.setattr(head.one_to_one, "forward", lambda _: (logits, everywhere))
    boxes, scores, labels = head(maps, torch.zeros(2, 3, 96, 128))
    for i in range(2):
        expected, index = logits[i].flatten().sort(descending=True)
        index = index[: fcos.MAX_DETECTIONS]
        torch.testing.assert_close(scores[i], expected[: fcos.MAX_DETECTIONS].sigmoid())
        assert torch.equal(labels[i], index % CLASSES)
        best = everywhere[i][index // CLASSES]
        torch.testing.assert_close(boxes[i, :, 0::2], best[:, 0::2].clamp(0, 128))
        torch.testing.assert_close(boxes[i, :, 1::2], best[:, 1::2].clamp(0, 96))
    assert labels.dtype == torch.int64


@torch.no_grad()
def test_a_small_picture_has_as_many_detections_as_positions_and_classes(detector: nn.Module) -> None:
    boxes, scores, labels = detector.eval()(torch.randn(1, 3, 40, 33))
    number = (5 * 5 + 3 * 3 + 2 * 2) * CLASSES
    assert boxes.shape == (1, number, 4)
    assert scores.shape == labels.shape == (1, number)


def average_precision(detector: nn.Module, images: Tensor, wanted: list[dict[str, Tensor]]) -> float:
    """AP at an IoU of one half, by faster-coco-eval."""
    coco = pytest.importorskip("faster_coco_eval")
    with torch.no_grad():
        found = detector.eval()(images)
    known, results = [], []
    for i, target in enumerate(wanted):
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            known.append((i, label, box))
        results += [(i, *row) for row in zip(*(values[i].tolist() for values in found), strict=True)]

    def record(image: int, label: int, box: list[float], **more: float) -> dict[str, object]:
        width, height = box[2] - box[0], box[3] - box[1]
        place = {"bbox": [box[0], box[1], width, height], "area": width * height, "iscrowd": 0}
        return {"image_id": image + 1, "category_id": label + 1, **place, **more}

    truth = coco.COCO(
        {
            "images": [{"id": i + 1, "width": 96, "height": 96} for i in range(len(wanted))],
            "categories": [{"id": k + 1, "name": str(k)} for k in range(CLASSES)],
            "annotations": [record(i, k, box, id=n + 1) for n, (i, k, box) in enumerate(known)],
        }
    )
    predicted = truth.loadRes([record(i, k, box, score=score) for i, box, score, k in results])
    evaluation = coco.COCOeval_faster(truth, predicted, "bbox", print_function=lambda *_: None)
    evaluation.run()
    return float(evaluation.stats[1])


@pytest.mark.slow
def test_it_learns_eight_pictures_by_heart(
    tiny: Tiny, features: tuple[FeatureSpec, ...], scenes: Scenes
) -> None:
    """An empty one, forty tiny shapes of which some hide others, five sizes in one picture."""
    images, wanted = scenes
    torch.manual_seed(0)
    neck = FeaturePyramid(features, STRIDES, 2 * WIDTH, ConvNormAct)
    detector, steps = tiny(neck, EndToEndHead(STRIDES, 2 * WIDTH, CLASSES)), 200
    optimizer = torch.optim.AdamW(detector.parameters(), lr=5e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps, pct_start=0.1)
    for _ in range(steps):
        loss = sum(detector.train()(images, wanted).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10)
        optimizer.step()
        schedule.step()
    assert average_precision(detector, images, wanted) > 0.95
    with torch.no_grad():
        boxes, scores, _ = detector(images)
    assert (scores[0] < 0.05).all(), "nothing is in the empty picture"
    assert (scores > 0.3).sum(1).tolist() == pytest.approx([len(t["boxes"]) for t in wanted], abs=4), (
        "no repeats"
    )
    assert math.isfinite(boxes.sum())
