"""Detectors: frozen statistics, windows, other classes, and the names of the papers' checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitesse.errors import ConfigError, WeightsError
from vitesse.models import build
from vitesse.models.efficientvit_msra import CascadedGroupAttention
from vitesse.spec import ModelSpec
from vitesse.weights import load_weights
from vitesse.weights.keymaps import MMDET, ORIGINAL, keymap_for

Randomise = Callable[..., nn.Module]


def detector(name: str, **options: int) -> nn.Module:
    return build(ModelSpec(name=name, image_size=(96, 96), **{"num_classes": 80, **options}))  # type: ignore[return-value]


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "batches" in k}


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_norms_of_the_backbone_keep_their_statistics(frozen: bool) -> None:
    model = detector("fcos_e2e_efficientvit_b0", num_classes=2)
    model.freeze_norm = frozen
    before = statistics(model.train())
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    model(torch.randn(2, 3, 64, 64), [empty] * 2)
    moved = {key for key, value in statistics(model).items() if not torch.equal(value, before[key])}
    assert any(key.startswith("neck.") for key in moved)
    assert any(key.startswith("backbone.") for key in moved) == (not frozen)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("retinanet_efficientvit_b0", True),
        ("mask_rcnn_efficientvit_b0", True),
        ("fcos_e2e_efficientvit_b0", False),
    ],
)
def test_the_papers_freeze_statistics_from_the_start(name: str, frozen: bool) -> None:
    norms = [m for m in detector(name).backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.training for norm in norms} == {not frozen}


@pytest.mark.parametrize("image_size", [(320, 320), (384, 512), (800, 1344)])
def test_windows_are_seven_cells_whatever_the_size(image_size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = build(ModelSpec(name="retinanet_efficientvit_m4", image_size=image_size))
    tables = [m.attention_bias_ARS.shape for m in model.modules() if isinstance(m, CascadedGroupAttention)]
    assert len(tables) == 6
    assert set(tables) == {(4, 7, 7)}


def test_a_distillation_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected distilled=False, a detector has no distillation head"):
        build(ModelSpec(name="fcos_e2e_efficientvit_m0", distilled=True))


@pytest.mark.parametrize(
    "name", ["fcos_e2e_efficientvit_b0", "retinanet_efficientvit_b0", "mask_rcnn_shvit_s1"]
)
def test_other_classes_start_with_a_fresh_classifier(name: str) -> None:
    source, model = detector(name, num_classes=2), detector(name, num_classes=5)
    with pytest.raises(WeightsError, match="head='new' for a fresh one"):
        load_weights(model, source.state_dict())
    report = load_weights(model, source.state_dict(), head="new")
    assert report.fresh
    assert set(report.fresh) == {key for key in model.state_dict() if key.startswith(model.head_prefixes)}
    kept = {key for key, value in model.state_dict().items() if torch.equal(value, source.state_dict()[key])}
    assert kept == model.state_dict().keys() - set(report.fresh)


def shapes(prefix: str, out_chans: int, in_chans: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": (out_chans, in_chans, kernel, kernel), f"{prefix}.bias": (out_chans,)}


def papers_neck(widths: tuple[int, ...], finer: int) -> dict[str, tuple[int, ...]]:
    names: dict[str, tuple[int, ...]] = {}
    for i, width in enumerate(widths):
        names |= shapes(f"neck.lateral_convs.{i}.conv", 256, width, 1)
        names |= shapes(f"neck.fpn_convs.{i}.conv", 256, 256, 3)
    for i in range(finer):
        names |= shapes(f"neck.extra_trans_convs.{i}.conv", 256, 256, 2)
        names |= shapes(f"neck.extra_fpn_convs.{i}.conv", 256, 256, 3)
    return names


def papers_retinanet() -> dict[str, tuple[int, ...]]:
    names = papers_neck((128, 256, 384), 1) | shapes("neck.fpn_convs.3.conv", 256, 384, 3)
    for i in range(4):
        for tower in ("cls", "reg"):
            names |= shapes(f"bbox_head.{tower}_convs.{i}.conv", 256, 256, 3)
    return names | shapes("bbox_head.retina_cls", 720, 256, 3) | shapes("bbox_head.retina_reg", 36, 256, 3)


def papers_mask_rcnn() -> dict[str, tuple[int, ...]]:
    names = papers_neck((224, 336, 448), 2) | shapes("rpn_head.rpn_conv", 256, 256, 3)
    names |= shapes("rpn_head.rpn_cls", 3, 256, 1) | shapes("rpn_head.rpn_reg", 12, 256, 1)
    for layer, (rows, columns) in {
        "shared_fcs.0": (1024, 256 * 49),
        "shared_fcs.1": (1024, 1024),
        "fc_cls": (81, 1024),
        "fc_reg": (320, 1024),
    }.items():
        names |= {
            f"roi_head.bbox_head.{layer}.weight": (rows, columns),
            f"roi_head.bbox_head.{layer}.bias": (rows,),
        }
    for i in range(4):
        names |= shapes(f"roi_head.mask_head.convs.{i}.conv", 256, 256, 3)
    return (
        names
        | shapes("roi_head.mask_head.upsample", 256, 256, 2)
        | shapes("roi_head.mask_head.conv_logits", 80, 256, 1)
    )


@pytest.mark.parametrize(
    ("name", "papers"),
    [("retinanet_efficientvit_m4", papers_retinanet()), ("mask_rcnn_shvit_s4", papers_mask_rcnn())],
)
def test_the_papers_checkpoints_by_their_names(name: str, papers: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        model = detector(name)
    backbone = name.removeprefix("retinanet_").removeprefix("mask_rcnn_")
    original = keymap_for(backbone).write(
        {
            key.removeprefix("backbone."): value
            for key, value in model.state_dict().items()
            if key.startswith("backbone.")
        },
        ORIGINAL,
    )
    theirs = {key: torch.empty(shape) for key, shape in papers.items()}
    theirs |= {f"backbone.{key}": value for key, value in original.items()}
    keymap = keymap_for(name)
    assert keymap.detect(theirs, model.state_dict()) == MMDET
    found = {ours: value.shape for ours, _, value in keymap.read(theirs, MMDET)}
    assert found == {key: value.shape for key, value in model.state_dict().items()}
    back = keymap.write(model.state_dict(), MMDET)
    assert {key: value.shape for key, value in back.items()} == {
        key: value.shape for key, value in theirs.items() if not key.endswith("attention_bias_idxs")
    }


def test_finer_levels_of_the_papers_are_counted_from_the_finest_but_made_from_the_coarsest() -> None:
    to_ours = keymap_for("mask_rcnn_shvit_s4").renames[MMDET][0]
    assert to_ours("neck.extra_trans_convs.0.conv.weight") == "neck.upsamples.0.weight"  # stride 16 to 8
    assert to_ours("neck.extra_fpn_convs.0.conv.weight") == "neck.outputs.0.weight"  # stride 4
    assert to_ours("neck.fpn_convs.0.conv.weight") == "neck.outputs.2.weight"  # stride 16
    assert re.fullmatch(r"neck\.outputs\.1\.bias", to_ours("neck.extra_fpn_convs.1.conv.bias"))
