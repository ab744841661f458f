"""What changes during a run, against timm's scheduler and float64 formulas."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vitesse.data.transforms import DeviceTransform
from vitesse.errors import ConfigError
from vitesse.layers import Residual
from vitesse.models import create_model
from vitesse.train import train
from vitesse.train.recipe import Recipe
from vitesse.train.recipe_files import load_recipe
from vitesse.train.schedule import DropPathSchedule, ema_decay_at, lr_at, size_at


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("deit", {}),
        ("efficientvit_msra", {}),
        ("efficientvit_msra_highres", {}),
        ("shvit", {"epochs": 12, "warmup_epochs": 0}),
        ("transfer", {"epochs": 4, "warmup_epochs": 6}),
        ("transfer", {"epochs": 9, "warmup_epochs": 2.5, "batch_size": 64, "lr_batch_size": 512}),
    ],
)
def test_cosine_epochs_is_timm_s_stepped_after_each_epoch_with_its_number(
    name: str, overrides: dict[str, float], timm: ModuleType
) -> None:
    from timm.scheduler import CosineLRScheduler

    recipe = load_recipe(name, overrides)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=recipe.peak_lr)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=recipe.epochs,
        lr_min=recipe.min_lr,
        warmup_t=recipe.warmup_epochs,
        warmup_lr_init=recipe.warmup_lr,
    )
    for epoch in range(recipe.epochs):
        expected = optimizer.param_groups[0]["lr"]
        assert lr_at(recipe, epoch) == pytest.approx(expected, rel=1e-12)
        assert lr_at(recipe, epoch + 0.999) == lr_at(recipe, epoch)
        scheduler.step(epoch)


runs = st.builds(
    Recipe,
    epochs=st.integers(1, 400),
    lr=st.floats(1e-5, 1),
    batch_size=st.integers(1, 4096),
    lr_batch_size=st.sampled_from([0, 128, 512]),
    min_lr=st.floats(0, 1e-8),
    warmup_lr=st.floats(0, 1e-8),
    warmup_epochs=st.floats(0, 30),
    schedule=st.sampled_from(["cosine", "cosine_epochs"]),
)


@given(recipe=runs, share=st.floats(0, 1, exclude_max=True))
def test_cosine_is_the_formula(recipe: Recipe, share: float) -> None:
    assume(recipe.schedule == "cosine")
    epoch, peak = share * recipe.epochs, recipe.lr
    peak *= recipe.batch_size / recipe.lr_batch_size if recipe.lr_batch_size else 1
    warmup, floor = recipe.warmup_epochs, recipe.min_lr
    if epoch < warmup:
        expected = np.interp(epoch, [0, warmup], [recipe.warmup_lr, peak])
    else:
        expected = (
            floor + (peak - floor) * math.cos(math.pi / 2 * (epoch - warmup) / (recipe.epochs - warmup)) ** 2
        )
    assert lr_at(recipe, epoch) == pytest.approx(expected, rel=1e-9, abs=1e-13 * peak + 1e-18)


@given(recipe=runs)
@settings(max_examples=60)
def test_the_rate_is_never_negative_and_falls_after_the_warm_up(recipe: Recipe) -> None:
    epochs = np.linspace(0, recipe.epochs, 101)
    rates = [lr_at(recipe, epoch) for epoch in epochs]
    assert min(rates) >= 0
    assert max(rates) <= recipe.peak_lr * (1 + 1e-12)
    late = [
        rate
        for rate, epoch in zip(rates, epochs, strict=True)
        if epoch >= math.ceil(recipe.warmup_epochs) + 1
    ]
    assert all(later <= earlier for earlier, later in itertools.pairwise(late))


@pytest.mark.parametrize(
    ("changes", "formula"),
    [
        ({"ema_warmup": "power"}, lambda step: min(0.9, 1 - 1 / np.cbrt(1.0 + step) ** 2)),
        (
            {"ema_warmup": "exponential", "ema_ramp": 10},
            lambda step: 0.9 * -np.expm1(-step / 10),
        ),
        ({"ema_warmup": "none"}, lambda step: 0.9),
    ],
)
def test_the_average_warms_up_by_its_formula(
    changes: dict[str, object], formula: Callable[[int], float]
) -> None:
    recipe = Recipe(ema=0.9, **changes)  # type: ignore[arg-type]
    for step in range(50):
        assert ema_decay_at(recipe, step) == pytest.approx(formula(step), abs=1e-12)


def test_random_sizes_are_drawn_evenly_and_the_same_at_any_time() -> None:
    recipe = Recipe(train_sizes=(128, 160, 192, 224))
    drawn = [size_at(recipe, 0, step) for step in range(2000)]
    assert drawn == [size_at(recipe, 3, step) for step in range(2000)]
    counts = Counter(drawn)
    assert set(counts) == {128, 160, 192, 224}
    assert all(abs(count - 500) < 4 * math.sqrt(2000 * 0.25 * 0.75) for count in counts.values())
    assert drawn != [
        size_at(Recipe(train_sizes=(128, 160, 192, 224), seed=1), 0, step) for step in range(2000)
    ]


@given(sizes=st.lists(st.integers(1, 512), min_size=1, max_size=6), epochs=st.integers(1, 50))
def test_growing_sizes_share_the_epochs(sizes: list[int], epochs: int) -> None:
    sizes = list(dict.fromkeys(sizes))
    recipe = Recipe(train_sizes=tuple(sizes), size_order="growing", epochs=epochs)
    seen = [size_at(recipe, epoch, 0) for epoch in range(epochs)]
    assert [sizes.index(size) for size in seen] == sorted(sizes.index(size) for size in seen)
    counts = Counter(seen)
    assert max(counts.values()) - min(counts[size] for size in sizes) <= 1
    assert size_at(Recipe(image_size=96), 7, 7) == 96


TINY = {
    **{"image_size": 64, "train_sizes": [32, 48], "epochs": 1, "batch_size": 27, "workers": 0, "ema": 0.5},
    **{"init": "", "trackers": [], "rand_augment": "", "warmup_epochs": 0},
}


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        *(("efficientvit_m0", (32, 48)), ("shvit_s1", (32, 48)), ("efficientvit_b0", (32, 48))),
        *(("vit_tiny_patch4_d9", (16, 20)), ("concatplexer_tiny_patch4_n2", (16, 20))),
    ],
)
def test_every_family_trains_at_sizes_other_than_its_own(
    model: str,
    sizes: tuple[int, int],
    tmp_path: Path,
    paint_classes: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides: list[tuple[int, ...]] = []
    forward = DeviceTransform.forward

    def seen(self: DeviceTransform, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        sides.append(size)
        return forward(self, x, size)

    monkeypatch.setattr(DeviceTransform, "forward", seen)
    data = paint_classes(tmp_path / "data", per_class=20)
    changes = {"train_sizes": sizes, "image_size": sizes[0] + 8, "short_groups": 0.0}
    overrides = TINY | changes | {"size_order": "growing", "epochs": 2, "batch_size": 13}
    result = train(data, model=model, out=tmp_path / "run", overrides=overrides)
    assert sides == [(side, side) for side in sizes for _ in range(4)]
    assert result.scores.images == 6


@pytest.mark.parametrize(
    ("model", "sizes", "reason"),
    [
        ("timm:deit_tiny_patch16_224", [64, 32], r"at 32 pixels: Input height \(32\) doesn't match"),
        ("efficientvit_b0", [64, 16], "at 16 pixels: efficientvit_b0: expected images"),
        ("vit_tiny_patch4_d9", [30], "at 30 pixels: vit_tiny_patch4_d9: expected images"),
    ],
)
def test_a_size_that_a_model_cannot_take_is_refused_before_the_first_step(
    model: str, sizes: list[int], reason: str, tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    data = paint_classes(tmp_path / "data", per_class=6)
    with pytest.raises(ConfigError, match=f"recipe train_sizes: cannot train {reason}") as caught:
        train(data, model=model, out=tmp_path / "run", overrides=TINY | {"train_sizes": sizes})
    assert "\n" not in str(caught.value)


def rates_of(model: torch.nn.Module) -> list[float]:
    return [module.drop_path for module in model.modules() if isinstance(module, Residual)]


def test_drop_path_rises_branch_by_branch_after_those_that_are_skipped() -> None:
    model = create_model("efficientvit_l1", num_classes=2, image_size=32, drop_path_rate=0.1)
    recipe = load_recipe("efficientvit_mit", model="efficientvit_l1")
    schedule = DropPathSchedule(recipe, model)
    schedule.set(1.0)
    branches = len(rates_of(model)) - 1  # the stem's never drops
    expected = [0, 0, 0, *(0.1 * (i + 1) / (branches - 2) for i in range(branches - 2))]
    assert rates_of(model) == pytest.approx(expected)
    schedule.set(0.25)
    assert rates_of(model) == pytest.approx([rate / 4 for rate in expected])
    schedule.set(0.0)
    assert set(rates_of(model)) == {0.0}


def test_without_skip_or_ramp_drop_path_stays_as_the_model_has_it() -> None:
    model = create_model("vit_tiny_patch4_d9", num_classes=2, image_size=16, drop_path_rate=0.4)
    DropPathSchedule(Recipe(drop_path_rate=0.4), model).set(0.5)
    assert rates_of(model) == pytest.approx(np.repeat(np.linspace(0, 0.4, 9), 2).tolist())
