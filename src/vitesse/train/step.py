"""One optimisation step, which a batch that is not finite cannot spoil.

Shape suffixes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vitesse.data.loader import Batch
from vitesse.train.clock import StepClock
from vitesse.train.optimizer import KeptBuffers, clip, update_average
from vitesse.train.recipe import Recipe
from vitesse.train.schedule import lr_at, size_at
from vitesse.train.tasks import Loss


@dataclass(frozen=True)
class StepResult:
    """What a step found, the same for all processes but for `refused`.

    Attributes:
        loss: mean over all images.
        grad_norm: before clipping.
        seen: a picture could be read, by any process.
        bad: loss or gradient was not finite or nothing was seen, and the weights are as they were.
        stop, save: some process wants to.
        refused: indices of this process' pictures that could not be read.
    """

    loss: float
    grad_norm: float
    lr: float
    seen: bool
    bad: bool
    stop: bool
    save: bool
    refused: tuple[int, ...]

    def explain(self) -> str:
        """Why it is bad."""
        if not self.seen:
            return "none of its pictures can be read"
        return f"loss is {self.loss:g}, norm of the gradient {self.grad_norm:g}"


class LostWorkerError(Exception):
    """A process that reads pictures was killed; the model is as before the step."""


class TrainingStep:
    """Batches to updated weights.

    Args:
        model: as prepared by accelerate, like `optimizer`.
        average: the moving average of the unwrapped model, or None.
        loss: what the model's task minimises.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        average: nn.Module | None,
        loss: Loss,
        clock: StepClock,
    ) -> None:
        self.recipe, self.accelerator, self.clock = recipe, accelerator, clock
        self.model, self.optimizer, self.average = model, optimizer, average
        self.loss = loss
        self.plain: nn.Module = accelerator.unwrap_model(model)
        self.buffers = KeptBuffers(self.plain)
        self.batches: list[Batch] = []

    def __call__(
        self, batches: Iterator[Batch], step: int, epoch: float, *, stop: bool, save: bool
    ) -> StepResult:
        """Take this process' parts of a step from `batches` and train on them, `epoch` epochs into the run.

        `stop` and `save` are what this process wants; the result has what any wants.
        """
        recipe, lr = self.recipe, lr_at(self.recipe, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.buffers.keep()
        self.batches = []
        loss = torch.zeros((), device=self.accelerator.device)
        for part in range(recipe.accumulate):
            self.clock.start()
            self.batches.append(self._read(batches))
            self.clock.done("data")
            last = part + 1 == recipe.accumulate
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss += self._forward_backward(self.batches[-1], step, part, epoch)
        norm = clip(self.accelerator, self.model, recipe)
        seen = any(len(batch.indices_B) for batch in self.batches)
        mean_loss, mean_norm, *any_of = self._agree(loss, norm, float(seen), float(stop), float(save))
        seen, stop, save = (share > 0 for share in any_of)
        bad = self._update(seen and math.isfinite(mean_loss), math.isfinite(mean_norm), step)
        self.clock.done("update")
        refused = tuple(index for batch in self.batches for index in batch.refused)
        return StepResult(mean_loss, mean_norm, lr, seen, bad, stop, save, refused)

    def last_indices(self) -> list[int]:
        """Which pictures of the source this process trained on in the last step."""
        return [index for batch in self.batches for index in batch.indices_B.tolist()]

    def last_pictures(self) -> dict[str, Tensor]:
        """Those pictures, one at least, as augmented, uint8 (B, C, H, W), and their indices (B,)."""
        read = [batch for batch in self.batches if len(batch.indices_B)]
        return {
            "images_BCHW": torch.cat([batch.images_BCHW for batch in read]),
            "indices_B": torch.cat([batch.indices_B for batch in read]),
        }

    def _read(self, batches: Iterator[Batch]) -> Batch:
        try:
            return next(batches)
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            self.buffers.restore()
            raise LostWorkerError(str(error)) from error

    def _forward_backward(self, batch: Batch, step: int, part: int, epoch: float) -> Tensor:
        recipe = self.recipe
        state = np.random.SeedSequence((recipe.seed, step, part, self.accelerator.process_index))
        self._seed(int(state.generate_state(1)[0]))
        taught = bool(len(batch.indices_B))
        before = None if taught else KeptBuffers(self.plain)
        shown = self._at_least_two(batch).to(self.accelerator.device)
        loss = self.loss(shown, size_at(recipe, int(epoch), step), epoch) * (taught / recipe.accumulate)
        self.clock.done("forward")
        self.accelerator.backward(loss)
        if before is not None:
            before.restore()
        self.clock.done("backward")
        return loss.detach()

    def _seed(self, seed: int) -> None:
        """What is drawn on the training device depends on the step and the process alone."""
        torch.manual_seed(seed)
        random.seed(seed)

    def _at_least_two(self, batch: Batch) -> Batch:
        """BatchNorm needs two images, and every process a batch, which is blank where none could be read."""
        if len(batch.indices_B) > 1:
            return batch
        return batch.twice() if len(batch.indices_B) else self.loss.blank(2)

    def _agree(self, loss: Tensor, norm: Tensor, *wishes: float) -> list[float]:
        """The mean of each value over all processes."""
        values = torch.stack([loss.float(), norm.float(), *(torch.full_like(loss, wish) for wish in wishes)])
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, "mean")
        agreed: list[float] = values.tolist()
        return agreed

    def _update(self, loss_is_good: bool, norm_is_finite: bool, step: int) -> bool:
        """Step, unless that would spoil the weights; whether it was left out."""
        scaler = self.accelerator.scaler
        bad = not (loss_is_good and norm_is_finite)
        if loss_is_good and scaler is not None:  # it leaves out steps itself, and learns from them
            self.optimizer.step()
            bad = self.accelerator.optimizer_step_was_skipped
        elif scaler is not None:
            scaler.update()
        elif not bad:
            self.optimizer.step()
        self.optimizer.zero_grad()
        if bad:
            self.buffers.restore()
            return bad
        if self.accelerator.num_processes > 1:
            self.buffers.share(self.accelerator)
        if self.average is not None:
            update_average(self.average, self.plain, self.recipe, step)
        return bad
