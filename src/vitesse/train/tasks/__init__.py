"""What training asks of each task; the loop is the same for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitesse.data.annotated import kind_of
from vitesse.errors import ConfigError
from vitesse.models import gives_masks
from vitesse.models.registry import task_of_model
from vitesse.train.tasks.classify import Classify
from vitesse.train.tasks.contract import Loss, Task
from vitesse.train.tasks.detect import STARTER, Detect
from vitesse.train.tasks.segment import Segment

__all__ = ["STARTERS", "Loss", "Task", "check_kind", "task_of"]

STARTERS = {
    "classify": "efficientvit_m5",
    "detect": STARTER,
    "segment": "efficientvit_seg_b0_cityscapes",
}
"""The model that is trained where none is named, by what the data is annotated for."""
TASKS: dict[str, Task] = {"classify": Classify(), "detect": Detect(), "segment": Segment()}
WITH_MASKS = Detect(masks=True)


def check_kind(data: str | Path | Any, task: Task, model: str) -> None:
    """
    Raises:
        ConfigError: the data is annotated for another task than the model's.
    """
    kind = kind_of(data)
    if TASKS[kind].exam is not task.exam:
        raise ConfigError(f"{data}: is annotated to {kind}, {model} is not; take --model {STARTERS[kind]}")


def task_of(model: str) -> Task:
    """The task of a model by its name; what is not ours classifies.

    Raises:
        ConfigError: models of its task are not trained.
    """
    name = task_of_model(model) or "classify"
    if name not in TASKS:
        raise ConfigError(f"{model}: expected a model to {' or '.join(TASKS)}, got one of the task {name}")
    return WITH_MASKS if gives_masks(model) else TASKS[name]
