"""Model names and the functions that build them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vitesse.errors import UnknownModelError, did_you_mean

if TYPE_CHECKING:
    from vitesse.models.backbone import Backbone
    from vitesse.spec import ModelSpec

Builder = Callable[["ModelSpec"], "Backbone"]

_BUILDERS: dict[str, Builder] = {}


def register(*names: str) -> Callable[[Builder], Builder]:
    """Let `build_model` find a family's builder under each of its model names."""

    def add(builder: Builder) -> Builder:
        _BUILDERS.update(dict.fromkeys(names, builder))
        return builder

    return add


def registered_models() -> tuple[str, ...]:
    """All names that have a builder, sorted."""
    return tuple(sorted(_BUILDERS))


def build_model(spec: ModelSpec) -> Backbone:
    """The model that `spec` describes, with fresh weights.

    Raises:
        UnknownModelError: no family registered the name.
    """
    if spec.name not in _BUILDERS:
        raise UnknownModelError(f"no model is named {spec.name!r}; {did_you_mean(spec.name, _BUILDERS)}")
    return _BUILDERS[spec.name](spec)
