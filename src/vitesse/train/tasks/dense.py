"""What the tasks of pictures with annotations share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from vitesse.data.check_dense import DenseCheck
from vitesse.data.contract import Pictures
from vitesse.data.transforms import DeviceTransform
from vitesse.errors import DataError
from vitesse.spec import PreprocessSpec
from vitesse.train.recipe import Recipe, expect

ONLY_TO_CLASSIFY = (
    *("augment_size", "train_sizes", "rand_augment", "random_erase", "mixup", "cutmix", "loss", "distilled"),
    *("retrieval", "retrieval_epochs", "teacher", "mesa", "sync_bn", "compile"),
)
"""Of a recipe, what pictures with annotations are trained without."""


class Inputs:
    """Augmented pictures uint8 (B, C, H, W) to what the model takes, of that size."""

    def __init__(self, recipe: Recipe, preprocess: PreprocessSpec, device: torch.device) -> None:
        self.channels_last = recipe.channels_last
        self.transform = DeviceTransform(preprocess).to(device)

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        height, width = images_BCHW.shape[2:]
        x_BCHW: Tensor = self.transform(images_BCHW, (height, width))
        return x_BCHW.contiguous(memory_format=torch.channels_last) if self.channels_last else x_BCHW


@dataclass(frozen=True, kw_only=True)
class SplitsChecked:
    """What is odd about two splits, as `LookedOver`."""

    train: DenseCheck
    val: DenseCheck

    @property
    def faulty(self) -> bool:
        return self.train.faulty or self.val.faulty

    def lines(self) -> list[str]:
        splits = {"training": self.train, "held out": self.val}
        return [f"{name}: {line}" for name, found in splits.items() for line in found.lines()]

    def to_dict(self) -> dict[str, Any]:
        return {"train": self.train.to_dict(), "val": self.val.to_dict()}


def check_pictures(source: Pictures) -> None:
    """
    Raises:
        DataError: there are none.
    """
    if not len(source):
        raise DataError("training needs pictures, there are none")


def check_dense_recipe(recipe: Recipe) -> None:
    """
    Raises:
        ConfigError: it asks for what only classifiers do, or would cut off the edges of pictures.
    """
    expect(recipe.resize != "crop", "resize", "fit or squash, which keep the whole picture", recipe.resize)
    for field in fields(Recipe):
        if field.name in ONLY_TO_CLASSIFY:
            value = getattr(recipe, field.name)
            expected = f"{field.default!r}, since it is for classifiers alone"
            expect(value == field.default, field.name, expected, value)
