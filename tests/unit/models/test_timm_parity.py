"""Our M0-M5 compute what timm's compute, through the key map both ways."""

from __future__ import annotations

import pytest
import torch

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


@pytest.mark.parametrize("name", [name for name in registered_models() if name.startswith("efficientvit_m")])
def test_logits_equal_timms_both_ways(name, timm, randomise):
    theirs = randomise(timm.create_model(name))
    ours = build(ModelSpec(name=name))
    report = load_weights(ours, theirs.state_dict())
    assert (report.naming, report.missing, report.unexpected, report.resampled) == ("timm", (), (), ())
    assert difference(ours, theirs, (224, 224)) <= TOLERANCE

    theirs_again = timm.create_model(name)
    theirs_again.load_state_dict(keymap_for(name).write(randomise(ours, 2).state_dict(), "timm"), strict=True)
    assert difference(ours, theirs_again, (224, 224)) <= TOLERANCE


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
