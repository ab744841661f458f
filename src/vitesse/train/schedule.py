"""What changes while a run goes on, as functions of the recipe and of how far it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from vitesse.layers import Residual
from vitesse.train.recipe import Recipe


def lr_at(recipe: Recipe, epoch: float) -> float:
    """Learning rate after so many epochs, a fraction within one."""
    peak, warmup = recipe.peak_lr, recipe.warmup_epochs
    by_epoch = recipe.schedule == "cosine_epochs"
    epoch = max(math.floor(epoch) - 1, 0) if by_epoch else epoch
    if epoch < warmup:
        return recipe.warmup_lr + (peak - recipe.warmup_lr) * epoch / warmup
    first = 0 if by_epoch else warmup
    done = min((epoch - first) / max(recipe.epochs - first, 1e-9), 1.0)
    return recipe.min_lr + (peak - recipe.min_lr) * (1 + math.cos(math.pi * done)) / 2


def ema_decay_at(recipe: Recipe, step: int) -> float:
    """Decay of the moving average at a step, see `Recipe.ema`."""
    if recipe.ema_warmup == "power":
        return min(recipe.ema, 1 - math.pow(1 + step, -2 / 3))
    if recipe.ema_warmup == "exponential":
        return recipe.ema * (1 - math.exp(-step / recipe.ema_ramp))
    return recipe.ema


def size_at(recipe: Recipe, epoch: int, step: int) -> int:
    """Side in pixels at which a step is trained; the same for every process."""
    sizes = recipe.train_sizes
    if not sizes:
        return recipe.image_size
    if recipe.size_order == "growing":
        return sizes[min(epoch * len(sizes) // recipe.epochs, len(sizes) - 1)]
    return int(np.random.default_rng((recipe.seed, step)).choice(sizes))


class DropPathSchedule:
    """Stochastic depth of a model's residual branches as the recipe wants it, see `Recipe.drop_path_skip`."""

    def __init__(self, recipe: Recipe, model: nn.Module) -> None:
        self.ramp = recipe.drop_path_ramp
        stages: nn.Module = getattr(model, "stages", model)  # a stem never drops
        branches = [module for module in stages.modules() if isinstance(module, Residual)]
        if recipe.drop_path_skip is not None:
            _rise_by_branch(branches, recipe.drop_path_skip, recipe.drop_path_rate)
        self.rates = [(module, module.drop_path) for module in branches]

    def set(self, done: float) -> None:
        """Let a share of the run, 0 to 1, be done."""
        if self.ramp:
            for module, rate in self.rates:
                module.drop_path = rate * done


def _rise_by_branch(branches: Sequence[Residual], skip: int, last: float) -> None:
    """Rates that rise evenly from 0 at branch `skip`, counted from 1, to `last` at the last one."""
    rising = max(len(branches) - skip, 1)
    for position, branch in enumerate(branches, start=1):
        branch.drop_path = last * max(position - skip, 0) / rising
