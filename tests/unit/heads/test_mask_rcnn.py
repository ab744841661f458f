"""Mask R-CNN's head is torchvision's proposals and regions, with the same number of detections everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, roi_align
from torchvision.ops.poolers import LevelMapper

from vitesse.errors import DataError
from vitesse.heads import mask_rcnn
from vitesse.heads.fpn import FeaturePyramid
from vitesse.heads.mask_rcnn import BoxPredictor, MaskPredictor, MaskRCNNHead, RoIAlign, by_name, level_of
from vitesse.spec import FeatureSpec

STRIDES, WIDTH, CLASSES = (4, 8, 16, 32, 64), 8, 3
Tiny = Callable[[nn.Module, nn.Module], nn.Module]


@pytest.fixture(autouse=True)
def few_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_rcnn, "PROPOSALS", 60)
    monkeypatch.setattr(mask_rcnn, "HIDDEN", 32)


def levels(height: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, WIDTH, -(-height // s), -(-width // s), generator=generator) for s in STRIDES]


def boxes(count: int, side: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    return torch.cat((corner, corner + 1 + torch.rand(count, 2, generator=generator) * side), 1)


def test_the_level_of_a_region_is_torchvision_s() -> None:
    regions = torch.cat([boxes(200, side) for side in (10, 60, 200, 900)])
    assert torch.equal(level_of(regions, 4), LevelMapper(2, 5)([regions]))


def test_regions_are_cut_out_of_their_level() -> None:
    maps, regions = levels(256, 256), [boxes(20, 600), boxes(15, 40, seed=1)]
    found = RoIAlign(STRIDES[:4], 7)(by_name(maps), regions)
    one_by_one = [
        roi_align(
            maps[level][i : i + 1], [region[None]], 7, 1 / STRIDES[level], sampling_ratio=0, aligned=True
        )
        for i, image in enumerate(regions)
        for region, level in zip(image, level_of(image, 4).tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(one_by_one))
    assert len(level_of(torch.cat(regions), 4).unique()) == 4


@torch.no_grad()
def test_the_background_comes_first_as_torchvision_has_it() -> None:
    predictor, x = BoxPredictor(4, CLASSES), torch.randn(5, 4)
    logits, deltas = predictor(x)
    stored = predictor.classifier(x)
    assert torch.equal(logits, torch.cat((stored[:, 3:], stored[:, :3]), 1))
    assert torch.equal(deltas[:, 4:], predictor.regressor(x))
    assert not deltas[:, :4].any()
    masks = MaskPredictor(4, CLASSES)(torch.randn(2, 4, 14, 14))
    assert masks.shape == (2, 1 + CLASSES, 28, 28)
    assert not masks[:, 0].any()


@pytest.fixture
def head() -> MaskRCNNHead:
    """Whose predictions differ from place to place and are often above the lowest score."""
    torch.manual_seed(0)
    head = MaskRCNNHead(STRIDES, WIDTH, CLASSES).eval()
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=1.4 / math.sqrt(layer.weight[0].numel()))
    nn.init.normal_(head.regions.box_predictor.classifier.weight, std=0.5)
    return head


@torch.no_grad()
def test_detections_are_torchvision_s(head: MaskRCNNHead) -> None:
    maps, sizes = levels(192, 256), [(192, 256)] * 2
    proposals, _ = head.propose(ImageList(torch.zeros(2, 3, 192, 256), sizes), by_name(maps))
    ours, known = head._proposals(maps, sizes[0])
    for i in range(2):
        torch.testing.assert_close(ours[i][known[i]], proposals[i])
    expected, _ = head.regions(by_name(maps), proposals, sizes)
    found = head(maps, torch.zeros(2, 3, 192, 256))
    assert [tuple(values.shape) for values in found] == [(2, 100, 4), (2, 100), (2, 100), (2, 100, 28, 28)]
    for i, image in enumerate(expected):
        number = len(image["scores"])
        assert number > 10
        for values, key in zip(found, ("boxes", "scores", "labels", "masks"), strict=True):
            wanted = {"labels": image["labels"] - 1, "masks": image["masks"][:, 0]}.get(key, image[key])
            torch.testing.assert_close(values[i, :number], wanted)
            assert not values[i, number:].any()


@pytest.fixture
def detector(tiny: Tiny, features: tuple[FeatureSpec, ...]) -> nn.Module:
    torch.manual_seed(0)
    return tiny(FeaturePyramid(features, STRIDES, WIDTH), MaskRCNNHead(STRIDES, WIDTH, CLASSES))


def test_the_gradient_reaches_everything_and_is_finite_without_objects(detector: nn.Module) -> None:
    for counts in ((0, 0), (0, 3), (6, 4)):
        wanted = [
            {
                "boxes": boxes(count, 60).clamp(max=96),
                "labels": torch.arange(count) % CLASSES,
                "masks": torch.ones(count, 96, 128, dtype=torch.uint8),
            }
            for count in counts
        ]
        detector.zero_grad()
        losses = detector(torch.randn(2, 3, 96, 128), wanted)
        assert len(losses) == 5
        sum(losses.values()).backward()
        for name, parameter in detector.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    assert all(p.grad.any() for p in detector.parameters())  # type: ignore[union-attr]


def test_masks_are_asked_for(detector: nn.Module) -> None:
    target = {"boxes": torch.tensor([[1.0, 2, 30, 40]]), "labels": torch.tensor([0])}
    with pytest.raises(DataError, match="image 0: expected boxes, labels, masks, masks is missing"):
        detector(torch.randn(1, 3, 64, 64), [target])


@pytest.mark.slow
def test_it_learns_a_picture_by_heart(
    tiny: Tiny, features: tuple[FeatureSpec, ...], scenes: tuple[Tensor, list[dict[str, Tensor]]]
) -> None:
    torch.manual_seed(0)
    detector = tiny(FeaturePyramid(features, STRIDES, 32), MaskRCNNHead(STRIDES, 32, 2))
    images, wanted = scenes[0][4:5], scenes[1][4:5]
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    for _ in range(120):
        loss = sum(detector.train()(images, wanted).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found, scores, labels, masks = (values[0] for values in detector.eval()(images))
    overlap = box_iou(wanted[0]["boxes"], found) * (labels == wanted[0]["labels"][:, None]) * (scores > 0.5)
    best = overlap.max(1)
    assert (best.values[1:] > 0.5).all(), "all but the tiny one"
    assert (masks[best.indices[1:]] > 0.5).float().mean() > 0.6
