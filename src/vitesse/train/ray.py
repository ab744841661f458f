"""The same training loop as the workers of a Ray cluster.

Every worker must reach the data and the run's folder under the same paths: one machine, or a shared disk.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Event, Thread
from typing import Any

from vitesse.errors import StoppedError, TrainingError, VitesseError, require
from vitesse.files import write_atomically
from vitesse.models.create import spec_for
from vitesse.progress import is_first_process, say
from vitesse.spec import from_mapping
from vitesse.train.folder import run_files
from vitesse.train.loop import TrainResult, train
from vitesse.train.recipe_files import load_recipe
from vitesse.train.record import make_folder
from vitesse.train.setup import splits
from vitesse.train.stopping import LostProcessError, StopRequestedError, StopSignals
from vitesse.train.tasks import task_of

MAX_FAILURES = 3
"""So often a run goes on from its last checkpoint after a worker was lost."""
POLL_SECONDS = 0.2
SAVE_SECONDS = 30.0
"""So long workers have to end their step and save, once a signal has come to the driver."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
"""Of Ray: no report to its makers, and what workers say is not logged a second time."""


def train_on_ray(data: str | Path, *, workers: int | None = None, **options: Any) -> TrainResult:
    """Train with `workers` processes of the Ray cluster at `RAY_ADDRESS`, or of one on this machine.

    Where a worker is lost all are started anew, `MAX_FAILURES` times at most, from the last checkpoint.

    Args:
        data, options: of `vitesse.train`.
        workers: processes; None is one a GPU of the cluster, or one a node without any.

    Raises:
        MissingExtraError: Ray is not installed.
        StoppedError: SIGTERM or SIGINT came; the same call goes on from where the workers saved, or, where
            they could not within `SAVE_SECONDS`, from the last checkpoint.
        TrainingError: workers were lost too often.
        VitesseError: of `vitesse.train`.
    """
    os.environ.update({**QUIET, **os.environ})
    ray = require("ray", "scale")
    name = spec_for(options["model"]).name
    task = task_of(name)
    settings = load_recipe(options["recipe"] or task.recipe, options["overrides"], name)
    train_source, val_source = splits(task, data, settings)
    out = Path(options["out"]).resolve()
    make_folder(out)
    stop_file = out / "ray" / "stop"
    stop_file.unlink(missing_ok=True)
    call = {"data": str(data), **options, "out": str(out), "stop_file": str(stop_file)}
    started = not ray.is_initialized()
    with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of lost workers
        try:
            if started:
                _start(ray, workers)
            with StopSignals() as signals, _passed_on(_speech(out)):
                outcome = _wait_for(lambda: _fit_again_and_again(ray, call, workers), signals, stop_file)
        except StopRequestedError as error:
            ray.shutdown()
            raise StoppedError(
                f"stopped by {error}; run the same command again to go on from the last checkpoint"
            ) from error
        finally:
            if started:
                ray.shutdown()
    return TrainResult(
        scores=from_mapping(task.exam.figures, outcome["scores"]),
        refused=tuple(outcome["refused"]),
        data=Path(data).name,
        train_source=train_source,
        val_source=val_source,
        **run_files(out),
    )


def _start(ray: Any, workers: int | None) -> None:
    """Join the cluster at `RAY_ADDRESS`, or make one on this machine that has room for the workers."""
    address = os.environ.get("RAY_ADDRESS")
    here = {} if address else {"num_cpus": max(workers or 1, os.cpu_count() or 1), "include_dashboard": False}
    ray.init(address=address, logging_level="ERROR", log_to_driver=False, **here)


def _wait_for(work: Callable[[], dict[str, Any]], signals: StopSignals, stop_file: Path) -> dict[str, Any]:
    """What `work` gives, done in another thread, since Ray would take the signals of this one.

    A signal is passed on to the workers in `stop_file`.

    Raises:
        StopRequestedError: a signal came, and `work` did not end within `SAVE_SECONDS`.
    """
    outcome: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    while not wait([outcome], POLL_SECONDS).done:
        if signals.received:
            with contextlib.suppress(OSError):
                write_atomically(stop_file, signals.received.encode())
            if not wait([outcome], SAVE_SECONDS).done:
                signals.check()
    return outcome.result()


def _fit_again_and_again(ray: Any, call: Mapping[str, Any], workers: int | None) -> dict[str, Any]:
    """What the first worker returned in the end.

    Raises:
        TrainingError: workers were lost too often.
        VitesseError: what a worker refused, which it would refuse again.
    """
    for failures in range(MAX_FAILURES + 1):
        try:
            outcome: dict[str, Any] = _trainer(ray, call, workers).fit().return_value
            return outcome
        except require("ray.train", "scale").TrainingFailedError as error:
            causes = _causes(error)
            for cause in filter(_will_fail_again, causes):
                raise cause from error
            reason = str(causes[0]).strip().rpartition("\n")[2] or type(causes[0]).__name__
            if failures < MAX_FAILURES:
                say(f"a worker was lost ({reason}); all start anew from the last checkpoint")
    raise TrainingError(f"training on Ray: workers were lost {MAX_FAILURES + 1} times, at last: {reason}")


def _trainer(ray: Any, call: Mapping[str, Any], workers: int | None) -> Any:
    settings = require("ray.train", "scale")
    room = ray.cluster_resources()
    gpus = int(room.get("GPU", 0))
    count = workers or gpus or sum(node["Alive"] for node in ray.nodes())
    if count > (places := gpus or int(room.get("CPU", 0))):
        say(f"the Ray cluster has room for {places} of {count} workers: training waits until there is more")
    return require("ray.train.torch", "scale").TorchTrainer(
        _work,
        train_loop_config={"folder": str(Path.cwd()), "call": call},
        scaling_config=settings.ScalingConfig(num_workers=count, use_gpu=gpus > 0),
        run_config=settings.RunConfig(name="ray", storage_path=call["out"]),
    )


def _work(config: Mapping[str, Any]) -> dict[str, Any]:
    """What each worker does; the first tells the driver how it goes."""
    os.chdir(config["folder"])
    speech = _speech(Path(config["call"]["out"])) if is_first_process() else Path(os.devnull)
    with speech.open("a", encoding="utf-8", buffering=1) as file, contextlib.redirect_stderr(file):
        result = train(**config["call"])
    return {"scores": result.scores.to_dict(), "refused": list(result.refused)}


def _speech(out: Path) -> Path:
    """Where the first worker says what the driver passes on."""
    return out / "ray" / "log.txt"


@contextlib.contextmanager
def _passed_on(path: Path) -> Iterator[None]:
    """Show on stderr what is written to a file meanwhile."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    ended = Event()

    def follow() -> None:
        with path.open(encoding="utf-8") as file:
            while not ended.wait(POLL_SECONDS):
                print(file.read(), end="", file=sys.stderr, flush=True)
            print(file.read(), end="", file=sys.stderr, flush=True)

    follower = Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()


def _causes(error: Any) -> list[BaseException]:
    """Why workers ended, without what Ray wraps around it."""
    failures = getattr(error, "worker_failures", {}).values()
    return [getattr(failure, "_base_exc", failure) for failure in failures] or [error]


def _will_fail_again(cause: BaseException) -> bool:
    return isinstance(cause, VitesseError) and not isinstance(cause, LostProcessError)
