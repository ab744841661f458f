"""The catalogue agrees with the built models and with the published tables."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitesse import catalogue
from vitesse.errors import UnknownModelError, WeightsError
from vitesse.models import build, registered_models
from vitesse.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

PUBLISHED = {  # M MACs, M parameters, top-1, top-5 in per cent, as the authors' own tables round them
    "efficientvit_m0": (79, 2.3, 63.2, 85.2),
    "efficientvit_m1": (167, 3.0, 68.4, 88.7),
    "efficientvit_m2": (201, 4.2, 70.8, 90.2),
    "efficientvit_m3": (263, 6.9, 73.4, 91.4),
    "efficientvit_m4": (299, 8.8, 74.3, 91.8),
    "efficientvit_m5": (522, 12.4, 77.1, 93.4),
    "shvit_s1": (241, 6.3, 72.8, 91.0),
    "shvit_s2": (366, 11.4, 75.2, 92.4),
    "shvit_s3": (601, 14.2, 77.4, 93.4),
    "shvit_s4": (986, 16.5, 79.4, 94.5),
    "efficientvit_b1": (520, 9.1, 79.390, 94.346),
    "efficientvit_b2": (1600, 24, 82.100, 95.782),
    "efficientvit_b3": (4000, 49, 83.468, 96.356),
    "efficientvit_l1": (5300, 53, 84.484, 96.862),
    "efficientvit_l2": (6900, 64, 85.050, 97.090),
    "efficientvit_l3": (28000, 246, 85.814, 97.198),
    "vit_tiny_patch16": (1258, 5, 72.2, 91.1),
    "vit_small_patch16": (4608, 22, 79.9, 95.0),
    "vit_base_patch16": (17582, 86, 81.8, 95.6),
}
EVERY_MODEL = pytest.mark.parametrize("facts", catalogue.models(), ids=lambda facts: facts.name)
CLASSIFIERS = [facts for facts in catalogue.models() if facts.task == "classify"]
EVERY_CLASSIFIER = pytest.mark.parametrize("facts", CLASSIFIERS, ids=lambda facts: facts.name)


def test_every_registered_model_is_in_the_catalogue_and_no_other():
    assert sorted(facts.name for facts in catalogue.models()) == list(registered_models(None))
    for task in {facts.task for facts in catalogue.models()}:
        of_task = sorted(facts.name for facts in catalogue.models() if facts.task == task)
        assert of_task == list(registered_models(task))


CHOOSE_BY_CONTENT = ("retinanet", "mask_rcnn")
"""Families that suppress boxes by their values, so that they need real ones to run."""


def counted(facts, device):
    """Parameters, and multiply-accumulates of one image."""
    with torch.device(device), torch.no_grad(), FlopCounterMode(display=False) as counter:
        spec = ModelSpec(name=facts.name, image_size=facts.image_size, num_classes=facts.num_classes)
        model = build(spec).eval()
        if device != "meta" or facts.family not in CHOOSE_BY_CONTENT:
            model(torch.zeros(model.mux_width, 3, *facts.image_size))
    params = sum(parameter.numel() for parameter in model.parameters())
    return params, counter.get_total_flops() // (2 * model.mux_width)


@EVERY_MODEL
def test_size_and_cost_as_measured(facts):
    params, macs = counted(facts, "meta")
    assert params == facts.params
    assert macs == facts.macs or facts.family in CHOOSE_BY_CONTENT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_efficientvit_m4", "mask_rcnn_efficientvit_m4"])
def test_cost_of_detectors_that_choose_by_content(name):
    facts = catalogue.facts(name)
    assert counted(facts, "cpu")[1] == facts.macs


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_as_published(name):
    facts = catalogue.facts(name)
    macs, params, top1, top5 = PUBLISHED[name]
    assert facts.macs / 1e6 == pytest.approx(macs, rel=0.016)  # the tables round to two or three digits
    assert facts.params / 1e6 == pytest.approx(params, rel=0.03 if params > 6 else 0.15)
    assert (facts.top1, facts.top5) == pytest.approx((top1 / 100, top5 / 100))


SEGMENTATION = {  # G MACs, parameters, mIoU in per cent; as published, parameters counted on its definitions
    "efficientvit_seg_b0_cityscapes": (4.4, 706_691, 75.653),
    "efficientvit_seg_b1_cityscapes": (25, 4_803_443, 80.547),
    "efficientvit_seg_b2_cityscapes": (74, 15_323_779, 82.073),
    "efficientvit_seg_b3_cityscapes": (179, 39_603_155, 83.016),
    "efficientvit_seg_l1_cityscapes": (282, 40_242_227, 82.716),
    "efficientvit_seg_l2_cityscapes": (396, 52_607_923, 83.228),
    "efficientvit_seg_b1_ade20k": (3.1, 4_791_414, 42.840),
    "efficientvit_seg_b2_ade20k": (9.1, 15_293_382, 45.941),
    "efficientvit_seg_b3_ade20k": (22, 39_546_198, 49.013),
    "efficientvit_seg_l1_ade20k": (36, 40_409_526, 49.191),
    "efficientvit_seg_l2_ade20k": (45, 51_462_454, 50.702),
}


def test_segmentation_as_published():
    assert SEGMENTATION.keys() == set(registered_models("segment"))
    for name, (macs, params, miou) in SEGMENTATION.items():
        facts = catalogue.facts(name)
        digits = 1 if macs < 10 else 0
        assert (round(facts.macs / 1e9, digits), facts.params) == (macs, params), name
        assert facts.accuracy == facts.miou == pytest.approx(miou / 100), name
        assert (facts.top1, facts.task) == (None, "segment")
        wide = (19, (1024, 2048), "Cityscapes")
        shape = wide if name.endswith("cityscapes") else (150, (512, 512), "ADE20K")
        assert (facts.num_classes, facts.image_size, facts.dataset) == shape


def test_macs_as_the_reference_counts_them():
    """Figures in M that were counted apart from this code."""
    counted = {
        "shvit_s2": 365.4,
        "shvit_s3": 600.6,
        "shvit_s4": 986.2,
        "efficientvit_b1": 519,
        "efficientvit_b0": 100.2,
    }
    counted |= {"efficientvit_l1": 5258, "efficientvit_l3": 27590, "efficientvit_b3": 3954}
    for name, macs in counted.items():
        assert catalogue.facts(name).macs / 1e6 == pytest.approx(macs, rel=1e-3), name


@EVERY_CLASSIFIER
def test_weights_are_named_and_licensed(facts):
    assert (facts.accuracy is None) == (facts.source == "")
    assert facts.weights or facts.pickle or facts.accuracy is None
    for weights in facts.weights:
        assert weights.hub_id.startswith("timm/")
        assert weights.licence in ("MIT", "Apache-2.0")
        assert weights.source
        assert weights.top1 < weights.top5 < 1
        assert 0 < weights.crop_pct <= 1
    if facts.weights:
        default = facts.weights[0]
        assert default.image_size == facts.image_size
        assert default.top1 == pytest.approx(facts.top1, abs=0.002)
        assert not default.distilled


def test_timm_knows_the_weights_as_we_do(timm):
    for facts in CLASSIFIERS:
        for weights in facts.weights:
            config = timm.get_pretrained_cfg(weights.hub_id.removeprefix("timm/"))
            assert config.hf_hub_id == weights.hub_id
            assert (config.input_size[1:], config.crop_pct) == (weights.image_size, weights.crop_pct)
            assert (config.mean, config.std) == (IMAGENET_MEAN, IMAGENET_STD)
            assert (config.num_classes, config.license) == (weights.num_classes, weights.licence.lower())


def test_a_name_resolves_with_and_without_tag():
    model, weights = catalogue.resolve("efficientvit_m5.r224_in1k")
    assert (model.name, weights.tag) == ("efficientvit_m5", "r224_in1k")
    assert catalogue.resolve("efficientvit_m5") == (model, weights)


@pytest.mark.parametrize(
    ("name", "nearest"), [("efficientvit_m6", "efficientvit_m5"), ("efficientvit_m5.r224", "r224_in1k")]
)
def test_an_unknown_name_lists_the_nearest(name, nearest):
    with pytest.raises(UnknownModelError, match=nearest):
        catalogue.resolve(name)
    with pytest.raises(UnknownModelError):
        catalogue.facts(name)


def test_an_architecture_without_weights_says_so():
    with pytest.raises(WeightsError, match="efficientvit_l0: no weights of it were published"):
        catalogue.resolve("efficientvit_l0")
    assert catalogue.facts("efficientvit_l0").params == 42_422_280


def test_weights_in_a_pickle_file_are_told_their_way():
    name = "efficientvit_seg_l1_ade20k"
    place = f"fetch {name}.pt from huggingface.co/han-cai/efficientvit-seg"
    with pytest.raises(
        WeightsError, match=f"{name}: .* {place} and run `vitesse convert {name}.pt --model {name}"
    ):
        catalogue.resolve(name)


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        ({"pattern": "shvit_s?", "max_params": 12e6}, ["shvit_s1", "shvit_s2"]),
        ({"family": "vit", "min_top1": 0.75}, ["vit_small_patch16", "vit_base_patch16"]),
        ({"max_macs": 91.5e6}, ["efficientvit_m0", "efficientvit_b0_single_scale"]),
        ({"max_macs": 100e6, "pretrained": True}, ["efficientvit_m0"]),
        ({"max_macs": 100e6, "min_top1": 0.01}, ["efficientvit_m0"]),
        ({"min_top1": 0.99}, []),
        (
            {"task": "segment", "max_macs": 4.4e9},
            [f"efficientvit_seg_b{x}" for x in ("0_cityscapes", "1_ade20k")],
        ),
    ],
)
def test_conditions_select(conditions, names):
    assert [facts.name for facts in catalogue.select(**conditions)] == names


def test_an_unknown_family_lists_the_nearest():
    with pytest.raises(UnknownModelError, match="did you mean shvit"):
        catalogue.select(family="shvi")
