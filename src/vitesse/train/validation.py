"""Evaluation during training, shared among the processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitesse.data.contract import Pictures
from vitesse.data.subset import part_of, take
from vitesse.errors import DataError, ImageError
from vitesse.metrics import Found, Showing
from vitesse.models.engine import TorchEngine
from vitesse.progress import track
from vitesse.runtime.imaging import load_tensor
from vitesse.spec import PreprocessSpec
from vitesse.train.recipe import Recipe
from vitesse.train.stopping import StoppableEngine, StopSignals
from vitesse.train.tasks import Task
from vitesse.train.together import from_all

BN_BATCH = 100


def validate(
    task: Task,
    accelerator: Accelerator,
    weights: nn.Module,
    source: Pictures,
    preprocess: PreprocessSpec,
    recipe: Recipe,
    signals: StopSignals,
) -> Found:
    """What a model finds in every picture of a source; each process asks it about a part of them.

    Raises:
        StopRequestedError: a process was told to stop; all of them raise it.
        DataError: no picture could be read.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = np.arange(rank, len(source), world)
    engine = StoppableEngine(TorchEngine(weights, accelerator.device), signals)
    showing = Showing(
        preprocess=preprocess,
        workers=max(1, recipe.workers),
        mux_width=getattr(weights, "mux_width", 1),
    )

    def ask() -> Found | DataError:
        part = part_of(source, mine) if world > 1 else source
        try:
            return task.exam.find(engine, part, showing).of_pictures(mine)
        except DataError as error:  # a part without a readable picture matters only where all are so
            return error

    parts = from_all(accelerator, ask)
    if found := [part for part in parts if not isinstance(part, DataError)]:
        return task.exam.joined(found)
    raise next(part for part in parts if isinstance(part, DataError))


def with_fresh_statistics(
    weights: nn.Module,
    source: Pictures,
    preprocess: PreprocessSpec,
    recipe: Recipe,
    device: torch.device,
    check: Callable[[], object] = lambda: None,
) -> nn.Module:
    """A copy of a model whose BatchNorm statistics are those of `recipe.bn_images` training pictures.

    They are means over batches of about `BN_BATCH` pictures, prepared as for an evaluation; everything but
    BatchNorm behaves as in one. `check` is called before every batch, and may raise.
    """

    def load(index: int) -> NDArray[np.float32] | None:
        try:
            return load_tensor(drawn.read(index), preprocess)
        except (ImageError, OSError):
            return None

    model = copy.deepcopy(weights).eval()
    norms = [(norm, norm.momentum) for norm in model.modules() if isinstance(norm, _BatchNorm)]
    for norm, _ in norms:
        norm.reset_running_stats()
        norm.momentum = None  # which makes torch take the mean of all batches
        norm.train()
    drawn = take(source, recipe.bn_images, recipe.seed)
    parts = np.array_split(np.arange(len(drawn)), math.ceil(len(drawn) / BN_BATCH))
    with ThreadPoolExecutor(max(1, recipe.workers)) as pool:
        for part in track(parts, "statistics", len(parts)):
            check()
            pictures = [picture for picture in pool.map(load, part.tolist()) if picture is not None]
            if len(pictures) > 1:
                model(torch.from_numpy(np.stack(pictures)).to(device))
    for norm, momentum in norms:
        norm.momentum = momentum
    return model.eval()
