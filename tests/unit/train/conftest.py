"""What tests of training share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vitesse.train import TrainResult, train

TINY_MODEL = "timm:test_efficientnet"
"""A real network, BatchNorm and stochastic depth included, of 0.1 M parameters: a run takes half a second."""


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """A recipe of 2 epochs for small pictures, with everything random in it."""
    return {
        "image_size": 32,
        "batch_size": 8,
        "epochs": 2,
        "lr": 2e-3,
        "warmup_epochs": 0.2,
        "workers": 0,
        "ema": 0.9,
        "rand_augment": "rand-m3-n1",
        "mixup": 0.2,
        "cutmix": 1.0,
        "mix_prob": 0.3,
        "drop_path_rate": 0.1,
        "init": "",
        "trackers": [],
    }


@pytest.fixture(scope="session")
def run(tiny: dict[str, Any]) -> Callable[..., TrainResult]:
    """A function that trains on data into a folder, with changes to the tiny recipe."""

    def go(
        data: Any, out: Path, model: str = TINY_MODEL, strict: bool = False, **changes: Any
    ) -> TrainResult:
        return train(data, model=model, out=out, overrides={**tiny, **changes}, strict=strict)

    return go


@pytest.fixture
def colours(tmp_path: Path, paint_classes: Callable[..., Path]) -> Path:
    """60 pictures of 3 classes, of which 54 are trained on: 6 steps of 8."""
    return paint_classes(tmp_path / "colours", per_class=20)


@pytest.fixture(scope="session")
def weights() -> Callable[..., dict[str, torch.Tensor]]:
    """A function that reads the tensors a run left: of the `last` or `best` weights, or the `state`."""

    def read(out: Path, name: str = "last") -> dict[str, torch.Tensor]:
        where = "last/state" if name == "state" else f"{name}/model"
        return load_file(out / "checkpoints" / f"{where}.safetensors")

    return read


@pytest.fixture(scope="session")
def same() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], bool]:
    """Whether two sets of tensors are equal to the last bit."""

    def compare(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    return compare
