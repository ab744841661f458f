"""To tell the class of every pixel. Shape suffixes: B images, C channels, H rows, W columns, K classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.data.check_dense import check_maps
from vitesse.data.contract import Pictures
from vitesse.data.dense import IGNORE, MapSource
from vitesse.data.joint import AugmentMaps
from vitesse.data.loader import Batch
from vitesse.errors import ImageError
from vitesse.metrics import EXAMINATIONS
from vitesse.metrics.dense import MapsCounted
from vitesse.spec import PreprocessSpec
from vitesse.train.recipe import Recipe
from vitesse.train.report import ClassTable, Measure
from vitesse.train.tasks.dense import Inputs, SplitsChecked, check_dense_recipe, check_pictures
from vitesse.train.tasks.shown import worst_maps

if TYPE_CHECKING:
    from vitesse.train.folder import RunFacts


class Segment:
    """See `Task`."""

    recipe = "segment"
    exam = EXAMINATIONS["segment"]
    measures: tuple[Measure, ...] = (
        Measure(key="miou", name="mean IoU", short="mIoU"),
        Measure(key="accuracy", name="pixels right", short="pixels"),
    )
    counted = "pixel"

    def check(self, source: Pictures) -> None:
        check_pictures(source)

    def look_over(
        self, train: Pictures, val: Pictures, decode: bool, workers: int, check: Callable[[], None]
    ) -> SplitsChecked:
        return SplitsChecked(
            train=check_maps(cast(MapSource, train), decode=decode, workers=workers, check=check),
            val=check_maps(cast(MapSource, val), decode=decode, workers=workers, check=check),
        )

    def amounts(self, source: Pictures) -> NDArray[np.int64]:
        """Pixels of each class."""
        maps, classes = cast(MapSource, source), len(source.class_names)
        total_K = np.zeros(classes, np.int64)
        for index in range(len(source)):
            try:
                total_K += np.bincount(maps.label_map(index).ravel(), minlength=IGNORE + 1)[:classes]
            except (ImageError, OSError):
                continue
        return total_K

    def check_recipe(self, recipe: Recipe) -> None:
        check_dense_recipe(recipe)

    def augmentation(self, recipe: Recipe) -> AugmentMaps:
        return AugmentMaps(
            _trained_size(recipe),
            scale=recipe.scale,
            hflip=recipe.hflip,
            vflip=recipe.vflip,
            color_jitter=recipe.color_jitter,
        )

    def loss(
        self,
        facts: RunFacts,
        accelerator: Accelerator,
        model: nn.Module,
        average: nn.Module | None,
        check: Callable[[], None],
    ) -> PixelLoss:
        recipe, device = facts.recipe, accelerator.device
        weights_K = None
        if recipe.class_weight:
            weights_K = class_weights(self.amounts(facts.train_source), recipe.class_weight).to(device)
        return PixelLoss(recipe, facts.preprocess, model, device, weights_K)

    def explained(self, found: MapsCounted, source: Pictures) -> dict[str, Any]:
        maps = cast(MapSource, source)
        explained = "intersection over union of what is found and what is there"
        table = ClassTable(name="IoU", explained=explained, values=found.scores(maps).class_iou)
        return {"class_tables": (table,), "shown": worst_maps(found, maps)}


def class_weights(amounts_K: NDArray[np.int64], power: float) -> Tensor:
    """How much a pixel of each class counts, float32 (K,): (median / amount) ** power.

    A class without pixels counts as one of median size.
    """
    median = np.median(amounts_K[amounts_K > 0]) if amounts_K.any() else 1.0
    amounts = np.where(amounts_K > 0, amounts_K, median)
    return torch.from_numpy((median / amounts) ** power).float()


class PixelLoss:
    """See `Loss`: cross-entropy of the logits, enlarged to the labels, over the labelled pixels.

    `weights_K` says how much a pixel of each class counts; without it all count alike.
    """

    def __init__(
        self,
        recipe: Recipe,
        preprocess: PreprocessSpec,
        model: nn.Module,
        device: torch.device,
        weights_K: Tensor | None = None,
    ) -> None:
        self.recipe, self.model, self.weights_K = recipe, model, weights_K
        self.inputs = Inputs(recipe, preprocess, device)

    def __call__(self, batch: Batch, side: int, epoch: float) -> Tensor:
        labels_BHW = cast(Tensor, batch.annotations).long()
        logits_BKhw: Tensor = self.model(self.inputs(batch.images_BCHW))
        logits_BKHW = F.interpolate(
            logits_BKhw.float(), labels_BHW.shape[1:], mode="bilinear", align_corners=False
        )
        total = F.cross_entropy(
            logits_BKHW,
            labels_BHW,
            weight=self.weights_K,
            ignore_index=IGNORE,
            label_smoothing=self.recipe.label_smoothing,
            reduction="sum",
        )
        labels_N = labels_BHW[labels_BHW != IGNORE]
        counted = len(labels_N) if self.weights_K is None else self.weights_K[labels_N].sum()
        return total / max(counted, 1e-6)

    def blank(self, count: int) -> Batch:
        size = _trained_size(self.recipe)
        return Batch(
            torch.zeros(count, 3, *size, dtype=torch.uint8),
            torch.zeros(count, dtype=torch.int64),
            annotations=torch.full((count, *size), IGNORE, dtype=torch.uint8),
        )


def _trained_size(recipe: Recipe) -> tuple[int, int]:
    height, width = recipe.crop_size or recipe.input_size
    return height, width
