"""Accuracy during training, shared among the processes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from vitesse.data.sources import Source, Subset, take
from vitesse.errors import DataError, ImageError
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
        DataError: no picture could be read.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = np.arange(rank, len(source), world)
    engine = StoppableEngine(TorchEngine(weights, accelerator.device), signals)
    found, stopped, refusal = None, False, ""
    try:
        found = outcomes(
            engine,
            Subset(source, mine) if world > 1 else source,
            preprocess,
            workers=max(1, recipe.workers),
            mux_width=getattr(weights, "mux_width", 1),
        )
    except StopRequestedError:
        stopped = True
    except DataError as error:  # another process may have pictures that can be read
        refusal = str(error)
    if world == 1:
        parts = [found]
    else:
        moved = found and dataclasses.replace(found, pictures_B=mine[found.pictures_B])
        parts, halts = gather_object([moved]), gather_object([stopped])
        stopped = any(halts)
    if stopped:
        raise StopRequestedError(signals.received or "another process")
    if not any(parts):
        raise DataError(refusal)
    return Outcomes.joined([part for part in parts if part is not None])


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
