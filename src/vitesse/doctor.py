"""What a bug report needs: versions, engines, processor, extras, and whether inference works. No torch."""

from __future__ import annotations

import re
import time
from importlib import metadata
from typing import Any

import numpy as np

from vitesse.errors import VitesseError
from vitesse.provenance import cpu_flags, cpu_model, versions
from vitesse.runtime.artefact import (
    DEFAULT_MODEL,
    Artefact,
    bundled_artefact,
    bundled_names,
    cache_dir,
    read_artefact,
)
from vitesse.runtime.engines import ENGINES, available_engines, create_engine, usable_cpus

_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_INNER = re.compile(r"^vitesse\[([\w,-]+)\]")


def diagnose() -> dict[str, Any]:
    """Plain JSON values.

    `versions` by package; `cpu` with `model`, `flags`, `threads`; `cache`, a folder; `bundled`, what each
    artefact of the package says of itself or its `error`; `engines` by name with `installed`, `ok`, and `ms`
    for one picture or the `error`; `extras` by name with `installed`, the packages `missing`, and the command
    to `install` them; `ok`, whether inference works.
    """
    artefact = _bundled(DEFAULT_MODEL)[1]
    engines = {name: _try_engine(name, artefact) for name in ENGINES}
    working = [engine["ok"] for engine in engines.values() if engine["installed"]]
    return {
        "ok": artefact is not None and bool(working) and all(working),
        "versions": versions(),
        "cpu": {"model": cpu_model(), "flags": list(cpu_flags()), "threads": usable_cpus()},
        "cache": str(cache_dir()),
        "bundled": bundled_cards(),
        "engines": engines,
        "extras": extras(),
    }


def bundled_cards() -> list[dict[str, Any]]:
    """What each artefact of the package says of itself, or its `error`; the default one first."""
    return [_bundled(name)[0] for name in bundled_names() or (DEFAULT_MODEL,)]


def extras() -> dict[str, dict[str, Any]]:
    """Every extra of this installation, the packages it lacks, and how to install it."""
    wanted: dict[str, list[str]] = {}
    for line in metadata.requires("vitesse") or []:
        if (marker := _EXTRA.search(line)) is not None:
            wanted.setdefault(marker[1], []).append(line.partition(";")[0].strip())
    found: dict[str, dict[str, Any]] = {}
    for extra in wanted:
        missing = sorted({name for name in _packages(extra, wanted) if not _installed(name)})
        command = f"pip install 'vitesse[{extra}]'"
        found[extra] = {"installed": not missing, "missing": missing, "install": command}
    return found


def _packages(extra: str, wanted: dict[str, list[str]]) -> list[str]:
    """Package names of an extra, those of the extras it builds on among them."""
    names: list[str] = []
    for requirement in wanted[extra]:
        if (inner := _INNER.match(requirement)) is not None:
            names += [name for part in inner[1].split(",") for name in _packages(part, wanted)]
        elif (name := _NAME.match(requirement)) is not None:
            names.append(name[0])
    return names


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _bundled(name: str) -> tuple[dict[str, Any], Artefact | None]:
    try:
        artefact = read_artefact(bundled_artefact(name))
    except VitesseError as error:
        return {"error": str(error)}, None
    manifest = artefact.manifest
    card = {
        "name": name,
        "file": artefact.path.name,
        "sha256": artefact.sha256,
        "model": manifest.model.name,
        "image_size": list(manifest.model.image_size),
        "precision": manifest.precision,
        "trained_on": manifest.trained_on,
        "classes": len(manifest.class_names),
        "accuracy": dict(manifest.accuracy) if manifest.accuracy else None,
    }
    return card, artefact


def _try_engine(name: str, artefact: Artefact | None) -> dict[str, Any]:
    """One inference through an engine: the time it took, or what went wrong."""
    if name not in available_engines():
        return {"installed": False, "ok": False}
    if artefact is None:
        return {"installed": True, "ok": False, "error": "no artefact to run"}
    shape = (1, artefact.manifest.model.in_chans, *artefact.manifest.preprocess.image_size)
    try:
        engine = create_engine(artefact, name)
        started = time.perf_counter()
        engine.run(np.zeros(shape, np.float32))
    except VitesseError as error:
        return {"installed": True, "ok": False, "error": str(error)}
    except Exception as error:  # a broken installation fails in its import, in any way; that is the finding
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return {"installed": True, "ok": False, "error": reason}
    return {"installed": True, "ok": True, "ms": round((time.perf_counter() - started) * 1000, 2)}
