"""YAML files that say where pictures and annotations lie, and what the classes are called."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitesse.data.contract import ALIASES
from vitesse.data.dense import check_class_names
from vitesse.errors import DataError, require

YAML_SUFFIXES = frozenset({".yaml", ".yml"})


def read_yaml(path: Path) -> dict[str, Any]:
    """
    Raises:
        DataError: it cannot be read, or holds no mapping.
    """
    yaml = require("yaml", "train")
    try:
        values = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected a mapping with train, val and names, got {type(values).__name__}")
    return values


def find_yaml(root: Path) -> Path | None:
    """The file in a folder that names splits and classes, if there is one.

    Raises:
        DataError: there are several.
    """
    files = [file for file in sorted(root.iterdir()) if file.suffix in YAML_SUFFIXES and describes_data(file)]
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise DataError(f"{root}: several YAML files describe data; name one of {names}")
    return files[0] if files else None


def describes_data(path: Path) -> bool:
    """Whether a YAML file has the keys of one that describes data."""
    try:
        values = read_yaml(path)
    except DataError:
        return False
    return "names" in values and bool(ALIASES.keys() & values.keys())


def describes_maps(path: Path) -> bool:
    """Whether the splits of such a file have folders of masks."""
    return any(isinstance(entry, dict) and "masks" in entry for entry in splits_of(read_yaml(path)).values())


def splits_of(values: dict[str, Any]) -> dict[str, Any]:
    """What a file says of each split that it has; an empty entry is none."""
    return {str(key): entry for key, entry in values.items() if key in ALIASES and entry}


def numbered_names(path: Path, names: Any) -> dict[int, str]:
    """Class names by their number, of a list or a mapping.

    Raises:
        DataError: they are neither.
    """
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(type(number) is int and number >= 0 for number in names):
        raise DataError(f"{path}: names: expected a list, or names by number, got {names!s:.60}")
    texts = check_class_names(f"{path}: names", [str(name) for name in names.values()])
    return dict(sorted(zip(names, texts, strict=True)))


def located(places: Iterable[Path]) -> Path | None:
    """The first of some places that exists."""
    return next((place for place in places if place.exists()), None)
