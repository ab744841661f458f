"""The same training loop as the workers of a Ray cluster.

Every worker must reach the data and the run's folder under the same paths: one machine, or a shared disk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitesse import errors
from vitesse.errors import TrainingError, VitesseError, require
from vitesse.metrics import Scores
from vitesse.spec import from_mapping
from vitesse.train.folder import run_files
from vitesse.train.loop import TrainResult, train
from vitesse.train.recipe_files import load_recipe
from vitesse.train.setup import splits

MAX_FAILURES = 3
"""So often a run goes on from its last checkpoint after a worker was lost."""


def train_on_ray(data: str | Path, *, workers: int | None = None, **options: Any) -> TrainResult:
    """Train with `workers` processes of the Ray cluster at `RAY_ADDRESS`, or of one on this machine.

    A worker that is lost is replaced, `MAX_FAILURES` times at most; the run goes on from its last checkpoint.

    Args:
        data, options: of `vitesse.train`.
        workers: processes; None is one a GPU of the cluster, or one a node without any.

    Raises:
        MissingExtraError: Ray is not installed.
        TrainingError: a worker was lost too often.
        VitesseError: of `vitesse.train`.
    """
    ray = require("ray", "scale")
    train_v2 = require("ray.train", "scale")
    trainer_of = require("ray.train.torch", "scale").TorchTrainer
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=True, include_dashboard=False)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    nodes = sum(node["Alive"] for node in ray.nodes())
    call = {"data": str(data), **options, "out": str(Path(options["out"]).resolve())}
    trainer = trainer_of(
        _work,
        train_loop_config={"folder": str(Path.cwd()), "call": call},
        scaling_config=train_v2.ScalingConfig(num_workers=workers or gpus or nodes, use_gpu=gpus > 0),
        run_config=train_v2.RunConfig(
            name="ray",
            storage_path=call["out"],
            failure_config=train_v2.FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    try:
        found = trainer.fit()
    except Exception as error:
        raise TrainingError(f"training on Ray failed: {_root(error)}") from error
    if (kind := found.metrics.get("error")) is not None:
        raise getattr(errors, kind)(found.metrics["message"])
    settings = load_recipe(call["recipe"], call["overrides"], call["model"])
    train_source, val_source = splits(data, settings)
    return TrainResult(
        scores=from_mapping(Scores, found.metrics["scores"]),
        refused=tuple(found.metrics["refused"]),
        data=Path(data).name,
        train_source=train_source,
        val_source=val_source,
        **run_files(Path(call["out"])),
    )


def _work(config: Mapping[str, Any]) -> None:
    """What each worker does; it reports how it ended. What would fail again is no reason to start anew."""
    os.chdir(config["folder"])
    try:
        result = train(**config["call"])
        metrics: dict[str, Any] = {"scores": result.scores.to_dict(), "refused": list(result.refused)}
    except VitesseError as error:
        metrics = {"error": type(error).__name__, "message": str(error)}
    require("ray.train", "scale").report(metrics)


def _root(error: BaseException) -> str:
    """What was wrong at the bottom of Ray's errors, in one line."""
    while (cause := error.__cause__ or getattr(error, "cause", None)) is not None:
        error = cause
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()
