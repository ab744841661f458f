"""Model names and the functions that build them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vitesse.errors import UnknownModelError, did_you_mean

if TYPE_CHECKING:
    from vitesse.models.backbone import VisionModel
    from vitesse.spec import ModelSpec, Task

Builder = Callable[["ModelSpec"], "VisionModel"]

_BUILDERS: dict[str, Builder] = {}
_TASKS: dict[str, Task] = {}


def register(*names: str, task: Task = "classify") -> Callable[[Builder], Builder]:
    """Let `build_model` find a family's builder under each of its model names."""

    def add(builder: Builder) -> Builder:
        _BUILDERS.update(dict.fromkeys(names, builder))
        _TASKS.update(dict.fromkeys(names, task))
        return builder

    return add


def registered_models(task: Task | None = "classify") -> tuple[str, ...]:
    """The names that have a builder, sorted: of one task, or of all."""
    return tuple(sorted(name for name, found in _TASKS.items() if task in (None, found)))


def task_of(name: str) -> Task:
    """What the model of this name is for; those that nobody registered, such as timm's, are classifiers."""
    return _TASKS.get(name, "classify")


def build_model(spec: ModelSpec) -> VisionModel:
    """The model that `spec` describes, with fresh weights.

    Raises:
        UnknownModelError: no family registered the name.
    """
    if spec.name not in _BUILDERS:
        raise UnknownModelError(f"no model is named {spec.name!r}; {did_you_mean(spec.name, _BUILDERS)}")
    return _BUILDERS[spec.name](spec)
