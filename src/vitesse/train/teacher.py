"""Distillation teachers: asked at every step, or once a picture.

Shape suffixes: B images, N pictures of a source, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.errors import ConfigError, ImageError
from vitesse.models import build
from vitesse.models.checkpoint import load_checkpoint
from vitesse.progress import say, track
from vitesse.runtime.imaging import load_tensor
from vitesse.spec import ModelSpec
from vitesse.train.checkpoint import digest
from vitesse.weights.files import save_tensors
from vitesse.weights.load import load_weights

if TYPE_CHECKING:
    from vitesse.data.sources import Source
    from vitesse.spec import PreprocessSpec
    from vitesse.train.recipe import Recipe

ASKED_TOGETHER = 64


class Teacher(nn.Module):
    """A frozen classifier: normalised images (B, C, H, W) of any size to logits (B, K)."""

    def __init__(self, model: nn.Module, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.image_size = image_size

    @torch.no_grad()
    def forward(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.shape[2:] != self.image_size:
            x_BCHW = F.interpolate(x_BCHW, self.image_size, mode="bicubic", align_corners=False)
        logits_BK: Tensor = self.model(x_BCHW)
        return logits_BK


def load_teacher(recipe: Recipe, num_classes: int) -> Teacher | None:
    """The teacher that a recipe names: a Vitesse checkpoint, or `timm:NAME` with `teacher_weights`.

    Raises:
        ConfigError: it has other classes than the student, or no weights.
    """
    if not recipe.teacher:
        return None
    if recipe.teacher.endswith(".safetensors"):
        model, _ = load_checkpoint(Path(recipe.teacher))
        if model.spec.num_classes != num_classes:
            raise ConfigError(
                f"teacher {recipe.teacher}: has {model.spec.num_classes} classes, expected {num_classes}"
            )
        return Teacher(model, model.spec.image_size)
    if not recipe.teacher_weights:
        raise ConfigError(f"teacher {recipe.teacher}: expected teacher_weights=FILE.safetensors beside it")
    spec = ModelSpec(name=recipe.teacher, num_classes=num_classes)
    model = build(spec)
    load_weights(model, Path(recipe.teacher_weights))
    return Teacher(model, spec.image_size)


def cached_logits(
    teacher: Teacher,
    source: Source,
    preprocess: PreprocessSpec,
    path: Path,
    workers: int,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """A teacher's logits (N, K) for every picture of a source, mean of the plain and the mirrored view.

    They are kept in `path` and read from there when the run is resumed, unless they are of another teacher
    or of other pictures. An unreadable picture gets zeros. `check` is called before every batch, and may
    raise.
    """
    asked = {"asked": digest(teacher.state_dict(), source.fingerprint, repr(preprocess))}
    with contextlib.suppress(SafetensorError, OSError), safe_open(path, "pt") as file:
        if file.metadata() == {"format": "pt", **asked}:
            cached_NK: Tensor = file.get_tensor("logits_NK")
            return cached_NK

    def load(index: int) -> Tensor:
        try:
            return torch.from_numpy(load_tensor(source.read(index), preprocess))
        except (ImageError, OSError):
            return torch.zeros(len(preprocess.mean), *preprocess.image_size)

    device = next(teacher.parameters()).device
    rows: list[Tensor] = []
    chunks = np.array_split(np.arange(len(source)), max(1, len(source) // ASKED_TOGETHER))
    with ThreadPoolExecutor(workers or 1) as pool, torch.autocast(device.type, torch.bfloat16):
        for chunk in track(chunks, "teacher", len(chunks)):
            check()
            x_BCHW = torch.stack(list(pool.map(load, chunk.tolist()))).to(device)
            rows.append((teacher(x_BCHW) + teacher(x_BCHW.flip(3))).float().cpu() / 2)
    logits_NK = torch.cat(rows)
    try:
        save_tensors(path, {"logits_NK": logits_NK}, asked)
    except OSError as error:
        say(f"{error}; the teacher is asked again when the run is resumed")
    return logits_NK
