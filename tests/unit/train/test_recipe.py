"""Recipes: every shipped one loads, values keep their kinds, mistakes are named."""

from __future__ import annotations

import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from vitesse.errors import ConfigError
from vitesse.train.recipe import Recipe, recipe_values
from vitesse.train.recipe_files import load_recipe, recipe_from, shipped_recipes
from vitesse.train.schedule import lr_at

PAGE = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text(encoding="utf-8")


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
        (["seed=-1"], "seed: expected 0 or more, got -1"),
        (["limit_train=-5"], "limit_train: expected at least 1, got -5"),
        (["limit_val=0"], "limit_val: expected at least 1, got 0"),
        (["augment_size=-1"], "augment_size: expected at least 1, got -1"),
        (["image_height=0"], "image_height: expected at least 1, got 0"),
        (["lr=.inf"], "lr: expected a finite number, got inf"),
        (["drop_path_rate=1.0"], "drop_path_rate: expected a share below 1"),
        (["crop_size=[64]"], "crop_size: expected height and width"),
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
        (["shard=true", "precision=fp16"], "precision: expected bf16 or fp32 beside shard=true, got 'fp16'"),
        (["shard=true", "clip_mode=agc"], "clip_mode: expected norm beside shard=true, got 'agc'"),
        (["shard=true", "compile=true"], "compile: expected false beside shard=true, got True"),
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


def settled(name: str, model: str = "", **overrides: Any) -> dict[str, Any]:
    """A recipe's values, and what follows from them."""
    recipe = load_recipe(name, overrides, model)
    return recipe_values(recipe) | {"peak_lr": recipe.peak_lr}


def assert_has(found: dict[str, Any], **expected: Any) -> None:
    for key, value in expected.items():
        assert found[key] == (pytest.approx(value) if isinstance(value, float) else value), key


AS_DEIT = {
    **{"epochs": 300, "min_lr": 1e-5, "warmup_lr": 1e-6, "warmup_epochs": 5.0, "schedule": "cosine_epochs"},
    **{"rand_augment": "rand-m9-mstd0.5-inc1", "crop_scale": [0.08, 1.0], "interpolation": "bicubic"},
    **{"mixup": 0.8, "cutmix": 1.0, "mix_prob": 1.0, "random_erase": 0.25, "label_smoothing": 0.1},
    **{"repeats": 3, "ema": 0.99996, "ema_warmup": "none", "evaluate_ema": False, "hflip": 0.5},
    **{
        "color_jitter": 0.0,
        "resize": "crop",
        "crop_pct": 0.875,
        "loss": "cross_entropy",
        "distill_alpha": 0.5,
    },
}
"""Defaults of DeiT's public trainer, from which those of MSRA and SHViT descend."""
AS_MSRA = {"batch_size": 2048, "peak_lr": 4e-3, "clip_grad": 0.02, "clip_mode": "agc", "precision": "fp32"}


def test_deit_is_the_paper_s() -> None:
    """arXiv 2012.12877, table 9: learning rate 0.0005 for 512 images, at 1024."""
    found = settled("deit", "vit_tiny_patch16")
    assert_has(found, **AS_DEIT)
    assert_has(found, batch_size=1024, peak_lr=1e-3, weight_decay=0.05, drop_path_rate=0.1, clip_grad=0.0)


@pytest.mark.parametrize("size", range(6))
def test_msra_is_the_paper_s(size: int) -> None:
    found = settled("efficientvit_msra", f"efficientvit_m{size}")
    assert_has(found, **AS_DEIT | AS_MSRA)
    assert_has(found, weight_decay=0.025, image_size=224, drop_path_rate=0.0)


@pytest.mark.parametrize(
    ("size", "decay", "side"), [(1, 0.025, 224), (2, 0.032, 224), (3, 0.035, 224), (4, 0.03, 256)]
)
def test_shvit_is_the_paper_s(size: int, decay: float, side: int) -> None:
    found = settled("shvit", f"shvit_s{size}")
    assert_has(found, **AS_DEIT | AS_MSRA)
    assert_has(found, weight_decay=decay, image_size=side, drop_path_rate=0.0)


@pytest.mark.parametrize("side", [384, 512])
def test_the_high_resolution_stage_is_its_author_s(side: int) -> None:
    found = settled("efficientvit_msra_highres", "shvit_s4", image_size=side)
    rates = {"epochs": 30, "peak_lr": 4e-5, "min_lr": 2e-7, "warmup_lr": 2e-8, "weight_decay": 1e-8}
    assert_has(found, **AS_DEIT | AS_MSRA | rates | {"resize": "squash", "init": "published"})
    assert found["image_size"] == side


def test_transfer_is_its_author_s() -> None:
    found = settled("transfer", "efficientvit_m5")
    changed = {
        "resize": "squash",
        "precision": "fp32",
        "batch_size": 256,
        "peak_lr": 1e-3,
        "weight_decay": 1e-8,
        "init": "published",
    }
    assert_has(found, **AS_DEIT | AS_MSRA | changed)


MIT = {
    "efficientvit_b0": (2e-3, "fp32", 1.0, 0.1, "m3-n1", 0.0, 0.05, 0, 0.0),
    "efficientvit_b1": (2e-3, "fp32", 0.95, 0.1, "m3-n1", 0.0, 0.05, 0, 0.0),
    "efficientvit_b2": (2e-3, "fp32", 1.0, 0.1, "m3-n1", 0.0, 0.05, 0, 0.0),
    "efficientvit_b3": (2e-3, "fp32", 1.0, 0.3, "m6-n2", 0.0, 0.1, 0, 0.0),
    "efficientvit_l1": (1.2e-3, "bf16", 1.0, 0.2, "m5-n2", 0.2, 0.1, 2, 2.0),
    "efficientvit_l2": (1.2e-3, "bf16", 1.0, 0.4, "m5-n2", 0.2, 0.1, 3, 2.75),
    "efficientvit_l3": (1.2e-3, "bf16", 1.0, 0.6, "m6-n2", 0.2, 0.1, 3, 3.5),
}
"""Peak rate at 1024 images, precision, crop, alpha of mixes, RandAugment, erasing, drop path, skip, MESA."""


@pytest.mark.parametrize("model", MIT)
def test_mit_is_the_paper_s_for_each_model(model: str) -> None:
    rate, precision, crop, alpha, policy, erase, drop, skip, mesa = MIT[model]
    found = settled("efficientvit_mit", model)
    assert_has(found, peak_lr=rate, precision=precision, crop_pct=crop, mixup=alpha, cutmix=alpha, mesa=mesa)
    assert_has(found, rand_augment=f"rand-{policy}-mstd1-inc1", random_erase=erase, drop_path_rate=drop)
    assert_has(found, drop_path_skip=skip, drop_path_ramp=True, epochs=320, warmup_epochs=20.0, warmup_lr=0.0)
    assert_has(found, min_lr=0.0, schedule="cosine", batch_size=1024, weight_decay=0.1, clip_grad=2.0)
    assert_has(
        found, clip_mode="norm", loss="bce", label_smoothing=0.1, mix_prob=1.0, mesa_from=0.25, repeats=1
    )
    assert_has(found, train_sizes=[128, 160, 192, 224], size_order="random", interpolation="random")
    assert_has(
        found, ema=0.9998, ema_warmup="exponential", ema_ramp=2000.0, evaluate_ema=True, bn_images=16000
    )


def test_sections_are_checked_whatever_the_model_and_later_ones_win(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 1e-3\nmodels:\n  shvit_*: {lr: 2e-3, epochs: 7}\n  shvit_s4: {lr: 3e-3}\n")
    assert load_recipe(path, model="vit_tiny_patch16") == Recipe(lr=1e-3)
    assert load_recipe(path, model="shvit_s1") == Recipe(lr=2e-3, epochs=7)
    assert load_recipe(path, ["epochs=9"], model="shvit_s4") == Recipe(lr=3e-3, epochs=9)
    path.write_text("models:\n  shvit_s4: {lrr: 3e-3}\n")
    with pytest.raises(ConfigError, match="unknown key 'lrr'; did you mean lr"):
        load_recipe(path, model="vit_tiny_patch16")
    path.write_text("models: [shvit_s4]\n")
    with pytest.raises(ConfigError, match="expected names of models with keys below them in models"):
        load_recipe(path)


def header(name: str) -> dict[str, str]:
    """What a shipped recipe says of itself: title, cost, score, source, run."""
    text = (files("vitesse.train") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    lines = [line.removeprefix("#") for line in text.splitlines() if line.startswith("#")]
    said, key = {"title": lines[0].strip()}, ""
    for line in lines[1:]:
        named = re.match(r" (Cost|Score|Source|Run): (.*)", line)
        if named:
            key = named[1].lower()
            said[key] = named[2]
        elif key and line.startswith("  "):
            said[key] += " " + line.strip()
        else:
            key = ""
    return said


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_names_its_command_its_cost_and_what_to_expect(name: str) -> None:
    said = header(name)
    assert re.search(r"\d+ (epochs|minutes|hours)|1.5 hours", said["cost"]), said["cost"]
    assert re.search(r"\d %|not run here|depends on", said["score"]), said["score"]
    assert said["source"]
    assert "vitesse" in said["run"]
    named = re.search(r"--recipe (\w+)", said["run"])
    assert named[1] == name if named else name in ("finetune", "detect", "segment"), "the default of a task"


def test_the_page_has_every_recipe_as_its_header_says() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", PAGE, re.M)
    expected = [
        (name, *(header(name)[key].rstrip(".") for key in ("title", "cost", "score", "source")))
        for name in shipped_recipes()
    ]
    assert rows == expected


def test_the_page_has_every_key_once_with_its_default() -> None:
    found = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", PAGE.partition("## Every key")[2], re.M)
    defaults = recipe_values(Recipe())
    assert sorted(key for key, _ in found) == sorted(defaults)
    for key, text in found:
        assert (
            yaml.safe_load(text) == defaults[key] or recipe_from({key: yaml.safe_load(text)}) == Recipe()
        ), key
