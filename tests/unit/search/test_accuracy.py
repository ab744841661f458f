"""Short trainings of candidates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitesse.errors import ConfigError, DataError
from vitesse.search.accuracy import short_training
from vitesse.search.space import space_for

SHORT = {"epochs": 3, "batch_size": 8, "workers": 0, "image_size": 32, "warmup_epochs": 0, "ema": 0}


@pytest.fixture
def colours(tmp_path: Path, paint_classes: Callable[..., Path]) -> Path:
    return paint_classes(tmp_path / "colours", per_class=8)


def test_a_candidate_is_trained_until_it_is_enough(colours: Path, tmp_path: Path) -> None:
    space = space_for("efficientvit_m", (32,))
    trainer, names = short_training(colours, "finetune", SHORT, "efficientvit_m0")
    assert names == ("blue", "green", "red")
    assert trainer.recipe.init == ""
    spec, told = space.spec(space.smallest(), len(names)), []

    def watch(epochs: int, top1: float) -> bool:
        told.append((epochs, top1))
        return epochs == 2

    top1 = trainer(spec, tmp_path / "run", 5, watch)
    assert [epochs for epochs, _ in told] == [1, 2]
    assert top1 == told[-1][1]
    assert (tmp_path / "run" / "spec.json").is_file()
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
    assert (tmp_path / "run" / "checkpoints").exists(), "until the trial is closed"


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        (["epoch=3"], ConfigError, "did you mean epochs"),
        (["epochs"], ConfigError, "expected key=value"),
        ({"epochs": 0}, ConfigError, "epochs: expected at least 1"),
    ],
)
def test_recipes_are_checked_before_anything_else(
    colours: Path, overrides: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        short_training(colours, "finetune", overrides, "efficientvit_m0")


def test_its_seed_is_the_searchs(colours: Path) -> None:
    with pytest.raises(ConfigError, match="seed=: a search sets the seeds of its trainings; give --seed"):
        short_training(colours, "finetune", ["seed=3"], "efficientvit_m0")


def test_data_is_checked_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        short_training(tmp_path / "absent", "finetune", {}, "efficientvit_m0")
