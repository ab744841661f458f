"""Injected faults: what a run survives, and what it leaves where it does not."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import html
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

import vitesse.provenance as provenance
from vitesse import load
from vitesse.data.check import DataCheck
from vitesse.data.loader import AugmentedPictures
from vitesse.data.sampler import epoch_order
from vitesse.data.sources import FileSource, Source
from vitesse.data.transforms import DeviceTransform
from vitesse.errors import ConfigError, DataError, StoppedError, TrainingError
from vitesse.runtime.artefact import read_artefact
from vitesse.ship import ship
from vitesse.train import TrainResult, loop
from vitesse.train.checkpoint import read_progress
from vitesse.train.loop import Trainer
from vitesse.train.recipe_files import load_recipe
from vitesse.train.step import StepResult
from vitesse.train.stopping import StoppableEngine
from vitesse.train.tasks import TASKS
from vitesse.train.tasks.classify import Classify
from vitesse.train.teacher import Teacher

Run = Callable[..., TrainResult]
Tensors = dict[str, torch.Tensor]
Weights = Callable[..., Tensors]
Same = Callable[[Tensors, Tensors], bool]
Hook = Callable[[Trainer, int], None]


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that has others called with the trainer and the number of each step, before and after."""
    step = Trainer._train_step

    def install(before: Hook = lambda *_: None, after: Hook = lambda *_: None) -> None:
        def surrounded(self: Trainer, *arguments: Any) -> StepResult:
            number = self.progress.step
            before(self, number)
            result = step(self, *arguments)
            after(self, number)
            return result

        monkeypatch.setattr(Trainer, "_train_step", surrounded)

    return install


@pytest.fixture
def nan_pixels(monkeypatch: pytest.MonkeyPatch, around: Callable[..., None]) -> Callable[..., None]:
    """A function that makes the pictures of some steps NaN."""
    forward, now = DeviceTransform.forward, [0]

    def spoil(*steps: int, after: Hook = lambda *_: None) -> None:
        def spoilt(self: DeviceTransform, *arguments: Any) -> torch.Tensor:
            x_BCHW = forward(self, *arguments)
            return x_BCHW * math.nan if now[0] in steps else x_BCHW

        monkeypatch.setattr(DeviceTransform, "forward", spoilt)
        around(lambda _, number: now.__setitem__(0, number), after)

    return spoil


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that lets runs train in half precision with a gradient scaler, as on a GPU."""

    def make(*_: Any) -> Accelerator:
        AcceleratorState._reset_state()
        accelerator = Accelerator(mixed_precision="fp16")
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        return accelerator

    return lambda: monkeypatch.setattr(loop, "make_accelerator", make)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, paint_classes: Callable[..., Path]) -> Path:
    return paint_classes(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def whole(data: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two epochs; not to be written to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(data, out, log_every=1)
    return out


@pytest.fixture(scope="module")
def first_epoch(data: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that run as it was after one epoch; not to be written to."""
    out = tmp_path_factory.mktemp("first") / "run"
    with pytest.MonkeyPatch.context() as patch:

        def stop(self: Trainer, *_: Any) -> None:
            raise KeyboardInterrupt

        validate = Trainer._report
        patch.setattr(Trainer, "_report", lambda *a: stop(*a) if a[0].progress.epochs else validate(*a))
        with contextlib.suppress(KeyboardInterrupt):
            run(data, out, log_every=1)
    return out


def rows(out: Path, kind: str = "step") -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def losses(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in rows(out)]


def held(trainer: Trainer) -> Tensors:
    """Everything that a step changes."""
    moments = {
        f"{index}:{kind}": value
        for index, state in enumerate(trainer.optimizer.state.values())
        for kind, value in state.items()
    }
    average = {f"ema.{key}": value for key, value in trainer.average.state_dict().items()}
    tensors = {**trainer.plain.state_dict(), **average, **moments}
    return {key: value.clone() for key, value in tensors.items()}


def sigterm_at(*steps: int) -> Hook:
    return lambda _, number: os.kill(os.getpid(), signal.SIGTERM) if number in steps else None


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def attempt(data: Path, tmp_path: Path, run: Run) -> Run:
    """A function that trains in `tmp_path / "run"`, with changes to the tiny recipe and a row every step."""
    return partial(run, data, tmp_path / "run", log_every=1)


@pytest.fixture
def assert_as_whole(tmp_path: Path, weights: Weights, same: Same, whole: Path) -> Callable[[], None]:
    """A function that compares the run in `tmp_path / "run"` with the undisturbed one, bit for bit."""

    def compare() -> None:
        assert same(weights(tmp_path / "run"), weights(whole))
        assert losses(tmp_path / "run") == losses(whole)

    return compare


def test_going_on_needs_no_initial_weights(
    attempt: Run, tmp_path: Path, first_epoch: Path, around: Callable[..., None]
) -> None:
    init = tmp_path / "init.safetensors"
    shutil.copy(first_epoch / "checkpoints" / "last" / "model.safetensors", init)
    around(sigterm_at(1))
    with pytest.raises(StoppedError):
        attempt(epochs=1, init=str(init))
    init.unlink()
    around()
    attempt(epochs=1, init=str(init))


def test_the_best_of_other_validation_pictures_is_not_compared(
    attempt: Run, tmp_path: Path, first_epoch: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(first_epoch, out)
    best, state = (
        out / "checkpoints" / name for name in ("best/model.safetensors", "last/state.safetensors")
    )
    best.write_bytes(b"of other pictures")
    attempt(limit_val=1)
    assert best.read_bytes() != b"of other pictures"
    assert "other validation pictures" in (out / "report.html").read_text()
    assert read_progress(state).best_score == rows(out, "epoch")[1]["top1"]


# --- steps that are not finite ---


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("fault", ["nan pixels", "infinite gradient", "nothing readable"])
def test_a_bad_step_is_skipped_and_changes_nothing(
    attempt: Run,
    tmp_path: Path,
    same: Same,
    monkeypatch: pytest.MonkeyPatch,
    around: Callable[..., None],
    nan_pixels: Callable[..., None],
    scaled: Callable[[], None],
    fault: str,
    precision: str,
) -> None:
    if precision == "fp16":
        scaled()
    states: dict[int, Tensors] = {}
    trainers: list[Trainer] = []

    def after(trainer: Trainer, number: int) -> None:
        states[number] = held(trainer)
        trainers[:] = [trainer]

    def endless(trainer: Trainer, number: int) -> None:
        weight = next(iter(trainer.plain.parameters()))
        if number == 3:
            hooks.append(weight.register_hook(lambda gradient: gradient * math.inf))
        elif hooks:
            hooks.pop().remove()

    hooks: list[Any] = []
    if fault == "nan pixels":
        nan_pixels(3, after=after)
    elif fault == "infinite gradient":
        around(endless, after)
    else:
        lost: list[bool] = []
        get = AugmentedPictures.__getitem__
        monkeypatch.setattr(
            AugmentedPictures,
            "__getitem__",
            lambda self, key: (None, key.picture) if lost and lost[-1] else get(self, key),
        )
        around(lambda _, number: lost.append(number == 3), after)
    attempt(epochs=1, precision=precision)
    assert same(states[2], states[3])
    assert not same(states[3], states[4])
    assert all(value.isfinite().all() for value in states[5].values())
    assert trainers[0].progress.bad_steps == 1
    assert trainers[0].progress.bad_in_a_row == 0
    assert [row["skipped"] for row in rows(tmp_path / "run", "epoch")] == [1]
    assert math.isfinite(rows(tmp_path / "run", "epoch")[0]["loss"])
    why = "none of its pictures can be read" if fault == "nothing readable" else "norm of the gradient"
    report = (tmp_path / "run" / "report.html").read_text()
    assert "step 3 was skipped: " in report
    assert why in report


def test_half_precision_without_a_gpu_is_refused(attempt: Run) -> None:
    with pytest.raises(ConfigError, match="precision: fp16 needs a GPU; set precision=bf16 or fp32"):
        attempt(precision="fp16")


def test_after_k_bad_steps_in_a_row_the_batch_is_dumped_with_its_names(
    attempt: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nan_pixels: Callable[..., None]
) -> None:
    nan_pixels(0, 2, 3, 4)
    spoilt, seen = DeviceTransform.forward, []

    def watched(self: DeviceTransform, x_BCHW: torch.Tensor, *size: Any) -> torch.Tensor:
        seen.append(x_BCHW.clone())
        return spoilt(self, x_BCHW, *size)

    monkeypatch.setattr(DeviceTransform, "forward", watched)
    with pytest.raises(TrainingError, match=r"^loss is nan.* at step 4, and 3 steps in a row") as caught:
        attempt(max_bad_steps=3, accumulate=2)
    path = tmp_path / "run" / "bad_batch_0.safetensors"
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    dumped = load_file(path)
    assert torch.equal(dumped["images_BCHW"], torch.cat(seen[-2:]))
    with safe_open(path, "pt") as file:
        names = file.metadata()["names"].split("\n")
    assert len(names) == len(dumped["indices_B"]) == 8
    assert all(Path(name).is_file() for name in names)
    assert "failed: loss is nan" in (tmp_path / "run" / "report.html").read_text()


def test_bad_steps_in_a_row_are_counted_on_after_a_resume(
    attempt: Run, tmp_path: Path, nan_pixels: Callable[..., None]
) -> None:
    nan_pixels(1, 2, 3, after=sigterm_at(1))
    with pytest.raises(StoppedError):
        attempt(max_bad_steps=3)
    with pytest.raises(TrainingError, match="at step 3, and 3 steps in a row were not finite"):
        attempt(max_bad_steps=3)
    report = (tmp_path / "run" / "report.html").read_text()
    assert report.count("step 1 was skipped") == 1, "the note of the first session is still told"


def test_a_run_whose_pictures_have_gone_says_so(data: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(data, tmp_path / "data")

    def take_away(trainer: Trainer, number: int) -> None:
        if number == 2:
            shutil.rmtree(tmp_path / "data")

    with pytest.MonkeyPatch.context() as patch:
        step = Trainer._train_step
        patch.setattr(
            Trainer, "_train_step", lambda self, *a: (take_away(self, self.progress.step), step(self, *a))[1]
        )
        with pytest.raises(TrainingError, match="none of its pictures can be read at step 4") as caught:
            run(tmp_path / "data", tmp_path / "run", max_bad_steps=3)
    assert "see that the data is there" in str(caught.value)
    assert not (tmp_path / "run" / "bad_batch_0.safetensors").exists()


def test_a_part_without_pictures_leaves_no_trace_in_the_statistics(
    attempt: Run, monkeypatch: pytest.MonkeyPatch, around: Callable[..., None]
) -> None:
    tracked: list[int] = []

    def after(trainer: Trainer, _: int) -> None:
        state = trainer.plain.state_dict()
        tracked.append(next(int(v) for key, v in state.items() if key.endswith("num_batches_tracked")))

    asked = [0]
    get = AugmentedPictures.__getitem__

    def unreadable(self: AugmentedPictures, key: Any) -> Any:
        asked[0] += 1
        return (None, key.picture) if 8 < asked[0] <= 12 else get(self, key)

    monkeypatch.setattr(AugmentedPictures, "__getitem__", unreadable)
    around(after=after)
    result = attempt(epochs=1, accumulate=2)
    assert tracked == [2, 3, 5, 7, 9, 11]
    assert len(result.refused) == 4


# --- disks ---


def fail_save_file(*_: Any, **__: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def fail_replace(*_: Any) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def fail_sync(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_open(self: Path, mode: str = "r", *_: Any, **__: Any) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


FULL = {
    "No space left": ("vitesse.weights.files.save_file", fail_save_file),
    "No space left on device": ("vitesse.files._sync", fail_sync),
    "Input/output error": ("pathlib.Path.replace", fail_replace),
}


@pytest.mark.parametrize("reason", FULL)
def test_a_full_disk_is_told_once_and_the_last_good_checkpoint_stays(
    attempt: Run,
    assert_as_whole: Callable[[], None],
    tmp_path: Path,
    around: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    reason: str,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        around(lambda _, number: patch.setattr(*FULL[reason]) if number == 7 else None)
        with pytest.raises(TrainingError, match=r"could not be written; make room .* goes on") as caught:
            attempt(save_minutes=0.0)
    assert "\n" not in str(caught.value)
    told = capsys.readouterr().err
    assert told.count("a checkpoint cannot be written") == 1
    assert reason in told
    saved = contents(tmp_path / "run" / "checkpoints")
    assert not [name for name in saved if ".tmp" in name]
    with safe_open(tmp_path / "run" / "checkpoints" / "last" / "state.safetensors", "pt") as file:
        assert json.loads(file.metadata()["progress"])["step"] == 7
    around()
    attempt()
    assert_as_whole()


def test_a_real_limit_on_files_is_survived(
    attempt: Run, assert_as_whole: Callable[[], None], around: Callable[..., None]
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    around(
        lambda _, number: resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, limit[1])) if number == 8 else 0
    )
    try:
        with pytest.raises(TrainingError, match="the last checkpoint could not be written"):
            attempt()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    around()
    attempt()
    assert_as_whole()


def test_a_disk_that_was_full_for_a_while_costs_nothing(
    attempt: Run, assert_as_whole: Callable[[], None], around: Callable[..., None]
) -> None:
    """The first evaluation cannot be saved as the best: the next one takes its place, however good it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*FULL["Input/output error"])
        patch.setattr("vitesse.train.loop.make_folder", lambda folder: folder.mkdir())
        around(lambda _, number: patch.undo() if number == 6 else None)
        result = attempt()
    assert_as_whole()
    assert result.best.exists()


def test_a_stop_that_cannot_be_saved_is_an_error(attempt: Run, around: Callable[..., None]) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def stop(_: Trainer, number: int) -> None:
            if number == 2:
                patch.setattr(*FULL["No space left"])
                os.kill(os.getpid(), signal.SIGTERM)

        around(stop)
        with pytest.raises(TrainingError, match="the last checkpoint could not be written"):
            attempt()


@pytest.mark.parametrize("name", ["file", "file/run", "read only"])
def test_a_folder_that_cannot_be_written_is_told_at_once(
    data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "file").write_text("mine")
    if name == "read only":
        monkeypatch.setattr("pathlib.Path.write_bytes", fail_open)
    with pytest.raises(TrainingError, match=r"cannot be written \(.*\); give another --out") as caught:
        run(data, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


# --- stops and resumes ---

EVERYTHING = {
    "accumulate": 2,
    "repeats": 3,
    "train_sizes": [24, 32],
    "random_erase": 0.4,
    "color_jitter": 0.2,
    "interpolation": "random",
    "mix_prob": 0.7,
    "log_every": 1,
}


@pytest.mark.parametrize("workers", [0, 2])
def test_three_stops_within_an_epoch_change_no_bit(
    data: Path,
    tmp_path: Path,
    run: Run,
    weights: Weights,
    same: Same,
    around: Callable[..., None],
    workers: int,
) -> None:
    shown: dict[int, list[int]] = {}
    settings = EVERYTHING | {"workers": workers, "batch_size": 6}

    def look(trainer: Trainer, number: int) -> None:
        assert number not in shown, "a step was trained twice"
        shown[number] = trainer.step.last_indices()

    around(after=look)
    run(data, tmp_path / "whole", **settings)
    undisturbed, shown = shown, {}
    for stop in (0, 2, 7):
        around(sigterm_at(stop), look)
        with pytest.raises(StoppedError, match=f"SIGTERM at step {stop + 1};"):
            run(data, tmp_path / "stopped", **settings)
    around(after=look)
    run(data, tmp_path / "stopped", **settings)
    assert shown == undisturbed
    for epoch in (0, 1):
        steps = [index for number in range(9 * epoch, 9 * epoch + 9) for index in shown[number]]
        assert Counter(steps) == Counter(np.repeat(epoch_order(54, 0, epoch), 3)[:54].tolist())
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert [step for step, _ in losses(tmp_path / "stopped")] == list(range(1, 19))
    for name in ("last", "best", "state"):
        assert same(weights(tmp_path / "stopped", name), weights(tmp_path / "whole", name))


def test_a_stop_during_an_evaluation_evaluates_that_epoch_again(
    attempt: Run,
    assert_as_whole: Callable[[], None],
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask = StoppableEngine.run

    def stopped(self: StoppableEngine, *arguments: Any) -> Any:
        monkeypatch.setattr(StoppableEngine, "run", ask)
        os.kill(os.getpid(), signal.SIGTERM)
        return ask(self, *arguments)

    monkeypatch.setattr(StoppableEngine, "run", stopped)
    with pytest.raises(StoppedError, match="SIGTERM at step 6"):
        attempt()
    assert rows(tmp_path / "run", "epoch") == []
    attempt()
    assert_as_whole()
    found = [[row | {"seconds": 0} for row in rows(out, "epoch")] for out in (tmp_path / "run", whole)]
    assert found[0] == found[1]


def test_a_stop_while_the_teacher_is_asked_loses_nothing(
    data: Path, tmp_path: Path, run: Run, weights: Weights, same: Same, whole: Path
) -> None:
    taught = {"teacher": str(whole / "checkpoints" / "last" / "model.safetensors"), "teacher_cache": True}
    run(data, tmp_path / "undisturbed", epochs=1, **taught)
    ask = Teacher.forward

    with pytest.MonkeyPatch.context() as patch:

        def stopped(self: Teacher, x_BCHW: torch.Tensor) -> torch.Tensor:
            patch.setattr(Teacher, "forward", ask)
            os.kill(os.getpid(), signal.SIGTERM)
            return ask(self, x_BCHW)

        patch.setattr(Teacher, "forward", stopped)
        patch.setattr("vitesse.train.teacher.ASKED_TOGETHER", 16)
        with pytest.raises(StoppedError, match="SIGTERM before the first step; nothing was lost"):
            run(data, tmp_path / "run", epochs=1, **taught)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "teacher_logits.safetensors").exists()
    run(data, tmp_path / "run", epochs=1, **taught)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "undisturbed"))


def test_cached_logits_of_another_teacher_or_a_damaged_file_are_asked_again(
    data: Path, tmp_path: Path, run: Run, whole: Path, first_epoch: Path
) -> None:
    def answers(teacher: Path, out: str) -> torch.Tensor:
        path = str(teacher / "checkpoints" / "last" / "model.safetensors")
        (tmp_path / out / "checkpoints" / "last" / "state.safetensors").unlink(missing_ok=True)
        run(data, tmp_path / out, epochs=1, teacher=path, teacher_cache=True)
        return load_file(tmp_path / out / "teacher_logits.safetensors")["logits_NK"]

    first = answers(whole, "run")
    assert torch.equal(answers(first_epoch, "run"), answers(first_epoch, "fresh"))
    cache = tmp_path / "run" / "teacher_logits.safetensors"
    cache.write_bytes(cache.read_bytes()[:100])
    assert torch.equal(answers(whole, "run"), first)


def test_a_killed_reader_is_told_and_the_run_goes_on_exactly(
    attempt: Run,
    assert_as_whole: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    around: Callable[..., None],
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)

    def kill(_: Trainer, number: int) -> None:
        if number == 1:
            for child in multiprocessing.active_children()[:1]:
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    around(kill)
    with pytest.raises(TrainingError, match=r"killed at step \d.*with a lower workers=") as caught:
        attempt(workers=2)
    assert not multiprocessing.active_children()
    assert "\n" not in str(caught.value)
    around()
    attempt(workers=0)
    assert_as_whole()


@pytest.mark.parametrize(
    "error", [RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), ConnectionResetError()]
)
def test_a_reader_lost_between_the_parts_of_a_step_leaves_the_statistics_of_the_step_before(
    data: Path, tmp_path: Path, run: Run, weights: Weights, same: Same, error: Exception
) -> None:
    run(data, tmp_path / "whole", epochs=1, accumulate=2)
    make = loop.training_batches

    class Lost:
        def __init__(self, *arguments: Any) -> None:
            self.batches = make(*arguments)

        def __iter__(self) -> Iterator[Any]:
            for number, batch in enumerate(self.batches):
                if number == 5:
                    raise error
                yield batch

        def close(self) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_batches", Lost)
        with pytest.raises(TrainingError, match="killed at step 2"):
            run(data, tmp_path / "run", epochs=1, accumulate=2)
    run(data, tmp_path / "run", epochs=1, accumulate=2)
    assert same(weights(tmp_path / "run", "state"), weights(tmp_path / "whole", "state"))


# --- pictures and labels ---


def spoil(folder: Path, *names: str) -> list[Path]:
    files = [folder / name for name in names]
    for file in files:
        file.write_bytes(b"no picture")
    return files


def test_unreadable_pictures_are_listed_also_after_a_resume(
    colours: Path, tmp_path: Path, run: Run, around: Callable[..., None]
) -> None:
    good = (colours / "blue/003.png").read_bytes()
    spoilt = spoil(colours, "blue/003.png", "red/010.png", "green/011.png")
    around(sigterm_at(8))
    with pytest.raises(StoppedError):
        run(colours, tmp_path / "run", batch_size=6)
    for file in spoilt:
        file.write_bytes(good)
    around()
    result = run(colours, tmp_path / "run", batch_size=6)
    trained = {result.train_source.name(index) for index in range(54)}
    assert set(result.refused) == {str(file) for file in spoilt} & trained
    assert result.refused
    assert (tmp_path / "run" / "refused.txt").read_text().splitlines() == list(result.refused)
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"training pictures that cannot be read: {len(result.refused)}, see refused.txt" in report
    fresh = run(colours, tmp_path / "run2", epochs=1)
    assert fresh.refused == ()
    assert not (tmp_path / "run2" / "refused.txt").exists()


def test_strict_refuses_unreadable_pictures_before_training(colours: Path, tmp_path: Path, run: Run) -> None:
    spoilt = spoil(colours, "blue/003.png", "red/010.png")
    copy = shutil.copy(colours / "red" / "001.png", colours / "red" / "zzz.png")
    with pytest.raises(DataError, match=r"--strict: 2 pictures cannot be read.*data_check.json") as caught:
        run(colours, tmp_path / "run", strict=True)
    assert "\n" not in str(caught.value)
    found = json.loads((tmp_path / "run" / "data_check.json").read_text())
    assert {bad["name"] for bad in found["unreadable"]} == set(map(str, spoilt))
    copies = [sorted(same["train"] + same["val"]) for same in found["duplicates"]]
    assert [str(colours / "red" / "001.png"), str(copy)] in copies
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_signal_ends_the_check_before_training_which_a_resumed_run_leaves_out(
    data: Path, tmp_path: Path, run: Run, first_epoch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    check_pictures, look_over = Trainer.check_pictures, Classify.look_over

    def signalled(self: Trainer, strict: bool) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        check_pictures(self, strict)

    def counted(self: Classify, *arguments: Any) -> DataCheck:
        looked.append(True)
        return look_over(self, *arguments)

    monkeypatch.setattr(Classify, "look_over", counted)
    monkeypatch.setattr(Trainer, "check_pictures", signalled)
    with pytest.raises(StoppedError, match="stopped by SIGTERM before the first step"):
        run(data, tmp_path / "run", strict=True)
    shutil.copytree(first_epoch, tmp_path / "begun")
    with pytest.raises(StoppedError, match="stopped by SIGTERM at step 7"):
        run(data, tmp_path / "begun", strict=True)
    assert len(looked) == 1


def few(folder: Path, keep: dict[str, int]) -> Path:
    for name, count in keep.items():
        for file in sorted((folder / name).iterdir())[count:]:
            file.unlink()
    return folder


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"blue": 0, "green": 0}, "training needs pictures of at least two classes, all .* are 'red'"),
        ({"blue": 1, "green": 1, "red": 1}, "no picture is left to evaluate with; expected a test split"),
        ({"blue": 0, "green": 0, "red": 0}, "expected class folders with pictures .* found none"),
    ],
)
def test_data_that_nothing_can_be_learnt_from_is_refused(
    colours: Path, tmp_path: Path, run: Run, keep: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        run(few(colours, keep), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_was_said_before_the_first_step_is_in_the_report_of_a_resumed_run(
    colours: Path, tmp_path: Path, run: Run, first_epoch: Path, around: Callable[..., None]
) -> None:
    init = str(first_epoch / "checkpoints" / "last" / "model.safetensors")
    go = partial(run, few(colours, {"green": 0}), tmp_path / "run", epochs=1, init=init)
    told = f"started from {init}", "1 class has no training picture", "resumed at step 2"
    (tmp_path / "run").mkdir()
    stale = {"kind": "note", "step": 0, "text": "of a session that saved nothing"}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(stale))
    around(sigterm_at(1))
    with pytest.raises(StoppedError):
        go()
    around()
    go()
    notes = [row["text"] for row in rows(tmp_path / "run", "note")]
    report = (tmp_path / "run" / "report.html").read_text()
    for line in told:
        assert [line in note for note in notes].count(True) == 1
        assert line in report
    assert stale["text"] not in notes


def test_a_class_without_pictures_is_told_and_trained_around(
    colours: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(few(colours, {"blue": 0, "green": 4}), tmp_path / "run", epochs=1)
    told = capsys.readouterr().err
    assert "1 class has no training picture: 'blue'" in told
    assert "2 classes have no validation picture: 'blue', 'green'" in told
    assert result.scores.images == 2


def test_labels_out_of_range_are_refused(data: Path, tmp_path: Path, run: Run) -> None:
    source = FileSource(
        data, [str(path) for path in sorted(data.rglob("*.png"))], [0] * 20 + [1] * 40, ["a", "b"]
    )
    source.labels[7] = 2
    with pytest.raises(DataError, match="expected a label of 0 to 1, got 2"):
        run(source, tmp_path / "run")


def test_pictures_that_cannot_be_evaluated_lose_no_training(
    colours: Path, tmp_path: Path, run: Run, paint_classes: Callable[..., Path]
) -> None:
    colours.rename(tmp_path / "train")
    (tmp_path / "data").mkdir()
    (tmp_path / "train").rename(tmp_path / "data" / "train")
    held_out = paint_classes(tmp_path / "data" / "test", per_class=2)
    spoil(held_out, *(str(file.relative_to(held_out)) for file in held_out.rglob("*.png")))
    with pytest.raises(DataError, match="no picture could be read") as caught:
        run(tmp_path / "data", tmp_path / "run", epochs=1)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "checkpoints" / "last" / "state.safetensors").exists()
    assert f"failed: {caught.value}" in html.unescape((tmp_path / "run" / "report.html").read_text())


def test_an_average_that_is_not_finite_ends_the_run_and_keeps_what_was_saved(
    attempt: Run, tmp_path: Path, weights: Weights, around: Callable[..., None]
) -> None:
    def spoil(trainer: Trainer, number: int) -> None:
        if number == 8 and trainer.average is not None:
            next(trainer.average.parameters()).data.fill_(math.nan)

    around(spoil)
    with pytest.raises(
        TrainingError, match=r"evaluated at step 12: .* NaN .*go on from it with init="
    ) as caught:
        attempt()
    assert "\n" not in str(caught.value)
    assert f"failed: {caught.value}" in html.unescape((tmp_path / "run" / "report.html").read_text())
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_a_lost_process_is_in_the_report(attempt: Run, tmp_path: Path, around: Callable[..., None]) -> None:
    def lose(_: Trainer, number: int) -> None:
        if number == 8:
            raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")

    around(lose)
    with pytest.raises(TrainingError, match="another process was lost at step 8"):
        attempt()
    assert "failed: another process was lost at step 8" in (tmp_path / "run" / "report.html").read_text()


# --- folders of other runs, damaged files ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.1}, r"of another run \(recipe.lr was 0.002, now 0.1\); give another --out"),
        ({"model": "timm:test_vit"}, "model.name was 'timm:test_efficientnet', now 'timm:test_vit'"),
        ({"data": "other"}, "of another run .*data was"),
        ({"lr": 0.1, "trackers": ["tensorboard"]}, r"recipe.lr was 0.002, now 0.1"),
        ({"lr": 0.1, "teacher_cache": True}, r"recipe.lr was 0.002, now 0.1"),
        ({"lrr": 0.1}, "did you mean lr"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(
    data: Path, tmp_path: Path, run: Run, first_epoch: Path, changes: dict[str, Any], message: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(first_epoch, out)
    if "teacher_cache" in changes:
        changes = {**changes, "teacher": str(out / "checkpoints" / "last" / "model.safetensors")}
    if "data" in changes:
        shutil.copytree(data, tmp_path / "other")
        (tmp_path / "other" / "red" / "000.png").rename(tmp_path / "other" / "red" / "999.png")
        changes = {"data": tmp_path / "other"}
    leave_half_written(out)
    before = contents(out)
    with pytest.raises((TrainingError, ConfigError), match=message) as caught:
        run(**{"data": data, "out": out, **changes})
    assert "\n" not in str(caught.value)
    assert contents(out) == before


def flipped(state: bytes, at: int) -> bytes:
    return state[:at] + bytes([state[at] ^ 1]) + state[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda state: b"",
    "cut in the header": lambda state: state[:5000],
    "cut in the middle": lambda state: state[: len(state) // 2],
    "one byte short": lambda state: state[:-1],
    "a flipped bit in a tensor": lambda state: flipped(state, len(state) - 1000),
    "a flipped bit in the progress": lambda state: flipped(state, state.index(rb"\"step\": 6") + 10),
    "a flipped bit in the run": lambda state: flipped(
        state, state.index(rb"\"batch_size\": 8", state.index(b'"run":')) + 16
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_and_left_alone(
    data: Path, tmp_path: Path, run: Run, first_epoch: Path, damage: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(first_epoch, out)
    state = out / "checkpoints" / "last" / "state.safetensors"
    state.write_bytes(DAMAGES[damage](state.read_bytes()))
    before = contents(out)
    with pytest.raises(TrainingError, match="cannot resume, the file is damaged") as caught:
        run(data, out)
    assert "\n" not in str(caught.value)
    assert contents(out) == before


def leave_half_written(out: Path) -> list[Path]:
    """What a killed run leaves of its checkpoint and of its report."""
    files = [
        out / "checkpoints" / "last" / ".state.0a1b2c3d4e5f.tmp.safetensors",
        out / ".report.0a1b2c3d4e5f.tmp.html",
    ]
    for file in files:
        file.write_bytes(b"half")
    return files


def test_rows_after_the_checkpoint_and_a_cut_line_come_again_once(
    data: Path, tmp_path: Path, run: Run, whole: Path, first_epoch: Path
) -> None:
    """As after SIGKILL: the newest checkpoint is of the first epoch, the rows go on, the last is cut."""
    out = tmp_path / "run"
    shutil.copytree(first_epoch, out)
    text = (whole / "metrics.jsonl").read_text()
    (out / "metrics.jsonl").write_text(text + '[1]\n{"kind": "step"}\n{"kind": "step", "st')
    half_written = leave_half_written(out)
    run(data, out, log_every=1)
    assert not any(path.exists() for path in half_written)
    assert losses(out) == losses(whole)
    assert [row["epoch"] for row in rows(out, "epoch")] == [1, 2]


def test_an_epoch_recorded_but_not_saved_is_recorded_once(
    data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        patch.setattr(Trainer, "_close_epoch", lambda self: self._validate(None) or self.signals.check())
        with pytest.raises(StoppedError):
            run(data, out)
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "epoch", "epoch": 1, "step": 6, "skipped": 0}) + "\n")
    run(data, out)
    assert [row["epoch"] for row in rows(out, "epoch")] == [1, 2]


# --- what a run leaves to read ---


def test_the_recipe_of_a_run_makes_the_same_run(
    data: Path, assert_as_whole: Callable[[], None], tmp_path: Path, tiny: dict[str, Any], whole: Path
) -> None:
    file = whole / "recipe.yaml"
    assert load_recipe(file) == load_recipe("finetune", {**tiny, "log_every": 1})
    loop.train(data, model="timm:test_efficientnet", out=tmp_path / "run", recipe=file)
    assert_as_whole()


def test_every_checkpoint_says_where_it_came_from(data: Path, whole: Path, tiny: dict[str, Any]) -> None:
    root = Path(loop.__file__).parents[3]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    for name in ("last/model", "best/model", "last/state"):
        with safe_open(whole / "checkpoints" / f"{name}.safetensors", "pt") as file:
            header = file.metadata()
        made = json.loads(header["provenance"] if "state" in name else header["vitesse"])
        made = made.get("provenance", made)
        assert made["recipe"].items() >= {**tiny, "seed": 0}.items()
        assert made["versions"]["torch"] == metadata.version("torch")
        assert made["commit"] == (commit.stdout.strip() or None)
        assert made["data"] == loop.splits(TASKS["classify"], data, load_recipe("finetune"))[0].fingerprint


def right(artefact: Path, source: Source) -> float:
    """Share of a source's pictures that an artefact names rightly, each asked by itself."""
    names = [source.name(index) for index in range(len(source))]
    found = [result.predictions[0].label for result in load(artefact).predict(names)]
    return float(np.mean([label == Path(name).parent.name for label, name in zip(found, names, strict=True)]))


def test_a_finished_run_is_shipped_with_its_own_accuracy(attempt: Run, tmp_path: Path) -> None:
    result = attempt(epochs=1)
    manifest = ship(result, tmp_path / "run").manifest
    path = tmp_path / "run" / "model.onnx"
    assert manifest == read_artefact(path).manifest
    assert manifest.accuracy is not None
    assert manifest.accuracy["images"] == len(result.val_source) == 6
    assert manifest.accuracy["top1"] == right(path, result.val_source)
    assert manifest.trained_on == "colours"
    assert manifest.provenance["recipe"]["lr"] == 2e-3
    assert manifest.provenance["recipe"]["seed"] == 0
    assert manifest.provenance["data"] == result.train_source.fingerprint
    assert manifest.provenance["commit"] == provenance.commit()
    assert manifest.provenance["versions"]["timm"]
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"value: {manifest.accuracy['top1']}" in card
    assert "colours" in card


@pytest.mark.slow
def test_a_run_is_shipped_as_int8(attempt: Run, tmp_path: Path) -> None:
    plain = {"mixup": 0.0, "cutmix": 0.0, "drop_path_rate": 0.0, "rand_augment": "", "ema": 0.0}
    result = attempt(model="efficientvit_m0", epochs=8, image_size=64, **plain)
    manifest = ship(result, tmp_path / "run", "int8").manifest
    assert manifest.precision == "int8"
    assert manifest.calibration is not None
    assert manifest.accuracy is not None
    assert manifest.accuracy["top1"] == right(tmp_path / "run" / "model.onnx", result.val_source)
    assert "int8" in (tmp_path / "run" / "README.md").read_text()
