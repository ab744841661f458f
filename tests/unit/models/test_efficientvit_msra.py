"""M0-M5 as built: initial values, stochastic depth, heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitesse.models import build
from vitesse.spec import ModelSpec


def test_initial_values():
    model = build(ModelSpec(name="efficientvit_m0"))
    gains = {
        name: module.weight for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)
    }
    for name, gain in gains.items():
        in_block = ".blocks." in name and (".dw" in name or ".proj." in name)
        starts_silent = in_block or name.endswith("branch.project.bn")
        assert (gain == (0 if starts_silent else 1)).all(), name
    assert any((gain == 0).all() for gain in gains.values())
    assert all((p == 0).all() for name, p in model.named_parameters() if "attention_bias" in name)
    head = model.head.classifier.linear
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (head.bias == 0).all()


def test_stochastic_depth_rises_linearly_to_the_last_block():
    model = build(ModelSpec(name="efficientvit_m0", drop_path_rate=0.5))
    rates = [block.mixer.drop_path for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_distilled_pair_in_training_mean_in_evaluation(randomise):
    model = randomise(build(ModelSpec(name="efficientvit_m0", num_classes=5, distilled=True)))
    pooled_BC = torch.randn(4, 192, 1, 1)
    pair = model.head.train()(pooled_BC)
    assert isinstance(pair, tuple)
    assert [logits.shape for logits in pair] == [(4, 5), (4, 5)]
    head = model.head.eval()
    separate = [part(pooled_BC[..., 0, 0]) for part in (head.classifier, head.classifier_dist)]
    assert not torch.allclose(*separate)
    torch.testing.assert_close(head(pooled_BC), (separate[0] + separate[1]) / 2)


@pytest.mark.parametrize(("image_size", "tables"), [(224, (7, 7, 4)), (256, (7, 7, 4)), (384, (12, 12, 6))])
def test_bias_tables_are_as_large_as_the_attended_map(image_size, tables):
    model = build(ModelSpec(name="efficientvit_m0", image_size=(image_size, image_size)))
    shapes = [stage.blocks[0].mixer.branch.attention.attention_bias_ARS.shape for stage in model.stages]
    assert shapes == [(4, side, side) for side in tables]
