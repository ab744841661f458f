"""AdamW as the papers use it, clipping, and the moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from vitesse.errors import require
from vitesse.train.recipe import Recipe
from vitesse.train.schedule import ema_decay_at
from vitesse.train.sharding import gathered, own_part


def adamw(model: nn.Module, recipe: Recipe) -> AdamW:
    """AdamW without decay on norms, biases, attention biases, position tables, embeddings and tokens."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if _decays(name, p)]
    free = [p for name, p in named if not _decays(name, p)]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=recipe.peak_lr, fused=recipe.precision != "fp16")


def _decays(name: str, parameter: nn.Parameter) -> bool:
    last = name.rpartition(".")[2]
    return parameter.ndim > 1 and "bias" not in last and not last.endswith(("_embed", "_token"))


def clip(accelerator: Accelerator, model: nn.Module, recipe: Recipe) -> Tensor:
    """Clip the gradients as the recipe says, and give their norm before that, a scalar."""
    by_norm = recipe.clip_grad if recipe.clip_mode == "norm" and recipe.clip_grad else math.inf
    norm: Tensor = accelerator.clip_grad_norm_(model.parameters(), by_norm)
    if recipe.clip_mode == "agc" and recipe.clip_grad:
        require("timm.utils.agc", "train").adaptive_clip_grad(model.parameters(), recipe.clip_grad)
    return gathered(norm)


def moving_average(model: nn.Module, recipe: Recipe) -> nn.Module | None:
    """The moving average of the weights, at first the weights themselves; None where it is off."""
    return copy.deepcopy(model).eval() if recipe.ema else None


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, recipe: Recipe, step: int) -> None:
    """Let the average follow weights and statistics after a step."""
    pairs = [*zip(_own_parts(average), _own_parts(model), strict=True)]
    old, new = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    torch._foreach_lerp_(old, new, 1 - ema_decay_at(recipe, step))
    for count, counted in pairs:
        if not count.is_floating_point():
            count.copy_(counted)


def _own_parts(model: nn.Module) -> list[Tensor]:
    """What this process holds of a model's tensors."""
    return [own_part(tensor) for tensor in model.state_dict().values()]


class KeptBuffers:
    """A copy of a model's buffers, to undo what a batch that was not finite did to BatchNorm's statistics."""

    def __init__(self, model: nn.Module) -> None:
        kept = model.state_dict().keys()
        self.buffers = [buffer for name, buffer in model.named_buffers() if name in kept]
        self.copies = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def keep(self) -> None:
        if self.buffers:
            torch._foreach_copy_(self.copies, self.buffers)

    @torch.no_grad()
    def restore(self) -> None:
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.copies)

    @torch.no_grad()
    def share(self, accelerator: Accelerator) -> None:
        """Give all processes the mean of their statistics, so that what each evaluates is what is saved."""
        floats = [buffer for buffer in self.buffers if buffer.is_floating_point()]
        if floats:
            mean = accelerator.reduce(torch.cat([buffer.flatten() for buffer in floats]), "mean")
            torch._foreach_copy_(floats, [*_like(floats, mean)])


def _like(tensors: list[Tensor], flat: Tensor) -> Iterator[Tensor]:
    """Parts of a flat tensor in the shapes of others."""
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return (part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True))
