"""What a step minimises: labels, a teacher, the model's own average, retrieval.

Shape suffixes: B images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vitesse.train.losses import (
    binary_cross_entropy,
    distillation_loss,
    retrieval_loss,
    soft_cross_entropy,
)
from vitesse.train.recipe import Recipe
from vitesse.train.teacher import Teacher


class Objective:
    """The loss of a batch, from a recipe.

    Args:
        forward: the model as it is run, wrapped or compiled.
        teacher: asked at every step, if any.
        average: the moving average of the model, which MESA needs.
        autocast: the precision in which both are asked.
    """

    def __init__(
        self,
        recipe: Recipe,
        forward: Callable[..., Any],
        teacher: Teacher | None,
        average: nn.Module | None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.autocast = autocast
        self.recipe, self.forward, self.teacher, self.average = recipe, forward, teacher, average
        self.label_loss = binary_cross_entropy if recipe.loss == "bce" else soft_cross_entropy

    def __call__(self, x_BCHW: Tensor, targets_BK: Tensor, epoch: float) -> Tensor:
        """Mean loss of images against target shares (B, K), after so many epochs."""
        warming_up = epoch < self.recipe.retrieval_epochs
        share = self.recipe.retrieval
        if not (warming_up or share):
            return self._task(self.forward(x_BCHW), x_BCHW, targets_BK, epoch)
        output, found_BC, own_BC = self.forward(x_BCHW, retrieve=True)
        retrieval = retrieval_loss(found_BC, own_BC)
        if warming_up:
            return retrieval
        return share * retrieval + (1 - share) * self._task(output, x_BCHW, targets_BK, epoch)

    def _task(self, output: Any, x_BCHW: Tensor, targets_BK: Tensor, epoch: float) -> Tensor:
        logits_BK, distilled_BK = output if isinstance(output, tuple) else (output, output)
        loss = self.label_loss(logits_BK, targets_BK)
        if self.recipe.mesa and epoch >= self.recipe.mesa_from * self.recipe.epochs:
            loss = loss + self.recipe.mesa * self.label_loss(logits_BK, self._own_average(x_BCHW))
        if self.teacher is None:
            return loss
        kind, alpha = self.recipe.distill, self.recipe.distill_alpha
        with self.autocast():
            teacher_BK = self.teacher(x_BCHW)
        distilled = distillation_loss(distilled_BK, teacher_BK, kind, self.recipe.distill_temperature)
        return (1 - alpha) * loss + alpha * distilled

    @torch.no_grad()
    def _own_average(self, x_BCHW: Tensor) -> Tensor:
        """What the moving average says of the images, as target shares (B, K)."""
        assert self.average is not None  # the recipe refuses mesa without ema
        with self.autocast():
            logits_BK: Tensor = self.average(x_BCHW).float()
        return logits_BK.sigmoid() if self.recipe.loss == "bce" else logits_BK.softmax(-1)
