"""A benchmark from names to timings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitesse.bench.contenders import PRECISIONS, chosen_engines, contenders
from vitesse.bench.measure import Timing, time_in_groups
from vitesse.bench.peers import chosen_peers
from vitesse.bench.stages import of_stage
from vitesse.errors import ConfigError
from vitesse.runtime.engines import usable_cpus


def benchmark(
    models: Sequence[str],
    *,
    peers: str = "",
    engines: str = "all",
    precisions: Sequence[str] = PRECISIONS,
    batch_sizes: Sequence[int] = (1, 16),
    threads: int = 1,
    rounds: int = 15,
    stage: str = "model",
    data: str | Path | None = None,
) -> list[Timing]:
    """Time models and peers on every engine and precision, interleaved in this process (`time_in_groups`).

    Args:
        models: our names, `timm:NAME`, `.onnx` artefacts.
        peers: names of `vitesse.bench.peers.PEERS`, separated by commas, or `all`.
        engines: names separated by commas; `all` are the installed engines and torch.
        precisions: `fp32`, `int8` or both, for names; artefacts have their own.
        batch_sizes: pictures in a batch.
        threads: of every engine.
        rounds: samples of each contender.
        stage: `model`; `data`, from photos to tensors; or `end-to-end`, from photos to labels.
        data: a folder of photos, for the other stages.

    Returns:
        One for each contender and batch size, those that failed with an error.

    Raises:
        ConfigError: an impossible number, an unknown engine, precision or peer.
        UnknownModelError: no model has one of the names.
        ArtefactError: a file cannot be used.
    """
    check_numbers(batch_sizes, threads, rounds, precisions)
    names = [*models, *(chosen_peers(peers) if peers else ())]
    if not names:
        raise ConfigError("expected a model to time: names, .onnx files or --peers")
    made = contenders(names, chosen_engines(engines), precisions, threads)
    found = of_stage(stage, made, data, threads)
    if not found:
        raise ConfigError(f"--engine: {engines} runs none of these models in {', '.join(precisions)}")
    return time_in_groups(found, batch_sizes, rounds=rounds, threads=threads)


def check_numbers(
    batch_sizes: Sequence[int], threads: int, rounds: int, precisions: Sequence[str] = ()
) -> None:
    """Refuse what cannot be timed.

    Raises:
        ConfigError: an impossible number, or an unknown precision.
    """
    numbers: dict[str, Any] = {"--threads": threads, "--rounds": rounds}
    numbers |= {"--batch-size": min(batch_sizes, default=0)}
    for option, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{option}: expected at least 1, got {value}")
    if threads > usable_cpus():
        raise ConfigError(f"--threads: this process may use {usable_cpus()} CPUs, got {threads}")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ConfigError(f"--precision: expected of {', '.join(PRECISIONS)}, got {precision!r}")
