"""What training asks of each task; the loop is the same for all."""

from __future__ import annotations

from vitesse import spec
from vitesse.models import registered_models
from vitesse.train.tasks.classify import Classify
from vitesse.train.tasks.contract import Figures, Found, Loss, Task
from vitesse.train.tasks.detect import Detect
from vitesse.train.tasks.segment import Segment

__all__ = ["Figures", "Found", "Loss", "Task", "task_of"]

TASKS: dict[spec.Task, Task] = {"classify": Classify(), "detect": Detect(), "segment": Segment()}


def task_of(model: str) -> Task:
    """The task of a model by its name; what is not ours classifies."""
    return next((task for name, task in TASKS.items() if model in registered_models(name)), TASKS["classify"])
