"""The training loop as workers of a Ray cluster on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from vitesse.train.checkpoint import read_progress

SETTINGS = ("image_size=32", "batch_size=8", "workers=0", "trackers=[]", "log_every=1", "save_minutes=0")
STEPS, EPOCHS = 6, 3


def start(photos: Path, folder: Path, *overrides: str, workers: int = 2) -> subprocess.Popen[str]:
    command = [Path(sys.executable).with_name("vitesse"), "train", photos, "--model", "efficientvit_m0"]
    options = ["--out", folder / "run", "--ray", "--ray-workers", workers, "--json", *SETTINGS, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        list(map(str, command + options)),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers_of(driver: subprocess.Popen[str]) -> Iterator[psutil.Process]:
    """The training processes of the cluster that a driver started."""
    for child in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(child.cmdline()):
                yield child


def wait_for_step(step: int, metrics: Path, driver: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not metrics.exists() or metrics.read_text().count('"kind": "step"') < step:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_a_run_outlives_a_killed_worker(tmp_path: Path, paint_classes: Callable[..., Path]) -> None:
    photos = paint_classes(tmp_path / "photos", per_class=18)
    driver = start(photos, tmp_path, "init=", f"epochs={EPOCHS}")
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for_step(STEPS + 2, metrics, driver)
    next(workers_of(driver)).kill()
    said, complaints = driver.communicate(timeout=300)
    assert driver.returncode == 0, complaints
    assert complaints.count(f"epoch {EPOCHS}/{EPOCHS}") == 1
    assert "all start anew from the last checkpoint" in complaints
    assert "resumed at step" in complaints
    assert "Traceback" not in complaints
    (outcome,) = [json.loads(line) for line in said.splitlines()]
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "epoch"][-1]
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, STEPS * EPOCHS + 1))
    assert (outcome["top1"], outcome["images"]) == (last["top1"], 6)
    assert outcome["refused"] == 0
    run = tmp_path / "run"
    for name in ("report.html", "checkpoints/last/model.safetensors", "checkpoints/best/model.safetensors"):
        assert (run / name).stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "run"]


@pytest.mark.slow
def test_a_signal_to_the_command_saves_and_ends_its_workers(
    tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    photos = paint_classes(tmp_path / "photos", per_class=18)
    driver = start(photos, tmp_path, "init=", "epochs=500", "save_minutes=60")
    wait_for_step(2, tmp_path / "run" / "metrics.jsonl", driver)
    workers = list(workers_of(driver))
    driver.terminate()
    said, complaints = driver.communicate(timeout=60)
    assert (driver.returncode, said) == (75, ""), complaints
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    (stopped,) = re.findall(
        r"^error: stopped by SIGTERM at step (\d+); run the same", complaints, re.MULTILINE
    )
    state = tmp_path / "run" / "checkpoints" / "last" / "state.safetensors"
    assert read_progress(state).step == int(stopped) == metrics.count('"kind": "step"')
    assert "Traceback" not in complaints
    assert psutil.wait_procs(workers, timeout=20)[1] == []


@pytest.mark.slow
def test_what_a_worker_refuses_ends_the_run_at_once(
    tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    photos = paint_classes(tmp_path / "photos", per_class=18)
    driver = start(photos, tmp_path, "init=absent.safetensors", workers=1)
    said, complaints = driver.communicate(timeout=300)
    assert (driver.returncode, said) == (1, ""), complaints
    assert complaints.splitlines()[-1] == "error: absent.safetensors: no such file"
    assert "start anew" not in complaints
    assert "Traceback" not in complaints


def test_a_recipe_is_checked_before_ray_starts(tmp_path: Path, paint_classes: Callable[..., Path]) -> None:
    photos = paint_classes(tmp_path / "photos", per_class=4)
    driver = start(photos, tmp_path, "epoch=2")
    said, complaints = driver.communicate(timeout=60)
    assert (driver.returncode, said) == (2, "")
    assert complaints.startswith("error: ")
    assert len(complaints.splitlines()) == 1
    assert "epoch" in complaints


def test_without_ray_one_line_says_what_to_install(tmp_path: Path) -> None:
    """In a process that cannot import Ray."""
    hidden = "import sys; sys.modules['ray'] = None; from vitesse.cli import main; main()"
    command = [sys.executable, "-c", hidden, "train", tmp_path, "--ray", "--out", tmp_path / "run"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: this needs ray, which is not installed: pip install 'vitesse[scale]'\n"
