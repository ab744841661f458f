"""To find objects and their boxes, or masks too.

Shape suffixes: B images, C channels, H rows, W columns, N objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from vitesse.data.check_dense import check_boxes
from vitesse.data.contract import Pictures
from vitesse.data.dense import BoxSource
from vitesse.data.joint import AugmentBoxes, BoxTarget
from vitesse.data.loader import Batch
from vitesse.errors import DataError
from vitesse.metrics import EXAMINATIONS
from vitesse.metrics.dense import BoxesFound
from vitesse.spec import PreprocessSpec
from vitesse.train.recipe import Recipe, check_all_classes_alike
from vitesse.train.report import ClassTable, Measure
from vitesse.train.tasks.dense import Inputs, SplitsChecked, check_dense_recipe, check_pictures
from vitesse.train.tasks.shown import worst_boxes

if TYPE_CHECKING:
    from vitesse.train.folder import RunFacts


STARTER = "fcos_e2e_efficientvit_m2"
"""The detector that is trained where none is named."""
BOX_MEASURES = (
    Measure(key="ap", name="average precision", short="AP"),
    Measure(key="ap50", name="average precision at half overlap", short="AP50"),
)
MASK_MEASURES = (
    Measure(key="mask_ap", name="average precision of masks", short="mask AP"),
    Measure(key="mask_ap50", name="of masks at half overlap", short="mask AP50"),
)


class Detect:
    """See `Task`. With `masks` of models that learn from the objects' masks and give some."""

    recipe = "detect"
    exam = EXAMINATIONS["detect"]
    counted = "object"

    def __init__(self, *, masks: bool = False) -> None:
        self.masks = masks
        self.measures: tuple[Measure, ...] = (*BOX_MEASURES, *(MASK_MEASURES if masks else ()))

    def check(self, source: Pictures) -> None:
        check_pictures(source)
        if self.masks and not cast(BoxSource, source).has_masks:
            raise DataError(
                "expected objects with masks (polygons or run lengths) for this model to learn from, the "
                f"data has boxes alone; draw masks, or take a model of boxes, such as --model {STARTER}"
            )

    def look_over(
        self, train: Pictures, val: Pictures, decode: bool, workers: int, check: Callable[[], None]
    ) -> SplitsChecked:
        return SplitsChecked(
            train=check_boxes(cast(BoxSource, train), decode=decode, workers=workers, check=check),
            val=check_boxes(cast(BoxSource, val), decode=decode, workers=workers, check=check),
        )

    def amounts(self, source: Pictures) -> NDArray[np.int64]:
        boxes = cast(BoxSource, source)
        labels = [boxes.boxes(index).labels_N for index in range(len(source))]
        return np.bincount(np.concatenate(labels), minlength=len(source.class_names))

    def check_recipe(self, recipe: Recipe) -> None:
        check_dense_recipe(recipe)
        check_all_classes_alike(recipe)

    def augmentation(self, recipe: Recipe) -> AugmentBoxes:
        return AugmentBoxes(
            recipe.input_size,
            crop=recipe.box_crop,
            scale=recipe.scale,
            hflip=recipe.hflip,
            vflip=recipe.vflip,
            color_jitter=recipe.color_jitter,
            masks=self.masks,
        )

    def loss(
        self,
        facts: RunFacts,
        accelerator: Accelerator,
        model: nn.Module,
        average: nn.Module | None,
        check: Callable[[], None],
    ) -> BoxLoss:
        return BoxLoss(facts.recipe, facts.preprocess, model, accelerator.device)

    def explained(self, found: BoxesFound, source: Pictures) -> dict[str, Any]:
        boxes = cast(BoxSource, source)
        scores = found.scores(boxes)
        tables = [
            ClassTable(name="AP", explained="average precision, mean over overlaps", values=scores.class_ap),
            ClassTable(name="AP50", explained="the same at half overlap", values=scores.class_ap50),
        ]
        if scores.masks:
            explained = "average precision of masks, mean over overlaps"
            tables.append(ClassTable(name="mask AP", explained=explained, values=scores.masks.class_ap))
        return {"class_tables": tuple(tables), "shown": worst_boxes(found, boxes)}


class BoxLoss:
    """See `Loss`: the sum of what the detector itself counts as wrong."""

    def __init__(
        self, recipe: Recipe, preprocess: PreprocessSpec, model: nn.Module, device: torch.device
    ) -> None:
        self.recipe, self.model = recipe, model
        self.inputs = Inputs(recipe, preprocess, device)

    def __call__(self, batch: Batch, side: int, epoch: float) -> Tensor:
        targets = [_target(one) for one in cast(tuple[BoxTarget, ...], batch.annotations)]
        losses: Mapping[str, Tensor] = self.model(self.inputs(batch.images_BCHW), targets)
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def blank(self, count: int) -> Batch:
        size = self.recipe.input_size
        nothing = BoxTarget(
            torch.zeros(0, 4),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, dtype=torch.bool),
            torch.zeros(0, *size, dtype=torch.uint8),
        )
        return Batch(
            torch.zeros(count, 3, *size, dtype=torch.uint8),
            torch.zeros(count, dtype=torch.int64),
            annotations=(nothing,) * count,
        )


def _target(found: BoxTarget) -> dict[str, Tensor]:
    """What heads take; groups, which are neither asked for nor wrong to find, are left out."""
    kept = ~found.crowd_N
    target = {"boxes": found.boxes_N4[kept], "labels": found.labels_N[kept]}
    return target if found.masks_NHW is None else {**target, "masks": found.masks_NHW[kept]}
