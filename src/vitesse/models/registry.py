"""Model names and the functions that build them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from vitesse.errors import ConfigError, UnknownModelError, did_you_mean
from vitesse.spec import from_mapping, to_mapping

if TYPE_CHECKING:
    from vitesse.models.backbone import VisionModel
    from vitesse.spec import ModelSpec, Task

Builder = Callable[["ModelSpec"], "VisionModel"]
Changes = Mapping[str, Mapping[str, Any]]
Config = TypeVar("Config")

_BUILDERS: dict[str, Builder] = {}
_TASKS: dict[str, Task] = {}
_WITH_MASKS: set[str] = set()
_CHANGES: dict[str, Changes] = {}


def register(
    *names: str, task: Task = "classify", masks: bool = False, changes: Changes | None = None
) -> Callable[[Builder], Builder]:
    """Let `build_model` find a family's builder under each of its model names.

    Args:
        masks: of detectors, whether they give a mask for each object.
        changes: of a family whose builder heeds `ModelSpec.variant`: variants with a name of their own, as
            `NAME+CHANGE` asks for them.
    """

    def add(builder: Builder) -> Builder:
        _BUILDERS.update(dict.fromkeys(names, builder))
        _TASKS.update(dict.fromkeys(names, task))
        _WITH_MASKS.update(names if masks else ())
        _CHANGES.update({} if changes is None else dict.fromkeys(names, changes))
        return builder

    return add


def gives_masks(name: str) -> bool:
    """Whether this is a detector that gives a mask for each object, and learns from masks."""
    return name in _WITH_MASKS


def task_of_model(name: str) -> Task | None:
    """The task of a model by its name, None for what is not registered."""
    return _TASKS.get(name)


def registered_models(task: Task | None = "classify") -> tuple[str, ...]:
    """The names that have a builder, sorted: of one task, or of all."""
    return tuple(sorted(name for name, found in _TASKS.items() if task in (None, found)))


def named_changes(name: str) -> Changes:
    """The named variants of an architecture, none for those that cannot vary."""
    return _CHANGES.get(name, {})


def configured(configs: Mapping[str, Config], spec: ModelSpec) -> Config:
    """The configuration that `spec` names, with what its variant changes.

    Raises:
        ConfigError: the family's configuration has no such key, or refuses its value.
    """
    config = configs[spec.name]
    try:
        return from_mapping(type(config), {**to_mapping(config), **spec.variant})
    except TypeError as error:
        raise ConfigError(
            f"{spec.name}: a value of the wrong kind in {dict(spec.variant)}: {error}"
        ) from error


def check_stages(config: Any, stages: int, *keys: str) -> None:
    """Refuse a configuration whose values for each stage are not so many whole numbers of 0 or more.

    Raises:
        ConfigError: see above.
    """
    for key in keys:
        values = getattr(config, key)
        whole = isinstance(values, tuple) and all(type(value) is int and value >= 0 for value in values)
        if not whole or len(values) != stages:
            raise ConfigError(f"{key}: expected {stages} whole numbers, one a stage, got {values}")


def check_parts(config: Any, key: str, counts: Sequence[int]) -> None:
    """Refuse a width for each part of every stage, where it is given, that is not one for each of `counts`.

    Raises:
        ConfigError: see above.
    """
    values = getattr(config, key)
    whole = all(isinstance(stage, tuple) and all(type(value) is int for value in stage) for stage in values)
    fits = whole and [len(stage) for stage in values] == list(counts)
    if values and not (fits and all(value >= 1 for stage in values for value in stage)):
        wanted = ", ".join(map(str, counts))
        raise ConfigError(f"{key}: expected {wanted} widths of 1 or more, stage by stage, got {values}")


def check_number(config: Any, key: str, least: float, *, whole: bool = True) -> None:
    """
    Raises:
        ConfigError: a value of a configuration that is no number of at least so much.
    """
    value = getattr(config, key)
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not value >= least:
        raise ConfigError(
            f"{key}: expected a {'whole ' if whole else ''}number of {least} or more, got {value!r}"
        )


def check_value(key: str, value: Any, known: Sequence[Any]) -> None:
    """
    Raises:
        ConfigError: a value of a configuration that is none of the known.
    """
    if value not in known:
        raise ConfigError(f"{key}: expected {' or '.join(map(str, known))}, got {value!r}")


def build_model(spec: ModelSpec) -> VisionModel:
    """The model that `spec` describes, with fresh weights.

    Raises:
        UnknownModelError: no family registered the name.
        ConfigError: a variant of what cannot vary.
    """
    if spec.name not in _BUILDERS:
        raise UnknownModelError(f"no model is named {spec.name!r}; {did_you_mean(spec.name, _BUILDERS)}")
    if spec.variant and spec.name not in _CHANGES:
        raise ConfigError(f"variant: expected one of {', '.join(sorted(_CHANGES))}, got {spec.name}")
    return _BUILDERS[spec.name](spec)
