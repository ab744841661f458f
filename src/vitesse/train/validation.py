"""Accuracy during training, shared among the processes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

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


@torch.no_grad()
def with_fresh_statistics(
    weights: nn.Module, source: Source, preprocess: PreprocessSpec, recipe: Recipe, device: torch.device
) -> nn.Module:
    """A copy of a model whose BatchNorm statistics are those of `recipe.bn_images` training pictures.

    They are means over batches of about `BN_BATCH` pictures, prepared as for an evaluation; everything but
    BatchNorm behaves as in one.
    """
    model = copy.deepcopy(weights).eval()
    norms = [(norm, norm.momentum) for norm in model.modules() if isinstance(norm, _BatchNorm)]
    for norm, _ in norms:
        norm.reset_running_stats()
        norm.momentum = None  # which makes torch take the mean of all batches
        norm.train()
    drawn = take(source, recipe.bn_images, recipe.seed)
    for part in np.array_split(np.arange(len(drawn)), math.ceil(len(drawn) / BN_BATCH)):
        pictures = []
        for index in part.tolist():
            with contextlib.suppress(ImageError, OSError):
                pictures.append(load_tensor(drawn.read(index), preprocess))
        if len(pictures) > 1:
            model(torch.from_numpy(np.stack(pictures)).to(device))
    for norm, momentum in norms:
        norm.momentum = momentum
    return model.eval()
