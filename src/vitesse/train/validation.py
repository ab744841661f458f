"""Accuracy during training, shared among the processes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from vitesse.data.sources import Source, Subset, take
from vitesse.errors import ImageError
from vitesse.metrics import Outcomes, outcomes
from vitesse.models.engine import TorchEngine
from vitesse.runtime.imaging import load_tensor
from vitesse.spec import PreprocessSpec
from vitesse.train.recipe import Recipe
from vitesse.train.stopping import StoppableEngine, StopRequestedError, StopSignals

BN_BATCH = 100


def validate(
    accelerator: Accelerator,
    weights: nn.Module,
    source: Source,
    preprocess: PreprocessSpec,
    recipe: Recipe,
    signals: StopSignals,
) -> Outcomes:
    """What a model says of every picture of a source; each process asks it about a part of them.

    Raises:
        StopRequestedError: a process was told to stop; all of them raise it.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = np.arange(rank, len(source), world)
    engine = StoppableEngine(TorchEngine(weights, accelerator.device), signals)
    try:
        found: Outcomes | None = outcomes(
            engine,
            Subset(source, mine) if world > 1 else source,
            preprocess,
            workers=max(1, recipe.workers),
            mux_width=getattr(weights, "mux_width", 1),
        )
    except StopRequestedError:
        found = None
    if world == 1:
        parts = [found]
    else:
        moved = None if found is None else dataclasses.replace(found, pictures_B=mine[found.pictures_B])
        parts = gather_object([moved])
    whole = [part for part in parts if part is not None]
    if len(whole) < world:
        raise StopRequestedError(signals.received or "another process")
    return _joined(whole)


def _joined(parts: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of several parts of a source as one."""
    columns = [field.name for field in dataclasses.fields(Outcomes) if field.name.endswith("_B")]
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in columns
    }
    return dataclasses.replace(parts[0], **joined)


def with_fresh_statistics(
    weights: nn.Module, source: Source, preprocess: PreprocessSpec, recipe: Recipe, device: torch.device
) -> nn.Module:
    """A copy of a model whose BatchNorm statistics are those of `recipe.bn_images` training pictures."""
    model = copy.deepcopy(weights)
    drawn = take(source, recipe.bn_images, recipe.seed)

    def readable() -> Iterator[NDArray[np.float32]]:
        for index in range(len(drawn)):
            with contextlib.suppress(ImageError, OSError):
                yield load_tensor(drawn.read(index), preprocess)

    def batches() -> Iterator[Tensor]:
        tensors = readable()
        while len(part := list(islice(tensors, BN_BATCH))) > 1:
            yield torch.from_numpy(np.stack(part))

    update_bn(batches(), model.train(), device=device)
    return model.eval()
