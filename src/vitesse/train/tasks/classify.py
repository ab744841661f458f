"""To tell the class of a picture.

Shape suffixes: B images, C channels, H rows, W columns, N pictures of the source, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from vitesse.data.check import DataCheck, check_data, check_trainable, class_balance
from vitesse.data.contract import Pictures
from vitesse.data.loader import Batch
from vitesse.data.sources import Source
from vitesse.data.transforms import Augment, DeviceTransform, mix_batches
from vitesse.metrics import EXAMINATIONS, Outcomes
from vitesse.spec import PreprocessSpec
from vitesse.train.losses import Targets, teacher_shares
from vitesse.train.objective import Objective
from vitesse.train.recipe import Recipe, check_all_classes_alike, expect
from vitesse.train.report import TOP1, TOP5, Measure, Predictions
from vitesse.train.teacher import Teacher, cached_logits, check_classes, load_teacher

if TYPE_CHECKING:
    from vitesse.train.folder import RunFacts


class Classify:
    """See `Task`."""

    recipe = "finetune"
    exam = EXAMINATIONS["classify"]
    measures: tuple[Measure, ...] = (TOP1, TOP5)
    counted = "picture"

    def check(self, source: Pictures) -> None:
        check_trainable(cast(Source, source))

    def look_over(
        self, train: Pictures, val: Pictures, decode: bool, workers: int, check: Callable[[], None]
    ) -> DataCheck:
        return check_data(cast(Source, train), cast(Source, val), decode=decode, workers=workers, check=check)

    def amounts(self, source: Pictures) -> NDArray[np.int64]:
        return class_balance(cast(Source, source))

    def check_recipe(self, recipe: Recipe) -> None:
        expect(recipe.image_height is None, "image_height", "none to classify", recipe.image_height)
        check_all_classes_alike(recipe)
        expect(recipe.resize != "fit", "resize", "crop or squash to classify", recipe.resize)

    def augmentation(self, recipe: Recipe) -> Augment:
        side = recipe.augment_size or max(recipe.image_size, *recipe.train_sizes, 0)
        return Augment(
            (side, side),
            crop_scale=recipe.crop_scale,
            hflip=recipe.hflip,
            vflip=recipe.vflip,
            color_jitter=recipe.color_jitter,
            rand_augment=recipe.rand_augment,
            interpolation=recipe.interpolation,
        )

    def loss(
        self,
        facts: RunFacts,
        accelerator: Accelerator,
        model: nn.Module,
        average: nn.Module | None,
        check: Callable[[], None],
    ) -> LabelLoss:
        targets, teacher = _targets_and_teacher(facts, accelerator, check)
        forward = torch.compile(model) if facts.recipe.compile else model
        objective = Objective(facts.recipe, forward, teacher, average, accelerator.autocast)
        mux_width = getattr(accelerator.unwrap_model(model), "mux_width", 1)
        return LabelLoss(facts.recipe, facts.preprocess, objective, targets, accelerator.device, mux_width)

    def explained(self, found: Outcomes, source: Pictures) -> dict[str, Any]:
        predictions = Predictions(
            labels_N=found.labels_B,
            firsts_N=found.firsts_B,
            confidences_N=found.confidences_B,
            label_probs_N=found.label_probs_B,
            pictures_N=found.pictures_B,
            source=source,
        )
        return {"predictions": predictions}


class LabelLoss:
    """See `Loss`: pictures become inputs, labels target shares, and both may be mixed.

    Args:
        targets: of every picture of the source.
        mux_width: pictures that share a pass of the model.
    """

    def __init__(
        self,
        recipe: Recipe,
        preprocess: PreprocessSpec,
        objective: Objective,
        targets: Targets,
        device: torch.device,
        mux_width: int,
    ) -> None:
        self.recipe, self.objective, self.targets, self.mux_width = recipe, objective, targets, mux_width
        self.transform = DeviceTransform(preprocess, recipe.random_erase).to(device)
        self.mix = mix_batches(recipe.mixup, recipe.cutmix, recipe.mix_prob)

    def __call__(self, batch: Batch, side: int, epoch: float) -> Tensor:
        x_BCHW = self.transform(batch.images_BCHW, (side, side))
        targets_BK = self.targets.of(batch.indices_B.cpu()).to(x_BCHW.device, non_blocking=True)
        if self.mix is not None:
            x_BCHW, targets_BK = self.mix(x_BCHW, targets_BK)
        count = max(1, len(x_BCHW) - self._left_out())
        x_BCHW, targets_BK = x_BCHW[:count], targets_BK[:count]
        if self.recipe.channels_last:
            x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        return self.objective(x_BCHW, targets_BK, epoch)

    def blank(self, count: int) -> Batch:
        side = self.recipe.image_size
        images_BCHW = torch.zeros(count, 3, side, side, dtype=torch.uint8)
        return Batch(images_BCHW, torch.zeros(count, dtype=torch.int64))

    def _left_out(self) -> int:
        """How many images to take from a step, so that a multiplexed model sees groups that are not full."""
        short = self.mux_width > 1 and torch.rand(()).item() < self.recipe.short_groups
        return int(torch.randint(1, self.mux_width, ())) if short else 0


def _targets_and_teacher(
    facts: RunFacts, accelerator: Accelerator, check: Callable[[], None]
) -> tuple[Targets, Teacher | None]:
    """What every picture should be taken for, and the teacher to ask at every step, if any.

    A teacher that is asked once a picture is mixed into the targets; `check` is called before each of its
    batches, and may raise.
    """
    recipe, source = facts.recipe, cast(Source, facts.train_source)
    targets = Targets(torch.from_numpy(source.labels), len(source.class_names), recipe.label_smoothing)
    teacher = load_teacher(recipe, facts.spec.num_classes)
    if teacher is not None:
        check_classes(teacher, source, recipe.teacher)
        teacher.to(accelerator.device)
    if teacher is None or not recipe.teacher_cache:
        return targets, teacher
    path = facts.out / "teacher_logits.safetensors"
    preprocess = replace(facts.preprocess, image_size=teacher.image_size)
    logits_NK = cached_logits(accelerator, teacher, source, preprocess, path, recipe.workers, check)
    shares_NK = teacher_shares(logits_NK, recipe.distill, recipe.distill_temperature)
    return replace(targets, shares_NK=shares_NK, alpha=recipe.distill_alpha), None
