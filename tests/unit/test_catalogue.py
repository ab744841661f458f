"""The catalogue agrees with the built models and with the published tables."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitesse import catalogue
from vitesse.errors import UnknownModelError
from vitesse.models import build, registered_models
from vitesse.spec import ModelSpec

PUBLISHED = {  # M MACs, M parameters, top-1, top-5 in per cent: the README table of the original release
    "efficientvit_m0": (79, 2.3, 63.2, 85.2),
    "efficientvit_m1": (167, 3.0, 68.4, 88.7),
    "efficientvit_m2": (201, 4.2, 70.8, 90.2),
    "efficientvit_m3": (263, 6.9, 73.4, 91.4),
    "efficientvit_m4": (299, 8.8, 74.3, 91.8),
    "efficientvit_m5": (522, 12.4, 77.1, 93.4),
}
EVERY_MODEL = pytest.mark.parametrize("facts", catalogue.models(), ids=lambda facts: facts.name)


def test_every_registered_model_is_in_the_catalogue_and_no_other():
    assert sorted(facts.name for facts in catalogue.models()) == list(registered_models())


@EVERY_MODEL
def test_size_and_cost_as_measured(facts):
    model = build(ModelSpec(name=facts.name, image_size=facts.image_size)).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == facts.params
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *facts.image_size))
    assert counter.get_total_flops() == 2 * facts.macs


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_as_published(name):
    facts = catalogue.facts(name)
    macs, params, top1, top5 = PUBLISHED[name]
    assert round(facts.macs / 1e6) == macs
    assert facts.params / 1e6 == pytest.approx(params, abs=0.08)  # the table gives 12.4 for M5's 12.47
    assert (facts.top1, facts.top5) == pytest.approx((top1 / 100, top5 / 100))


@EVERY_MODEL
def test_weights_are_named_and_licensed(facts):
    assert facts.source
    for weights in facts.weights:
        assert weights.hub_id == f"timm/{facts.name}.{weights.tag}"
        assert weights.licence
        assert weights.source
        assert weights.top1 == pytest.approx(facts.top1, abs=0.002)
        assert weights.top1 < weights.top5 < 1
        assert 0 < weights.crop_pct <= 1


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
