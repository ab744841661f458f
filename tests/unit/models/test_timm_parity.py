"""Our models compute what timm's compute, through the key map both ways."""

from __future__ import annotations

import pytest
import torch

from vitesse.catalogue import facts
from vitesse.models import build, registered_models
from vitesse.spec import ModelSpec
from vitesse.weights.keymaps import keymap_for
from vitesse.weights.load import load_weights

TOLERANCE = 1e-4


def difference(first, second, image_size):
    """Largest |difference| of the logits of two random images, in eval mode."""
    x_BCHW = torch.randn(2, 3, *image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (first.eval()(x_BCHW) - second.eval()(x_BCHW)).abs().max().item()


DEIT = {f"vit_{size}_patch16": f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")}
HEAVY = ("efficientvit_l2", "vit_base_patch16")
IN_TIMM = [name for name in registered_models() if facts(name).weights and name != "efficientvit_l3"]
"""`benchmarks/parity.py` compares all of them; the largest differs from the one before in numbers alone."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in IN_TIMM]
)
def test_logits_equal_timms_both_ways(name, timm, randomise):
    theirs = with_original_eps(name, randomise(timm.create_model(DEIT.get(name, name))))
    size = facts(name).image_size
    ours = build(ModelSpec(name=name, image_size=size))
    report = load_weights(ours, theirs.state_dict())
    assert (report.naming, report.missing, report.unexpected, report.resampled) == ("timm", (), (), ())
    assert difference(ours, theirs, size) <= TOLERANCE

    theirs.load_state_dict(keymap_for(name).write(randomise(ours, 2).state_dict(), "timm"), strict=True)
    assert difference(ours, theirs, size) <= TOLERANCE


def with_original_eps(name, model):
    """timm leaves one norm of the L series at 1e-5, where the original has 1e-7 everywhere."""
    if name.startswith("efficientvit_l"):
        model.head.in_conv.norm.eps = 1e-7
    return model


@pytest.mark.parametrize(("image_size", "window"), [(256, 7), (384, 12), (512, 16)])
def test_logits_equal_timms_at_higher_resolution(image_size, window, timm, randomise):
    theirs = randomise(timm.create_model("efficientvit_m0", img_size=image_size, window_size=(window,) * 3))
    ours = build(ModelSpec(name="efficientvit_m0", image_size=(image_size, image_size)))
    assert load_weights(ours, theirs.state_dict()).resampled == ()
    assert difference(ours, theirs, (image_size, image_size)) <= TOLERANCE


def test_timm_weights_load_into_the_timm_wrapper(timm, randomise):
    theirs = randomise(timm.create_model("efficientvit_m0"))
    wrapped = build(ModelSpec(name="timm:efficientvit_m0"))
    report = load_weights(wrapped, theirs.state_dict())
    assert (report.naming, report.missing, report.unexpected) == ("timm", (), ())
    assert difference(wrapped, theirs, (224, 224)) == 0


def test_a_position_table_is_fitted_to_the_wrapper(timm):
    weights = timm.create_model("deit_tiny_patch16_224").state_dict()
    wrapped = build(ModelSpec(name="timm:deit_tiny_patch16_224", image_size=(160, 160), num_classes=7))
    report = load_weights(wrapped, weights, head="new")
    assert report.resampled == ("model.pos_embed",)
    assert report.fresh == ("model.head.weight", "model.head.bias")
    assert wrapped(torch.zeros(1, 3, 160, 160)).shape == (1, 7)
