"""Recipes as YAML: the shipped ones, the user's own, and `key=value` over either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from vitesse.errors import ConfigError, did_you_mean, require
from vitesse.spec import from_mapping
from vitesse.train.recipe import Recipe, expect

MODELS = "models"
"""The section of a recipe that holds what differs between models: names or shell patterns, then keys."""


def shipped_recipes() -> tuple[str, ...]:
    """Names of the recipes in the package."""
    folder = resources.files("vitesse.train") / "recipes"
    return tuple(
        sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    )


def load_recipe(
    name: str | Path, overrides: Iterable[str] | Mapping[str, Any] = (), model: str = ""
) -> Recipe:
    """A shipped recipe by name, or a YAML file, with overrides (`key=value` texts or a mapping).

    Where the recipe says under `models` what differs for `model`, that is taken, the overrides last.

    Raises:
        ConfigError: no such recipe, unreadable YAML, an unknown key, or a value of the wrong kind.
    """
    values = _read_yaml(name)
    values = _for_model(values, values.pop(MODELS, {}), model, name)
    changes = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    return recipe_from(values | dict(changes))


def recipe_from(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values, each checked against its field's type.

    Raises:
        ConfigError: an unknown key, or a value of the wrong kind.
    """
    hints = get_type_hints(Recipe)
    return from_mapping(Recipe, {key: _coerce(key, value, hints.get(key)) for key, value in values.items()})


def _for_model(values: dict[str, Any], sections: Any, model: str, name: str | Path) -> dict[str, Any]:
    """A recipe's values with those of the sections whose pattern fits the model; all sections are checked."""
    if not isinstance(sections, Mapping) or not all(isinstance(part, Mapping) for part in sections.values()):
        raise ConfigError(f"recipe {name}: expected names of models with keys below them in {MODELS}")
    for part in sections.values():
        recipe_from({**values, **part})
    fitting = [part for pattern, part in sections.items() if fnmatchcase(model, str(pattern))]
    return {**values, **{key: value for part in fitting for key, value in part.items()}}


def _read_yaml(name: str | Path) -> dict[str, Any]:
    yaml = require("yaml", "train")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if str(name) not in shipped_recipes():
            raise ConfigError(
                f"no recipe is named {str(name)!r}; {did_you_mean(str(name), shipped_recipes())}"
            )
        text = (resources.files("vitesse.train") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"recipe {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"recipe {path}: expected a text of keys and values, got other bytes"
            ) from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {name}: not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {name}: expected `key: value` lines, got {type(values).__name__}")
    return values


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as a mapping; values as YAML reads them.

    Raises:
        ConfigError: a text without `=`, or a value that is no YAML.
    """
    yaml = require("yaml", "train")
    values: dict[str, Any] = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"expected key=value, got {text!r}")
        try:
            values[key] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"{key}: expected a YAML value, got {value!r}") from error
    return values


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type: YAML reads 1e-3 as text and [a, b] as a list."""
    if hint is None:
        return value
    kinds = get_args(hint)
    if get_origin(hint) is tuple:
        return _coerce_tuple(key, value, kinds)
    if kinds and all(isinstance(kind, str) for kind in kinds):  # Literal
        expect(value in kinds, key, " or ".join(kinds), value)
        return value
    if value is None:
        expect(type(None) in kinds, key, "a value", value)
        return None
    if hint is bool or hint is str:
        expect(isinstance(value, hint), key, "true or false" if hint is bool else "text", value)
        return value
    return _number(key, value, int if int in (hint, *kinds) else float)


def _coerce_tuple(key: str, value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list of so many values, or of any number of one kind; an empty text is an empty list."""
    if kinds[-1] is not Ellipsis:
        two = isinstance(value, (list, tuple)) and len(value) == len(kinds)
        expect(two, key, f"a list of {len(kinds)} numbers, such as [0.5, 1]", value)
        return tuple(_coerce(key, item, kind) for item, kind in zip(value, kinds, strict=True))
    expect(value == "" or isinstance(value, (list, tuple)), key, "a list, such as [a, b]", value)
    return tuple(_coerce(key, item, kinds[0]) for item in value)


def _number(key: str, value: Any, kind: type[int] | type[float]) -> float:
    try:
        number = kind(value)
    except (TypeError, ValueError):
        number = None
    whole = kind is float or (number is not None and str(number) == str(value))
    expect(
        number is not None and whole and not isinstance(value, bool),
        key,
        f"a number ({kind.__name__})",
        value,
    )
    assert number is not None
    return number
