"""Which engine is fastest on this machine for this artefact, measured once and remembered."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitesse.files import write_atomically
from vitesse.provenance import cpu_model
from vitesse.runtime.artefact import Artefact, cache_dir

Runner = Callable[[NDArray[np.float32]], object]

BATCHES = (1, 8)
WARM_UP, MIN_ROUNDS, MAX_ROUNDS = 2, 5, 15
BUDGET_S = 1.5
_KEPT = 64


def fastest(runners: Mapping[str, Runner], artefact: Artefact) -> str:
    """The name whose time a picture is smallest; see `seconds_a_picture`."""
    seconds = seconds_a_picture(runners, artefact)
    return min(seconds, key=lambda name: seconds[name])


def seconds_a_picture(runners: Mapping[str, Runner], artefact: Artefact) -> Mapping[str, float]:
    """Time a picture by name: the geometric mean, over `BATCHES`, of the median time.

    All are warmed up, then timed interleaved: `MIN_ROUNDS` rounds, up to `MAX_ROUNDS` within `BUDGET_S`.
    """
    batches = [sample_batch(artefact, size) for size in BATCHES if artefact.input_shape[0] in (None, size)]
    seconds: dict[tuple[str, int], list[float]] = {}
    for run in runners.values():
        for batch_BCHW in batches:
            for _ in range(WARM_UP):
                run(batch_BCHW)
    started = time.perf_counter()
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() - started > BUDGET_S:
            break
        for name, run in runners.items():
            for batch_BCHW in batches:
                before = time.perf_counter()
                run(batch_BCHW)
                took = (time.perf_counter() - before) / len(batch_BCHW)
                seconds.setdefault((name, len(batch_BCHW)), []).append(took)
    medians = {key: statistics.median(samples) for key, samples in seconds.items()}
    return {
        name: statistics.geometric_mean(medians[name, len(batch)] for batch in batches) for name in runners
    }


def sample_batch(artefact: Artefact, size: int) -> NDArray[np.float32]:
    """(size, C, H, W) float32 of normally distributed numbers, the same every time."""
    manifest = artefact.manifest
    shape = (size, manifest.model.in_chans, *manifest.preprocess.image_size)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


class Memory:
    """The remembered winner for one artefact, CPU model, numbers of threads and streams, engine versions.

    It lies in `cache_dir()/engines.json`. A file that cannot be read or written is as good as none.
    """

    def __init__(self, engines: tuple[str, ...], sha256: str, threads: int, streams: int = 1) -> None:
        versions = ",".join(f"{name}={version_of(name)}" for name in engines)
        self._engines = engines
        self._key = f"{sha256}|{cpu_model()}|threads={threads}|streams={streams}|{versions}"
        self._path = cache_dir() / "engines.json"

    def recall(self) -> str | None:
        """The winner's name, or None when nothing usable is remembered."""
        winner = _read(self._path).get(self._key)
        return winner if winner in self._engines else None

    def remember(self, winner: str) -> None:
        """Keep the winner beside the newest others."""
        entries = {**_read(self._path), self._key: winner}
        newest = dict(list(entries.items())[-_KEPT:])
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(newest, indent=1).encode())


def _read(path: Path) -> dict[str, str]:
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {key: value for key, value in entries.items() if isinstance(value, str)}


def version_of(engine: str) -> str:
    """Of an installed package; `unknown` for a build under another name, such as onnxruntime-gpu."""
    try:
        return version(engine)
    except PackageNotFoundError:
        return "unknown"
