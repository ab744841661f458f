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
        return PixelLoss(facts.recipe, facts.preprocess, model, accelerator.device)

    def explained(self, found: MapsCounted, source: Pictures) -> dict[str, Any]:
        maps = cast(MapSource, source)
        explained = "intersection over union of what is found and what is there"
        table = ClassTable(name="IoU", explained=explained, values=found.scores(maps).class_iou)
        return {"class_tables": (table,), "shown": worst_maps(found, maps)}


class PixelLoss:
    """See `Loss`: cross-entropy of the logits, enlarged to the labels, over the labelled pixels."""

    def __init__(
        self, recipe: Recipe, preprocess: PreprocessSpec, model: nn.Module, device: torch.device
    ) -> None:
        self.recipe, self.model = recipe, model
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
            ignore_index=IGNORE,
            label_smoothing=self.recipe.label_smoothing,
            reduction="sum",
        )
        return total / (labels_BHW != IGNORE).sum().clamp(min=1)

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
