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
_WITH_MASKS: set[str] = set()


def register(*names: str, task: Task = "classify", masks: bool = False) -> Callable[[Builder], Builder]:
    """Let `build_model` find a family's builder under each of its model names.

    Args:
        masks: of detectors, whether they give a mask for each object.
    """

    def add(builder: Builder) -> Builder:
        _BUILDERS.update(dict.fromkeys(names, builder))
        _TASKS.update(dict.fromkeys(names, task))
        _WITH_MASKS.update(names if masks else ())
        return builder

    return add


def gives_masks(name: str) -> bool:
    """Whether this is a detector that gives a mask for each object, and learns from masks."""
    return name in _WITH_MASKS


def registered_models(task: Task | None = "classify") -> tuple[str, ...]:
    """The names that have a builder, sorted: of one task, or of all."""
    return tuple(sorted(name for name, found in _TASKS.items() if task in (None, found)))


def build_model(spec: ModelSpec) -> VisionModel:
    """The model that `spec` describes, with fresh weights.

    Raises:
        UnknownModelError: no family registered the name.
    """
    if spec.name not in _BUILDERS:
        raise UnknownModelError(f"no model is named {spec.name!r}; {did_you_mean(spec.name, _BUILDERS)}")
    return _BUILDERS[spec.name](spec)
