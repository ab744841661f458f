"""Folding: the same function with fewer operations, idempotent, refusing what it cannot fold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vitesse.catalogue import facts
from vitesse.errors import ExportError
from vitesse.export import fold
from vitesse.layers import ConvNorm, NormLinear, Residual
from vitesse.models import Backbone, build, registered_models
from vitesse.spec import ModelSpec

Randomise = Callable[..., nn.Module]

FOLDED_PARAMS = {
    "efficientvit_m0": 2_334_916,
    "efficientvit_m1": 2_964_256,
    "efficientvit_m2": 4_168_338,
    "efficientvit_m3": 6_875_890,
    "efficientvit_m4": 8_776_340,
    "efficientvit_m5": 12_436_260,
    "shvit_s1": 6_308_660,
    "shvit_s2": 11_453_508,
    "shvit_s3": 14_210_010,
    "shvit_s4": 16_546_248,
}

LARGE = ("efficientvit_b3", "efficientvit_l2", "efficientvit_l3", "vit_base_patch16", "vit_base_patch16_d9")
FOLDABLE = [
    name
    for name in registered_models()
    if facts(name).family != "multiplex" and "patch4" not in name and name not in LARGE
]
"""In multiplexed ViTs there is nothing to fold; `test_multiplex` exports them. Large ones have the parts of
smaller ones."""


def difference(one: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return (one(x) - other(x)).abs().max().item()


@pytest.mark.parametrize("name", FOLDABLE)
@pytest.mark.parametrize("distilled", [False, True])
def test_a_folded_model_computes_the_same(
    name: str, distilled: bool, settled: Callable[..., Backbone]
) -> None:
    model = settled(name, (96, 96), num_classes=1000, distilled=distilled)
    modules = repr(model)
    folded = fold(model)
    x_BCHW = torch.randn(2, 3, 96, 96)
    assert difference(folded, model, x_BCHW) <= 1e-4
    assert model(x_BCHW).std(0).mean() > 0.05, "the logits say something of the picture"
    assert not [m for m in folded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert repr(model) == modules, "the model itself must stay as it was"
    twice = fold(folded)
    assert all(torch.equal(a, b) for a, b in zip(folded.parameters(), twice.parameters(), strict=True))
    assert difference(twice, folded, x_BCHW) == 0


@pytest.mark.parametrize("name", ["efficientvit_m0", "shvit_s1", "efficientvit_b0", "vit_tiny_patch16"])
def test_a_folded_model_runs_in_half_precision(name: str, randomise: Randomise) -> None:
    folded = fold(randomise(build(ModelSpec(name=name, image_size=(96, 96)))).eval())
    x_BCHW = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected_BK, logits_BK = folded(x_BCHW), folded.bfloat16()(x_BCHW.bfloat16())
    assert logits_BK.dtype == torch.bfloat16
    assert torch.cosine_similarity(expected_BK, logits_BK.float()).min() > 0.9


@pytest.mark.parametrize("name", FOLDED_PARAMS)
def test_folded_parameters_are_those_of_the_reference(name: str) -> None:
    folded = fold(build(ModelSpec(name=name)))
    assert sum(p.numel() for p in folded.parameters()) == FOLDED_PARAMS[name]


def test_a_skip_around_a_depthwise_convolution_goes_into_its_kernel(randomise: Randomise) -> None:
    block = nn.Sequential(Residual(randomise(ConvNorm(8, 8, 3, groups=8)), drop_path=0.3)).eval()  # type: ignore[arg-type]
    folded = fold(block)
    assert isinstance(folded[0], nn.Conv2d)  # type: ignore[index]
    assert difference(folded, block, torch.randn(2, 8, 9, 11)) <= 1e-5


@pytest.mark.parametrize(
    "branch",
    [
        ConvNorm(8, 8),
        ConvNorm(8, 8, 3),
        ConvNorm(8, 8, 3, groups=4),
        nn.Sequential(ConvNorm(8, 8, 3, groups=8)),
    ],
)
def test_other_skips_stay(branch: nn.Module, randomise: Randomise) -> None:
    block = Residual(randomise(branch)).eval()
    folded = fold(block)
    assert isinstance(folded, Residual)
    assert difference(folded, block, torch.randn(2, 8, 6, 6)) <= 1e-5


def test_norm_before_linear_folds(randomise: Randomise) -> None:
    pair = randomise(NormLinear(16, 5)).eval()
    folded = fold(pair)
    assert isinstance(folded, nn.Linear)
    assert difference(folded, pair, torch.randn(7, 16)) <= 1e-5


def test_a_training_model_is_folded_as_in_evaluation(randomise: Randomise) -> None:
    model = randomise(build(ModelSpec(name="efficientvit_m0", image_size=(64, 64), drop_path_rate=0.5)))
    folded = fold(model.train())
    assert model.training
    assert difference(folded, model.eval(), torch.randn(1, 3, 64, 64)) <= 1e-4


def test_a_stray_normalisation_is_refused_by_name() -> None:
    with pytest.raises(ExportError, match="1: expected every BatchNorm beside"):
        fold(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_named(value: float) -> None:
    pair = nn.Sequential(ConvNorm(3, 4))
    pair[0].bn.running_mean[2] = value  # type: ignore[index]
    with pytest.raises(ExportError, match=r"0.bias: not finite after folding"):
        fold(pair)
