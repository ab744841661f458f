"""Parameter groups, clipping and the moving average, against float64 formulas, torch and timm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from vitesse.models import create_model
from vitesse.train import train
from vitesse.train.optimizer import KeptBuffers, adamw, clip, moving_average, update_average
from vitesse.train.recipe import Recipe
from vitesse.train.schedule import ema_decay_at

SMALL = {"num_classes": 3}
MODELS = {
    "efficientvit_m0": {"distilled": True},
    "shvit_s1": {"distilled": True},
    "efficientvit_b0": {"distilled": True},
    "efficientvit_l1": {},
    "vit_tiny_patch4": {"distilled": True, "image_size": 16},
    "concatplexer_tiny_patch4_n2": {"image_size": 16},
    "imagemux_tiny_patch4_n2": {"image_size": 16},
}


def decayed_names(model: nn.Module, recipe: Recipe) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = adamw(model, recipe).param_groups
    seen = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(seen) == sorted(names), "every parameter is in one group"
    assert {group["weight_decay"] for group in groups} == {recipe.weight_decay, 0.0}
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_of_convolutions_and_linear_layers_decay_and_nothing_else(name: str) -> None:
    model = create_model(name, **SMALL | MODELS[name])  # type: ignore[arg-type]
    layers = (nn.Conv2d, nn.Linear)
    expected = {f"{at}.weight" for at, module in model.named_modules() if isinstance(module, layers)}
    assert decayed_names(model, Recipe(weight_decay=0.1)) == expected


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        *((name, name) for name in ("efficientvit_m0", "shvit_s1", "efficientvit_b0", "efficientvit_l1")),
        ("vit_tiny_patch16", "deit_tiny_patch16_224"),
    ],
)
def test_as_much_decays_as_timm_lets_decay(name: str, twin: str, timm: ModuleType) -> None:
    from timm.optim import param_groups_weight_decay

    theirs = timm.create_model(twin)
    kept = theirs.no_weight_decay() if hasattr(theirs, "no_weight_decay") else ()
    free, decayed = param_groups_weight_decay(theirs, 0.1, no_weight_decay_list=kept)
    assert free["weight_decay"] == 0
    model = create_model(name)
    own = dict(model.named_parameters())
    ours = sorted(own[key].numel() for key in decayed_names(model, Recipe(weight_decay=0.1)))
    assert ours == sorted(parameter.numel() for parameter in decayed["params"])


class Small(nn.Module):
    """A convolution, a norm, a linear layer and a table, with weights of very different sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.bn, self.linear = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 4)
        self.table = nn.Parameter(torch.randn(1, 6, 2))
        with torch.no_grad():
            self.linear.weight[0] *= 1e-6  # below the least norm that counts
            self.linear.weight[1] *= 100
        for parameter in self.parameters():
            parameter.grad = torch.randn_like(parameter)
        assert self.linear.weight.grad is not None
        self.linear.weight.grad[2] = 0
        self.linear.weight.grad[1] *= 1e-3


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def norm_of(gradients: dict[str, Tensor]) -> float:
    return float(np.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients.values())))


def test_adaptive_clipping_is_the_formula_of_its_paper() -> None:
    """arXiv 2102.06171, equation 3; a unit is a row of a weight, and a vector as a whole."""
    model, recipe = Small(), Recipe(clip_grad=0.02, clip_mode="agc")
    before = gradients(model)
    norm = clip(Accelerator(cpu=True), model, recipe)
    assert norm.item() == pytest.approx(norm_of(before), rel=1e-5)
    clipped = 0
    for name, parameter in model.named_parameters():
        units = len(parameter) if parameter.ndim > 1 else 1
        weight_UP = parameter.detach().double().reshape(units, -1).numpy()
        gradient_UP = before[name].double().reshape(units, -1).numpy()
        largest_U = 0.02 * np.maximum(np.linalg.norm(weight_UP, axis=1), 1e-3)
        norms_U = np.linalg.norm(gradient_UP, axis=1)
        clipped += int((norms_U > largest_U).sum())
        share_U = np.where(norms_U > largest_U, largest_U / np.maximum(norms_U, 1e-300), 1.0)
        assert parameter.grad is not None
        found_UP = parameter.grad.double().reshape(units, -1).numpy()
        np.testing.assert_allclose(found_UP, gradient_UP * share_U[:, None], rtol=1e-5, atol=1e-12)
    assert 0 < clipped < 13


@pytest.mark.parametrize("largest", [0.5, 1e6, 0.0])
def test_clipping_by_norm_is_torch_s(largest: float) -> None:
    model, twin = Small(), Small()
    before = norm_of(gradients(model))
    norm = clip(Accelerator(cpu=True), model, Recipe(clip_grad=largest))
    assert norm.item() == pytest.approx(before, rel=1e-5)
    if largest:
        nn.utils.clip_grad_norm_(twin.parameters(), largest)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, gradients(twin)[name])


@pytest.mark.parametrize("warmup", ["power", "exponential", "none"])
def test_the_average_follows_weights_and_statistics(warmup: str) -> None:
    model, recipe = Small(), Recipe(ema=0.9, ema_warmup=warmup, ema_ramp=10)  # type: ignore[arg-type]
    average = moving_average(model, recipe)
    assert average is not None
    expected = {k: v.double() for k, v in model.state_dict().items() if v.is_floating_point()}
    for step in range(50):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model.bn(torch.randn(4, 5, 2, 2))  # moves the statistics and counts the batch
        update_average(average, model, recipe, step)
        decay, now = ema_decay_at(recipe, step), model.state_dict()
        expected = {k: decay * v + (1 - decay) * now[k].double() for k, v in expected.items()}
    found = average.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-5)
    assert found["bn.num_batches_tracked"] == 50
    assert not average.training


def test_off_means_no_average() -> None:
    assert moving_average(Small(), Recipe(ema=0.0)) is None


@pytest.mark.parametrize("evaluate", [True, False])
def test_the_model_is_the_average_or_has_it_beside(
    evaluate: bool, tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    data = paint_classes(tmp_path / "data", per_class=8)
    overrides = {
        **{"image_size": 32, "batch_size": 6, "epochs": 1, "workers": 0, "init": "", "trackers": []},
        **{"ema": 0.9, "ema_warmup": "none", "evaluate_ema": evaluate},
    }
    train(data, model="efficientvit_m0", out=tmp_path / "run", overrides=overrides)
    folder = tmp_path / "run" / "checkpoints" / "last"
    state, model = load_file(folder / "state.safetensors"), load_file(folder / "model.safetensors")
    kept = "ema." if evaluate else "model."
    assert all(torch.equal(value, state[kept + name]) for name, value in model.items())
    assert any(not torch.equal(state["ema." + name], state["model." + name]) for name in model)
    beside = folder / "ema.safetensors"
    assert beside.exists() != evaluate
    if not evaluate:
        average = load_file(beside)
        assert average.keys() == model.keys()
        assert all(torch.equal(value, state["ema." + name]) for name, value in average.items())


def test_buffers_are_kept_and_put_back() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    kept = KeptBuffers(model)
    kept.keep()
    before = copy.deepcopy(model.state_dict())
    model(torch.full((2, 3, 4, 4), float("nan")))
    assert not model[1].running_mean.isfinite().all()
    kept.restore()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
