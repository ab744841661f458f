"""Distillation teachers: asked at every step, or once a picture.

Shape suffixes: B images, N pictures of a source, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.catalogue import CHECKPOINT_SUFFIX
from vitesse.data.sources import Source, Subset
from vitesse.errors import ConfigError, DataError, ImageError
from vitesse.metrics import with_classes
from vitesse.models import build
from vitesse.models.checkpoint import load_checkpoint
from vitesse.models.foreign import is_timm, timm_preprocess, timm_weights
from vitesse.progress import say, track
from vitesse.runtime.imaging import load_tensor
from vitesse.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, PreprocessSpec, from_mapping
from vitesse.train.checkpoint import digest
from vitesse.train.together import from_all
from vitesse.weights.files import save_tensors
from vitesse.weights.hub import fetch
from vitesse.weights.load import load_weights

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vitesse.train.recipe import Recipe

ASKED_TOGETHER = 64


class Teacher(nn.Module):
    """A frozen classifier: images (B, 3, H, W) of any size, with ImageNet's mean and deviation, to (B, K).

    Args:
        preprocess: the size and the normalisation that the model expects.
        class_names: in the order of its logits; empty where they are not known.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, model: nn.Module, preprocess: PreprocessSpec, class_names: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.class_names = class_names
        self.model = model.eval().requires_grad_(False)
        self.image_size = preprocess.image_size
        mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
        shift = (torch.tensor(IMAGENET_MEAN) - mean) / std
        self.register_buffer("scale", (torch.tensor(IMAGENET_STD) / std).view(-1, 1, 1))
        self.register_buffer("shift", shift.view(-1, 1, 1))

    @torch.no_grad()
    def forward(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.shape[2:] != self.image_size:
            x_BCHW = F.interpolate(x_BCHW, self.image_size, mode="bicubic", align_corners=False)
        logits_BK: Tensor = self.model(x_BCHW * self.scale + self.shift)
        return logits_BK


def load_teacher(recipe: Recipe, num_classes: int) -> Teacher | None:
    """The teacher that a recipe names: a Vitesse checkpoint, or `timm:NAME` with its own or given weights.

    Raises:
        ConfigError: it has other classes than the student, or takes no colour pictures.
        UnknownModelError: timm has no such model.
        WeightsError: its weights cannot be read or fetched.
    """
    name = recipe.teacher
    if not name:
        return None
    if name.endswith(CHECKPOINT_SUFFIX):
        model, metadata = load_checkpoint(Path(name))
        _check_teacher(name, model.spec.num_classes, num_classes, model.spec.in_chans)
        written = metadata.get("preprocess")
        known = from_mapping(PreprocessSpec, written) if written else None
        return Teacher(
            model,
            known or PreprocessSpec(image_size=model.spec.image_size),
            tuple(metadata.get("class_names") or ()),
        )
    if not is_timm(name):
        raise ConfigError(f"recipe teacher: expected timm:NAME or a .safetensors checkpoint, got {name!r}")
    preprocess = timm_preprocess(name)
    model = build(ModelSpec(name=name, num_classes=num_classes, image_size=preprocess.image_size))
    if recipe.teacher_weights:
        load_weights(model, Path(recipe.teacher_weights))
    else:
        hub_id, published = timm_weights(name)
        _check_teacher(name, published, num_classes)
        say(f"teacher {name}: fetching {hub_id}")
        load_weights(model, fetch(hub_id))
    return Teacher(model, preprocess)


def check_classes(teacher: Teacher, source: Source, name: str) -> None:
    """Refuse a teacher whose logits would be taken for other classes.

    Raises:
        ConfigError: its classes are others than the data's, or stand in another order.
    """
    if not teacher.class_names:
        return
    try:
        alike = np.array_equal(with_classes(source, teacher.class_names).labels, source.labels)
    except DataError as error:
        raise ConfigError(f"teacher {name}: {error}") from error
    if not alike:
        raise ConfigError(
            f"teacher {name}: its classes stand in another order than the data's; take one trained on data "
            "with the same class names"
        )


def _check_teacher(name: str, classes: int, expected: int, in_chans: int = 3) -> None:
    if classes != expected:
        raise ConfigError(f"teacher {name}: has {classes} classes, expected {expected}")
    if in_chans != 3:
        raise ConfigError(f"teacher {name}: takes {in_chans} channels, expected 3")


def cached_logits(
    accelerator: Accelerator,
    teacher: Teacher,
    source: Source,
    preprocess: PreprocessSpec,
    path: Path,
    workers: int,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """A teacher's logits (N, K) for every picture of a source, mean of the plain and the mirrored view.

    Each process asks about a part of them. They are kept in `path` and read from there when the run is
    resumed, unless they are of another teacher or of other pictures. An unreadable picture gets zeros.
    `check` is called before every batch, and may raise; then all processes raise.
    """
    asked = {"asked": digest(teacher.state_dict(), source.fingerprint, repr(preprocess))}
    kept_NK = _kept(path, asked)
    kept_everywhere = all(from_all(accelerator, lambda: kept_NK is not None))
    if kept_NK is not None and kept_everywhere:
        return kept_NK
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = Subset(source, np.arange(rank, len(source), world))
    parts = from_all(accelerator, lambda: _ask(teacher, mine, preprocess, workers, check))
    logits_NK = torch.empty(len(source), parts[0].shape[1])
    for first, part_NK in enumerate(parts):
        logits_NK[first::world] = part_NK
    if accelerator.is_main_process:
        try:
            save_tensors(path, {"logits_NK": logits_NK}, asked)
        except OSError as error:
            say(f"{error}; the teacher is asked again when the run is resumed")
    return logits_NK


def _kept(path: Path, asked: Mapping[str, str]) -> Tensor | None:
    """What an earlier run asked, if it was the same."""
    with contextlib.suppress(SafetensorError, OSError), safe_open(path, "pt") as file:
        if file.metadata() == {"format": "pt", **asked}:
            kept_NK: Tensor = file.get_tensor("logits_NK")
            return kept_NK
    return None


def _ask(
    teacher: Teacher, source: Source, preprocess: PreprocessSpec, workers: int, check: Callable[[], None]
) -> Tensor:
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
    return torch.cat(rows)
