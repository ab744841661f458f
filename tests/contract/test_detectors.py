"""What every registered detector must do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vitesse.errors import ConfigError, DataError
from vitesse.export import fold
from vitesse.heads import mask_rcnn
from vitesse.models import build, detectors, registered_models
from vitesse.spec import ModelSpec, from_mapping, to_mapping

PAPERS = [f"{kind}_{name}" for kind in ("retinanet", "mask_rcnn") for name in ("efficientvit_m4", "shvit_s4")]
ON_EVERY_BACKBONE = [name for name in registered_models("detect") if name.startswith("fcos_e2e")]
ONE_OF_EACH = [
    f"{kind}_{backbone}"
    for kind, backbones in {
        "fcos_e2e": ("efficientvit_m0", "shvit_s1", "efficientvit_b0"),
        "retinanet": ("efficientvit_m0", "shvit_s1", "efficientvit_b0"),
        "mask_rcnn": ("shvit_s1",),
    }.items()
    for backbone in backbones
]
EVERY_KIND = pytest.mark.parametrize("name", ONE_OF_EACH)


@pytest.fixture(scope="module", autouse=True)
def small():
    """One thread, narrow levels, and few regions."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_rcnn, "PROPOSALS", 20)
        patch.setattr(mask_rcnn, "HIDDEN", 64)
        patch.setattr(detectors, "PAPER_CHANNELS", 32)
        yield


def images(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lively(name, **options):
    """A detector in eval mode with statistics and predictions that differ from place to place."""
    torch.manual_seed(0)
    model = build(ModelSpec(name=name, **{"num_classes": 3, "image_size": (64, 96)} | options))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for key, parameter in model.named_parameters():
        if key.startswith("head.") and parameter.ndim > 1 and "bn" not in key:
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        if key.endswith("cls_logits.bias"):
            nn.init.constant_(parameter, -1)
    return model.eval()


def targets(*counts, size=(64, 96)):
    generator = torch.Generator().manual_seed(2)
    found = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 40
        found.append(
            {
                "boxes": torch.cat((corner, corner + 4 + torch.rand(count, 2, generator=generator) * 20), 1),
                "labels": torch.randint(3, (count,), generator=generator),
                "masks": torch.randint(2, (count, *size), generator=generator, dtype=torch.uint8),
            }
        )
    return found


def same(found, expected):
    """Equal up to rounding, whatever the order of detections whose scores are."""
    for boxes, scores, labels, other_boxes, other_scores, other_labels in zip(
        *found[:3], *expected[:3], strict=True
    ):
        torch.testing.assert_close(scores, other_scores, rtol=1e-3, atol=1e-4)
        near = (scores[:, None] - other_scores).abs() < 1e-3
        alike = ((boxes[:, None] - other_boxes).abs() < 0.1).all(2) & (labels[:, None] == other_labels)
        assert (near & alike).any(1).float().mean() > 0.98


@pytest.mark.parametrize("name", [*ON_EVERY_BACKBONE, *PAPERS])
def test_every_detector_is_built_with_levels_and_heads_that_fit(name):
    with torch.device("meta"):
        model = build(ModelSpec(name=name, num_classes=80, image_size=(640, 640))).eval()
        levels = model.neck(model.forward_features(torch.zeros(1, 3, 256, 320)))
    sizes = [(-(-256 // s), -(-320 // s)) for s in model.neck.strides]
    assert [tuple(level.shape[2:]) for level in levels] == sizes
    assert len({level.shape[1] for level in levels}) == 1
    assert name in registered_models("detect")
    assert model.task == "detect"
    assert model.starts_from == (model.backbone.spec.name,)
    assert name.endswith(model.backbone.spec.name)
    assert all(any(key.startswith(prefix) for key in model.state_dict()) for prefix in model.head_prefixes)


@EVERY_KIND
@torch.no_grad()
def test_detections_are_as_the_manifest_says(name):
    model = lively(name)
    boxes, scores, labels, *masks = model(images(2, 3, 64, 96))
    count = scores.shape[1]
    assert boxes.shape == (2, count, 4)
    assert labels.shape == (2, count)
    assert labels.dtype == torch.int64
    assert (scores > 0).any(1).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (scores.diff(dim=1) <= 0).all()
    assert ((labels >= 0) & (labels < 3)).all()
    assert (boxes >= 0).all()
    assert (boxes[..., 0::2] <= 96).all()
    assert (boxes[..., 1::2] <= 64).all()
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert [tuple(m.shape) for m in masks] == [(2, count, 28, 28)] * name.startswith("mask_rcnn")


@EVERY_KIND
@torch.no_grad()
def test_company_in_the_batch_and_memory_layout_do_not_matter(name):
    model, x_BCHW = lively(name), images(3, 3, 64, 96)
    together = model(x_BCHW)
    alone = [torch.cat(values) for values in zip(*(model(x_BCHW[i : i + 1]) for i in range(3)), strict=True)]
    same(alone, together)
    last = model.to(memory_format=torch.channels_last)(x_BCHW.to(memory_format=torch.channels_last))
    same(last, together)


@EVERY_KIND
@torch.no_grad()
def test_any_image_size(name):
    model = lively(name)
    for height, width in ((64, 64), (65, 131), (model.min_image_size, model.min_image_size)):
        boxes, scores, _, *_ = model(images(1, 3, height, width))
        assert torch.isfinite(boxes).all()
        assert torch.isfinite(scores).all()
    with pytest.raises(ConfigError, match=r"expected images of shape .*, got"):
        model(images(1, 3, model.min_image_size - 1, 64))
    with pytest.raises(ConfigError, match=r"expected images of shape .*, got"):
        model(images(1, 4, 64, 64))


@EVERY_KIND
def test_the_gradient_reaches_every_parameter(name):
    model = lively(name).train()
    if name.startswith("mask_rcnn"):  # which of the anchors learn is drawn at random
        model.head.propose.fg_bg_sampler.batch_size_per_image = 100_000
    x_BCHW = images(2, 3, 128, 192)
    losses = model(x_BCHW, targets(40, 30, size=(128, 192)))
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@EVERY_KIND
def test_pictures_without_objects_can_be_trained_on(name):
    model = lively(name).train()
    losses = model(images(2, 3, 64, 96), targets(0, 0))
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@EVERY_KIND
def test_targets_are_needed_and_checked(name):
    model = lively(name).train()
    with pytest.raises(ConfigError, match="targets: expected one for each of the 1 images"):
        model(images(1, 3, 64, 96))
    wrong = targets(2)
    wrong[0]["labels"][1] = 3
    with pytest.raises(DataError, match=r"image 0: object 1: expected a label in 0\.\.2, got 3"):
        model(images(1, 3, 64, 96), wrong)


@EVERY_KIND
@torch.no_grad()
def test_a_folded_detector_finds_the_same(name):
    model = lively(name)
    parameters = sum(p.numel() for p in model.parameters())
    before = copy.deepcopy(model.state_dict())
    folded = fold(model)
    x_BCHW = images(2, 3, 64, 96)
    same(folded(x_BCHW), model(x_BCHW))
    assert sum(p.numel() for p in folded.parameters()) < parameters
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not any("one_to_many" in key for key in folded.state_dict())


@EVERY_KIND
@torch.no_grad()
def test_the_spec_rebuilds_the_detector(name):
    model = lively(name, num_classes=5, in_chans=2)
    twin = build(from_mapping(ModelSpec, to_mapping(model.spec))).eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    x_BCHW = images(1, 2, 64, 96)
    assert all(torch.equal(a, b) for a, b in zip(twin(x_BCHW), model(x_BCHW), strict=True))
