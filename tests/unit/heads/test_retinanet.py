"""RetinaNet's head is torchvision's RetinaNet on anchors as the papers lay them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from vitesse.heads.anchors import RATIOS, GridAnchors
from vitesse.heads.fpn import FeaturePyramid
from vitesse.heads.retinanet import MAX_DETECTIONS, SCALES, RetinaHead
from vitesse.spec import FeatureSpec

STRIDES, WIDTH, CLASSES = (8, 16, 32, 64, 128), 16, 3
Targets = list[dict[str, Tensor]]


def levels(height: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, WIDTH, -(-height // s), -(-width // s), generator=generator) for s in STRIDES]


def targets(*counts: int) -> Targets:
    generator = torch.Generator().manual_seed(1)
    found = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 100
        boxes = torch.cat((corner, corner + 10 + torch.rand(count, 2, generator=generator) * 80), 1)
        found.append({"boxes": boxes, "labels": torch.randint(CLASSES, (count,), generator=generator)})
    return found


def test_anchors_by_their_definition() -> None:
    anchors = GridAnchors((8, 16), SCALES).by_level([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 1)])
    assert [len(a) for a in anchors] == [54, 9]
    expected = []
    for y in range(2):
        for x in range(3):
            for ratio in (0.5, 1.0, 2.0):
                for octave in range(3):
                    side = 8 * 4 * 2 ** (octave / 3)
                    width, height = side / math.sqrt(ratio), side * math.sqrt(ratio)
                    expected.append(
                        [x * 8 - width / 2, y * 8 - height / 2, x * 8 + width / 2, y * 8 + height / 2]
                    )
    torch.testing.assert_close(anchors[0], torch.tensor(expected))


def test_anchors_are_torchvision_s_but_for_rounding() -> None:
    maps = levels(256, 384)
    ours = GridAnchors(STRIDES, SCALES)
    theirs = AnchorGenerator(tuple(tuple(s * k for k in SCALES) for s in STRIDES), (RATIOS,) * len(STRIDES))
    images = ImageList(torch.zeros(2, 3, 256, 384), [(256, 384)] * 2)
    for found, expected in zip(ours(images, maps), theirs(images, maps), strict=True):
        torch.testing.assert_close(found, expected, atol=0.501, rtol=0)
    assert ours.num_anchors_per_location() == theirs.num_anchors_per_location()


def test_strides_stay_exact_where_a_map_hangs_over_the_border() -> None:
    anchors = GridAnchors((128,), (4,)).by_level([torch.zeros(1, 1, 7, 11)])[0]  # of an image of 800x1344
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres.amax(0).tolist() == [10 * 128, 6 * 128]


class Levels(nn.Module):
    out_channels = WIDTH


def like_torchvision(head: RetinaHead) -> RetinaNet:
    """Their assembly of our parts."""
    made = AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * len(STRIDES))
    return RetinaNet(Levels(), CLASSES, anchor_generator=made, head=head.predict, detections_per_img=10_000)


@pytest.fixture
def head() -> RetinaHead:
    """Whose predictions differ from place to place and are often above the lowest score."""
    torch.manual_seed(0)
    head = RetinaHead(STRIDES, WIDTH, CLASSES)
    for conv in head.predict.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.normal_(conv.weight, std=1.3 / math.sqrt(conv.weight[0].numel()))
    nn.init.constant_(head.predict.classification_head.cls_logits.bias, -2)
    return head


@pytest.mark.parametrize("counts", [(4, 7), (0, 3), (0, 0)])
def test_losses_are_torchvision_s(head: RetinaHead, counts: tuple[int, int]) -> None:
    maps, wanted = levels(200, 256), targets(*counts)
    anchors = [torch.cat(head.anchors.by_level(maps))] * 2
    expected = like_torchvision(head).compute_loss(wanted, head.predict(maps), anchors)
    found = head(maps, torch.zeros(2, 3, 200, 256), wanted)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
        assert torch.isfinite(found[name])


@torch.no_grad()
def test_detections_are_torchvision_s(head: RetinaHead) -> None:
    maps = levels(200, 256)
    outputs = head.predict(maps)
    anchors = head.anchors.by_level(maps)
    split = {name: list(values.split([len(a) for a in anchors], 1)) for name, values in outputs.items()}
    expected = like_torchvision(head).postprocess_detections(split, [anchors] * 2, [(200, 256)] * 2)
    boxes, scores, labels = head.eval()(maps, torch.zeros(2, 3, 200, 256))
    assert boxes.shape == (2, MAX_DETECTIONS, 4)
    for i, image in enumerate(expected):
        real = ((image["boxes"][:, 2:] - image["boxes"][:, :2]) > 1e-3).all(1)
        assert real.sum() > MAX_DETECTIONS
        torch.testing.assert_close(boxes[i], image["boxes"][real][:MAX_DETECTIONS])
        torch.testing.assert_close(scores[i], image["scores"][real][:MAX_DETECTIONS])
        assert torch.equal(labels[i], image["labels"][real][:MAX_DETECTIONS])


@torch.no_grad()
def test_what_scores_too_little_is_left_out(head: RetinaHead) -> None:
    nn.init.constant_(head.predict.classification_head.cls_logits.bias, -9)
    found = head.eval()(levels(200, 256), torch.zeros(2, 3, 200, 256))
    assert 0 < (found[1] > 0).sum() < 2 * MAX_DETECTIONS
    assert (found[1][found[1] > 0] > 0.05).all()
    assert not any(values[found[1] == 0].any() for values in found)


def test_the_gradient_reaches_everything(
    tiny: Callable[[nn.Module, nn.Module], nn.Module], features: tuple[FeatureSpec, ...]
) -> None:
    torch.manual_seed(0)
    neck = FeaturePyramid(features, STRIDES, WIDTH)
    detector = tiny(neck, RetinaHead(STRIDES, WIDTH, CLASSES))
    for wanted in (targets(0, 0), targets(5, 4)):
        detector.zero_grad()
        sum(detector(torch.randn(2, 3, 128, 192), wanted).values()).backward()
        for name, parameter in detector.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    assert all(p.grad.any() for p in detector.parameters())  # type: ignore[union-attr]
