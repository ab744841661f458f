"""Models that differ from a published architecture: by the name of a change, or by a file that says how."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitesse.errors import ConfigError, did_you_mean
from vitesse.files import atomic_path
from vitesse.models.registry import named_changes
from vitesse.spec import ModelSpec, from_mapping, to_mapping


def named_variant(name: str, changes: Iterable[str]) -> dict[str, Any]:
    """`ModelSpec.variant` of an architecture with all of these changes, the last first where they disagree.

    Raises:
        ConfigError: the architecture knows no change of such a name.
    """
    known = named_changes(name)
    variant: dict[str, Any] = {}
    for change in changes:
        if change not in known:
            what = did_you_mean(change, known) if known else "it has none with a name"
            raise ConfigError(f"{name}: no variant is named {change!r}; {what}")
        variant |= known[change]
    return variant


def write_spec(spec: ModelSpec, path: str | Path) -> None:
    """Write what rebuilds a model without its weights, as `read_spec` reads it."""
    with atomic_path(Path(path)) as part:
        part.write_text(json.dumps(to_mapping(spec), indent=1) + "\n", encoding="utf-8")


def read_spec(path: str | Path) -> ModelSpec:
    """The spec in a JSON file.

    Raises:
        ConfigError: it cannot be read, is no JSON, or has keys or values that no spec has.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"spec {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"spec {path}: expected JSON, {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"spec {path}: expected an object with a name, got {type(raw).__name__}")
    try:
        return from_mapping(ModelSpec, raw)
    except ConfigError as error:
        raise ConfigError(f"spec {path}: {error}") from error
