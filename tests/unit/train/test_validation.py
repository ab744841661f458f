"""BatchNorm's statistics estimated anew, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vitesse.train.validation
from vitesse.data.sources import open_source, take
from vitesse.layers import Residual
from vitesse.runtime.imaging import load_tensor
from vitesse.spec import PreprocessSpec
from vitesse.train.recipe import Recipe
from vitesse.train.validation import with_fresh_statistics

PREPROCESS = PreprocessSpec(image_size=(8, 8))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=0.3)
    branch = Residual(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False)), drop_path=0.9)
    return nn.Sequential(nn.Conv2d(3, 4, 1), first, branch, second)


def normalised(x_BCHW: np.ndarray, norm: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean_C, var_C = x_BCHW.mean((0, 2, 3)), x_BCHW.var((0, 2, 3))
    y_BCHW = (x_BCHW - mean_C[:, None, None]) / np.sqrt(var_C[:, None, None] + norm.eps)
    count = x_BCHW[:, 0].size
    return y_BCHW, mean_C, var_C * count / (count - 1)


def convolved(x_BCHW: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    weight_OI = layer.weight.detach().double().numpy()[:, :, 0, 0]
    y_BOHW = np.einsum("oi,bihw->bohw", weight_OI, x_BCHW)
    return y_BOHW if layer.bias is None else y_BOHW + layer.bias.detach().double().numpy()[:, None, None]


@pytest.mark.parametrize("pictures", [6, 7])
def test_statistics_are_those_of_so_many_training_pictures_without_drop_path(
    pictures: int, tmp_path: Path, paint_classes: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitesse.train.validation, "BN_BATCH", 3)
    source = open_source(paint_classes(tmp_path / "data", per_class=5, size=8))
    recipe, model = Recipe(bn_images=pictures), net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = with_fresh_statistics(model, source, PREPROCESS, recipe, torch.device("cpu"))
    drawn = take(source, pictures, recipe.seed)
    x_NCHW = np.stack([load_tensor(drawn.read(i), PREPROCESS) for i in range(pictures)]).astype(np.float64)
    rows = []
    for x_BCHW in np.array_split(x_NCHW, math.ceil(pictures / 3)):
        y_BCHW, *first = normalised(convolved(x_BCHW, model[0]), model[1])
        _, *second = normalised(y_BCHW + convolved(np.maximum(y_BCHW, 0), model[2].branch[1]), model[3])
        rows.append((*first, *second))
    expected = [np.mean(column, axis=0) for column in zip(*rows, strict=True)]
    norms = [fresh[1], fresh[3]]
    found = [value.double().numpy() for norm in norms for value in (norm.running_mean, norm.running_var)]
    for value, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
    assert [norm.momentum for norm in norms] == [0.1, 0.3]
    assert not any(module.training for module in fresh.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pictures_that_cannot_be_read_are_left_out(
    tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    folder = paint_classes(tmp_path / "data", per_class=2, size=8)
    (folder / "blue" / "000.png").write_bytes(b"no picture")
    fresh = with_fresh_statistics(
        net(), open_source(folder), PREPROCESS, Recipe(bn_images=6), torch.device("cpu")
    )
    x_NCHW = np.stack(
        [load_tensor(p.read_bytes(), PREPROCESS) for p in sorted(folder.rglob("*.png"))[1:]]
    ).astype(np.float64)
    mean_C = convolved(x_NCHW, fresh[0]).mean((0, 2, 3))
    np.testing.assert_allclose(fresh[1].running_mean.double().numpy(), mean_C, rtol=1e-5, atol=1e-6)
