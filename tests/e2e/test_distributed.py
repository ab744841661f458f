"""Several processes train as one, and processes that are told to stop or are killed lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from vitesse.data.sources import HELD_OUT_SHARE, hold_out, open_source
from vitesse.errors import ConfigError
from vitesse.metrics import Showing, outcomes, score
from vitesse.models import load_checkpoint
from vitesse.models.engine import TorchEngine
from vitesse.spec import PreprocessSpec
from vitesse.train.checkpoint import Progress, read_progress
from vitesse.train.recipe import Recipe
from vitesse.train.setup import make_accelerator
from vitesse.weights.files import read_checkpoint_header

COMMANDS = Path(sys.executable).parent
SPY = Path(__file__).with_name("spy.py")
SETTINGS = ("image_size=32", "batch_size=8", "workers=0", "init=", "trackers=[]", "log_every=1", "epochs=2")
PLAIN = "vit_tiny_patch4"  # without BatchNorm, so that the number of processes makes no difference
TRAINED, HELD_OUT, STEPS = 48, 6, 6
"""Pictures of each kind, and steps an epoch."""


@dataclass
class Run:
    """A run in a folder, and the commands that it takes."""

    photos: Path
    folder: Path
    model: str = PLAIN
    overrides: tuple[str, ...] = ()

    def start(self, *launcher: str | Path, fault: str = "") -> subprocess.Popen[str]:
        """The command in a session of its own; a `fault` is one of the spy's, who then takes its place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SPY_FOLDER": str(self.folder)}
        if fault:
            environment["SPY_FAULT"] = fault
            for mark in self.folder.glob("struck-*"):
                mark.unlink()
        arguments = ["train", self.photos, "--model", self.model, "--out", self.folder / "run"]
        return subprocess.Popen(
            [*map(str, (*launcher, *arguments)), *SETTINGS, *self.overrides],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def alone(self, fault: str = "") -> tuple[int, str]:
        """One process: its exit code and what it said."""
        return ended(self.start(sys.executable, SPY, fault=fault))

    def together(self, *options: str, fault: str = "") -> tuple[int, str]:
        """Two processes under torchrun: its exit code and what they said."""
        return ended(self.start(*TORCHRUN, *options, SPY, fault=fault))

    @property
    def rows(self) -> list[dict[str, Any]]:
        path = self.folder / "run" / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def of_kind(self, kind: str, key: str) -> list[Any]:
        return [row[key] for row in self.rows if row["kind"] == kind]

    @property
    def progress(self) -> Progress:
        """How far the newest state is; reading it checks its digest."""
        return read_progress(self.folder / "run" / "checkpoints" / "last" / "state.safetensors")

    @property
    def seen(self) -> Counter[str]:
        """How often each `EPOCH PICTURE` was trained on, by all processes of the run's life."""
        return Counter(line for path in self.folder.glob("seen-*") for line in path.read_text().splitlines())

    @property
    def held(self) -> list[int]:
        """Bytes of weights and moments that each process held at the end."""
        return [int(path.read_text()) for path in sorted(self.folder.glob("held-*"))]

    def wait_for_step(self, step: int, process: subprocess.Popen[str]) -> None:
        until = time.monotonic() + 60
        while max([0, *self.of_kind("step", "step")]) < step:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)


TORCHRUN = (COMMANDS / "torchrun", "--standalone", "--nproc-per-node", "2")


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, complaints = process.communicate(timeout=120)
    return process.returncode, said + complaints


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, paint_classes: Callable[..., Path]) -> Path:
    return paint_classes(tmp_path_factory.mktemp("data") / "photos", per_class=18)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Run:
    """The run of one process that nothing disturbs."""
    run = Run(photos, tmp_path_factory.mktemp("undisturbed"))
    code, said = run.alone()
    assert code == 0, said
    assert sorted(run.seen.values()) == [1] * (2 * TRAINED)
    return run


def assert_like(run: Run, undisturbed: Run) -> None:
    """The same pictures, steps, learning rates and, without BatchNorm, the same losses."""
    assert run.seen == undisturbed.seen
    for key in ("step", "epoch", "lr"):
        assert run.of_kind("step", key) == undisturbed.of_kind("step", key)
    for kind in ("step", "epoch"):
        assert run.of_kind(kind, "loss") == pytest.approx(undisturbed.of_kind(kind, "loss"), abs=1e-4)
    assert run.of_kind("epoch", "images") == [HELD_OUT, HELD_OUT]
    assert run.of_kind("epoch", "top1") == undisturbed.of_kind("epoch", "top1")
    assert run.of_kind("epoch", "nll") == pytest.approx(undisturbed.of_kind("epoch", "nll"), abs=1e-3)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path, photos: Path, undisturbed: Run) -> None:
    run = Run(photos, tmp_path)
    code, said = run.together()
    assert code == 0, said
    assert said.count("epoch 2/2") == 1
    assert_like(run, undisturbed)
    shares = [len(path.read_text().splitlines()) for path in tmp_path.glob("seen-*")]
    assert shares == [TRAINED, TRAINED]
    checkpoints = run.folder / "run" / "checkpoints"
    assert sorted(str(path.relative_to(checkpoints)) for path in checkpoints.rglob("*.*")) == [
        "best/model.safetensors",
        "last/model.safetensors",
        "last/state.safetensors",
    ]
    _, metadata = read_checkpoint_header(checkpoints / "last" / "model.safetensors")
    assert metadata["provenance"]["processes"] == 2


@pytest.mark.slow
def test_stopped_runs_go_on_with_another_number_of_processes(
    tmp_path: Path, photos: Path, undisturbed: Run
) -> None:
    """Of two processes one is told to stop, and both do; then one alone; then two to the end."""
    run = Run(photos, tmp_path)
    code, said = run.together(fault="SIGTERM 1 5")  # in its second step
    assert code == 1
    assert "exitcode  : 75" in said
    assert "stopped by another process at step 3; run the same command again to go on" in said
    assert (run.progress.step, run.of_kind("step", "step")) == (3, [1, 2, 3])
    code, said = run.alone(fault="SIGTERM 0 26")  # in its fourth step, the second epoch's first
    assert code == 75
    assert "stopped by SIGTERM at step 8; run the same command again to go on" in said
    assert (run.progress.step, run.progress.epochs) == (8, 1)
    code, said = run.together()
    assert code == 0, said
    assert "resumed at step 8 of 12" in said
    assert_like(run, undisturbed)


@pytest.mark.slow
def test_two_processes_share_a_model_that_one_began_and_one_ends(
    tmp_path: Path, photos: Path, undisturbed: Run
) -> None:
    run = Run(photos, tmp_path)
    assert run.alone(fault="SIGTERM 0 10")[0] == 75  # in its second step
    code, said = replace(run, overrides=("shard=true", "accumulate=2")).together(fault="SIGTERM 1 18")
    assert code == 1
    assert "resumed at step 3 of 12" in said
    assert "stopped by another process at step 9; run the same command again to go on" in said
    assert run.held == pytest.approx([undisturbed.held[0] / 2] * 2, rel=0.02)
    code, said = run.alone()
    assert code == 0, said
    assert "resumed at step 9 of 12" in said
    assert_like(run, undisturbed)


@pytest.mark.slow
def test_torchrun_passes_a_signal_on(tmp_path: Path, photos: Path) -> None:
    run = Run(photos, tmp_path, overrides=("epochs=500",))
    process = run.start(*TORCHRUN, "--no-python", COMMANDS / "vitesse")
    run.wait_for_step(2, process)
    process.terminate()
    asked = time.monotonic()
    code, said = ended(process)
    assert time.monotonic() - asked < 30
    assert code == 1
    assert "stopped by SIGTERM at step" in said
    assert run.progress.step == run.of_kind("step", "step")[-1] >= 2


@pytest.mark.slow
def test_a_killed_process_is_replaced(tmp_path: Path, photos: Path, undisturbed: Run) -> None:
    """Saved after every step, a run loses the step in which a process is killed, and no more."""
    run = Run(photos, tmp_path, overrides=("save_minutes=0",))
    code, said = run.together("--max-restarts", "3", fault="SIGKILL 1 30")  # in its eighth step
    assert code == 0, said
    assert "resumed at step 7 of 12" in said
    assert "please report" not in said
    assert "another process was lost at step 7" in said
    assert run.of_kind("step", "step") == list(range(1, 13))
    assert run.of_kind("step", "lr") == undisturbed.of_kind("step", "lr")
    assert run.seen.keys() == undisturbed.seen.keys()
    twice = [key for key, times in run.seen.items() if times > 1]
    assert len(twice) <= 8
    assert all(key.startswith("1 ") for key in twice)


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_run_ends_its_readers_too(tmp_path: Path, photos: Path) -> None:
    run = Run(photos, tmp_path, "efficientvit_m0", ("workers=2", "epochs=500"))
    before = 0
    for name in ("SIGTERM", "SIGINT"):
        process = run.start(COMMANDS / "vitesse")
        run.wait_for_step(before + 2, process)
        readers = psutil.Process(process.pid).children()
        assert len(readers) >= 2
        os.killpg(process.pid, getattr(signal, name))
        code, said = ended(process)
        assert code == 75
        assert f"error: stopped by {name} at step {run.progress.step};" in said
        assert "Traceback" not in said
        assert run.progress.step > before + 1
        assert psutil.wait_procs(readers, timeout=20)[1] == []
        before = run.progress.step


@pytest.mark.slow
def test_a_signal_before_the_first_step_and_in_the_first_evaluation(
    tmp_path: Path, photos: Path, undisturbed: Run
) -> None:
    run = Run(photos, tmp_path)
    code, said = run.alone(fault="SIGTERM 0 setup")
    assert code == 75
    assert "stopped by SIGTERM before the first step; nothing was lost" in said
    assert run.rows == []
    code, said = run.alone(fault="SIGINT 0 validate")
    assert code == 75
    assert "stopped by SIGINT at step 6" in said
    assert (run.progress.step, run.progress.epochs) == (6, 0)
    code, said = run.alone()
    assert code == 0, said
    assert_like(run, undisturbed)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_other_ways_to_spread_a_model_are_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(
        ConfigError, match=f"^launched with {kind}: launch with torchrun .* set shard=true to"
    ):
        make_accelerator(Recipe(), tmp_path)


@pytest.mark.slow
def test_what_two_processes_score_is_what_they_save_whole_or_in_parts(
    tmp_path: Path, photos: Path, undisturbed: Run
) -> None:
    """BatchNorm's statistics, the average of them, and the teacher's answers are the same in both processes;
    sharding changes nothing."""
    last = undisturbed.folder / "run" / "checkpoints" / "last" / "model.safetensors"
    trained, held_out = hold_out(open_source(photos), HELD_OUT_SHARE, 0)
    showing = Showing(preprocess=PreprocessSpec(image_size=(32, 32)))
    expected = outcomes(TorchEngine(load_checkpoint(last)[0]), trained, showing)
    saved = []
    for kind in ("false", "true"):
        taught = (f"teacher={last}", "teacher_cache=true", f"shard={kind}")
        overrides = ("epochs=1", "ema=0.9", "channels_last=false", *taught)
        run = Run(photos, tmp_path / kind, "timm:test_efficientnet", overrides)
        code, said = run.together()
        assert code == 0, said
        path = run.folder / "run" / "checkpoints" / "last" / "model.safetensors"
        found = score(TorchEngine(load_checkpoint(path)[0]), held_out, showing)
        assert run.of_kind("epoch", "nll")[-1] == pytest.approx(found.nll, rel=1e-6)
        told = load_file(run.folder / "run" / "teacher_logits.safetensors")["logits_NK"].argmax(1).numpy()
        assert (told == expected.firsts_B).mean() > 0.8
        saved.append((run.of_kind("step", "loss"), run.of_kind("step", "grad_norm"), load_file(path)))
    torch.testing.assert_close(saved[1], saved[0], rtol=1e-3, atol=1e-4)
