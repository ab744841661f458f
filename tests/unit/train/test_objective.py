"""The loss of a batch against float64 formulas, and gradients in parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor, nn

import vitesse.train.step
from vitesse.models import create_model
from vitesse.train import train
from vitesse.train.losses import retrieval_loss
from vitesse.train.objective import Objective
from vitesse.train.recipe import Recipe

logits = npst.arrays(np.float32, (4, 5), elements=st.floats(-20, 20, width=32))
targets = npst.arrays(np.float32, (4, 5), elements=st.floats(0, 1, width=32))
ANYTHING = torch.zeros(4, 3, 8, 8)


def log_softmax(x_BK: np.ndarray) -> np.ndarray:
    x_BK = x_BK.astype(np.float64) - x_BK.max(1, keepdims=True)
    return x_BK - np.log(np.exp(x_BK).sum(1, keepdims=True))


def cross_entropy(x_BK: np.ndarray, targets_BK: np.ndarray) -> float:
    return float(-(targets_BK.astype(np.float64) * log_softmax(x_BK)).sum(1).mean())


def binary(x_BK: np.ndarray, targets_BK: np.ndarray) -> float:
    x_BK, targets_BK = x_BK.astype(np.float64), targets_BK.astype(np.float64)
    return float((np.logaddexp(0, x_BK) - targets_BK * x_BK).mean())


FORMULAS = {"cross_entropy": cross_entropy, "bce": binary}


def always(*outputs: np.ndarray) -> Callable[..., Any]:
    """A model that answers any images with the same logits."""
    tensors = tuple(torch.from_numpy(output) for output in outputs)
    return lambda x_BCHW: tensors if len(tensors) > 1 else tensors[0]


@pytest.mark.parametrize("loss", FORMULAS)
@given(x_BK=logits, targets_BK=targets)
def test_the_label_loss_is_its_formula(loss: Any, x_BK: np.ndarray, targets_BK: np.ndarray) -> None:
    objective = Objective(Recipe(loss=loss), always(x_BK), None, None)
    found = objective(ANYTHING, torch.from_numpy(targets_BK), 0.0).item()
    assert found == pytest.approx(FORMULAS[loss](x_BK, targets_BK), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("loss", FORMULAS)
@given(x_BK=logits, average_BK=logits, targets_BK=targets)
def test_sharpness_aware_training_adds_the_average_s_opinion_late_in_the_run(
    loss: Any, x_BK: np.ndarray, average_BK: np.ndarray, targets_BK: np.ndarray
) -> None:
    """arXiv 2205.14083: the loss towards what the moving average says, as shares."""
    recipe = Recipe(loss=loss, mesa=2.5, mesa_from=0.25, ema=0.9, epochs=40)
    objective = Objective(recipe, always(x_BK), None, always(average_BK))  # type: ignore[arg-type]
    wide = average_BK.astype(np.float64)
    shares_BK = np.exp(log_softmax(wide)) if loss == "cross_entropy" else np.exp(-np.logaddexp(0, -wide))
    alone = FORMULAS[loss](x_BK, targets_BK)
    both = alone + 2.5 * FORMULAS[loss](x_BK, shares_BK)
    for epoch, expected in ((0.0, alone), (9.99, alone), (10.0, both), (39.9, both)):
        found = objective(ANYTHING, torch.from_numpy(targets_BK), epoch).item()
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_no_gradient_reaches_the_average() -> None:
    model, average = nn.Linear(2, 3), nn.Linear(2, 3)
    objective = Objective(Recipe(mesa=1.0, mesa_from=0.0, ema=0.9), model, None, average)
    objective(torch.randn(4, 2), torch.full((4, 3), 1 / 3), 0.0).backward()
    assert model.weight.grad is not None
    assert average.weight.grad is None


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("heads", [1, 2])
@given(one_BK=logits, other_BK=logits, teacher_BK=logits, targets_BK=targets, alpha=st.floats(0, 1))
def test_labels_teach_one_head_and_the_teacher_the_other(
    kind: Any,
    heads: int,
    one_BK: np.ndarray,
    other_BK: np.ndarray,
    teacher_BK: np.ndarray,
    targets_BK: np.ndarray,
    alpha: float,
) -> None:
    """DeiT, arXiv 2012.12877, equations 2 and 3, with the weight of the teacher as a share."""
    recipe = Recipe(distill=kind, distill_alpha=alpha, distill_temperature=3.0)
    outputs = (one_BK, other_BK)[:heads]
    objective = Objective(recipe, always(*outputs), always(teacher_BK), None)  # type: ignore[arg-type]
    taught_BK = outputs[-1]
    if kind == "hard":
        distance = cross_entropy(taught_BK, np.eye(5)[teacher_BK.argmax(1)])
    else:
        p_BK, q_BK = log_softmax(teacher_BK / 3.0), log_softmax(taught_BK / 3.0)
        distance = float((np.exp(p_BK) * (p_BK - q_BK)).sum(1).mean()) * 9
    expected = (1 - alpha) * cross_entropy(one_BK, targets_BK) + alpha * distance
    found = objective(ANYTHING, torch.from_numpy(targets_BK), 0.0).item()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ["efficientvit_m0", "shvit_s1", "efficientvit_b0", "vit_tiny_patch4_d9"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_each_head_of_a_distilled_model_learns_from_its_own(name: str, alpha: float) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, image_size=32, distilled=True)
    recipe = Recipe(distill="hard", distill_alpha=alpha)
    objective = Objective(recipe, model, lambda x_BCHW: torch.randn(len(x_BCHW), 3), None)  # type: ignore[arg-type]
    objective(torch.randn(2, 3, 32, 32), torch.full((2, 3), 1 / 3), 0.0).backward()
    moved = {
        name.rpartition(".")[0].removeprefix("head.").partition(".")[0]
        for name, parameter in model.named_parameters()
        if "classifier" in name and parameter.grad is not None and parameter.grad.any()
    }
    assert moved == ({"classifier_dist"} if alpha else {"classifier"})


def test_retrieval_warms_up_alone_and_then_shares_the_loss() -> None:
    torch.manual_seed(0)
    x_BK, found_BC, own_BC = torch.randn(4, 5), torch.randn(4, 6), torch.randn(4, 6)

    def forward(x_BCHW: Tensor, retrieve: bool = False) -> Any:
        return (x_BK, found_BC, own_BC) if retrieve else x_BK

    targets_BK = torch.softmax(torch.randn(4, 5), 1)
    retrieval = retrieval_loss(found_BC, own_BC).item()
    task = cross_entropy(x_BK.numpy(), targets_BK.numpy())
    objective = Objective(Recipe(retrieval_epochs=1.5, retrieval=0.25), forward, None, None)
    for epoch, expected in ((0.0, retrieval), (1.49, retrieval), (1.5, 0.25 * retrieval + 0.75 * task)):
        assert objective(ANYTHING, targets_BK, epoch).item() == pytest.approx(expected, rel=1e-5)
    objective = Objective(Recipe(retrieval_epochs=1.5), forward, None, None)
    assert objective(ANYTHING, targets_BK, 2.0).item() == pytest.approx(task, rel=1e-5)


def test_a_step_in_parts_has_the_gradient_of_the_whole(
    tmp_path: Path, paint_classes: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = paint_classes(tmp_path / "data", per_class=8, size=16)
    seen: list[dict[str, Tensor]] = []

    def keep(accelerator: Any, model: nn.Module, recipe: Recipe) -> Tensor:
        seen.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        return torch.zeros(())

    monkeypatch.setattr(vitesse.train.step, "clip", keep)
    overrides = {
        **{"image_size": 16, "batch_size": 4, "epochs": 1, "workers": 0, "init": "", "trackers": []},
        **{"label_smoothing": 0.1, "mixup": 0.0, "cutmix": 0.0, "ema": 0.0},
        **{"rand_augment": "", "warmup_epochs": 0},
    }
    for parts in (1, 4):
        out = tmp_path / f"run{parts}"
        train(data, model="vit_tiny_patch4_d9", out=out, overrides=overrides | {"accumulate": parts})
    whole, summed = seen[0], seen[len(seen) // 2]  # of the first steps
    assert whole.keys() == summed.keys()
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-2
    for name, gradient in whole.items():
        torch.testing.assert_close(summed[name], gradient, rtol=1e-5, atol=1e-5)
