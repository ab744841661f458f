"""Recipes: every shipped one loads, values keep their kinds, mistakes are named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from vitesse.errors import ConfigError
from vitesse.train.recipe import Recipe, recipe_values
from vitesse.train.recipe_files import load_recipe, recipe_from, shipped_recipes
from vitesse.train.schedule import lr_at


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_survive_a_round_trip(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe_from(recipe_values(recipe)) == recipe


def test_overrides_win_and_keep_their_kind() -> None:
    recipe = load_recipe(
        "finetune", ["lr=1e-3", "epochs=4", "crop_scale=[0.5, 1]", "compile=true", "teacher="]
    )
    assert (recipe.lr, recipe.epochs, recipe.crop_scale) == (1e-3, 4, (0.5, 1.0))
    assert recipe.compile is True
    assert load_recipe("finetune", {"limit_val": None}).limit_val is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epoch=4"], "unknown key 'epoch'; did you mean epochs"),
        (["epochs"], "expected key=value, got 'epochs'"),
        (["train_sizes=64"], "train_sizes: expected a list"),
        (["trackers=[neptune]"], "trackers: expected some of mlflow, tensorboard, wandb"),
        (["distilled=true"], "distilled: expected teacher= and teacher_cache=false beside it"),
        (["distilled=true", "teacher=timm:x", "teacher_cache=true"], "distilled: expected teacher="),
        (["bn_images=1"], "bn_images: expected 0, or at least 2 pictures"),
        (["drop_path_skip=-1"], "drop_path_skip: expected 0 or more"),
        (["mesa=1", "ema=0"], "mesa: expected ema above 0 beside it"),
        (["epochs=1.5"], r"epochs: expected a number \(int\), got 1.5"),
        (["epochs=0"], "epochs: expected at least 1, got 0"),
        (["epochs=true"], "epochs: expected a number"),
        (["lr=fast"], r"lr: expected a number \(float\), got 'fast'"),
        (["lr=0"], "lr: expected more than 0"),
        (["precision=fp8"], "precision: expected auto or fp32 or bf16 or fp16, got 'fp8'"),
        (["compile=1"], "compile: expected true or false, got 1"),
        (["crop_scale=0.5"], "crop_scale: expected a list of 2 numbers"),
        (["crop_scale=[0.9, 0.1]"], "crop_scale: expected 0 < low <= high <= 1"),
        (["ema=1"], "ema: expected a decay below 1"),
        (["seed="], "seed: expected a number"),
        (["lr=null"], "lr: expected a value, got None"),
        (["lr=[1"], "lr: expected a YAML value"),
    ],
)
def test_a_mistake_is_named_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe("finetune", overrides)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean finetune"):
        load_recipe("finetun")


def test_a_recipe_file_is_read_and_a_bad_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 3\nlr: 2e-3\n")
    assert load_recipe(path) == Recipe(epochs=3, lr=2e-3)
    path.write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="expected `key: value` lines, got list"):
        load_recipe(path)
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_recipe(tmp_path / "absent.yaml")


def test_the_learning_rate_warms_up_then_follows_half_a_cosine() -> None:
    recipe = Recipe(epochs=11, lr=1.0, min_lr=0.1, warmup_epochs=1, warmup_lr=0.0)
    assert lr_at(recipe, 0.5) == pytest.approx(0.5)
    assert lr_at(recipe, 1) == pytest.approx(1.0)
    assert lr_at(recipe, 6) == pytest.approx(0.55)
    assert lr_at(recipe, 3.5) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert lr_at(recipe, 11) == pytest.approx(0.1)
    assert lr_at(recipe, 0) == 0
