"""What trackers do, and cannot do, to a run."""

from __future__ import annotations

import json

import pytest
from accelerate import Accelerator

from vitesse.errors import ConfigError

TENSORBOARD = {"trackers": ["tensorboard"], "epochs": 1}


def test_a_tracker_that_cannot_start_is_named_before_the_first_step(run, colours, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("nobody is\nlogged in")

    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    with pytest.raises(ConfigError, match=r"trackers: .*tensorboard.*RuntimeError: nobody is logged in"):
        run(colours, tmp_path / "run", **TENSORBOARD)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_tracker_that_cannot_be_reached_later_costs_a_note_and_no_step(run, colours, tmp_path, monkeypatch):
    told = []

    def fail(self, values, step):
        told.append(step)
        raise ConnectionError("the service is away")

    monkeypatch.setattr(Accelerator, "log", fail)
    run(colours, tmp_path / "run", **TENSORBOARD)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} >= {"step", "epoch"}
    assert len(told) == sum(row["kind"] in ("step", "epoch") for row in rows)
    assert (tmp_path / "run" / "report.html").read_text().count(
        "a tracker cannot be told (ConnectionError"
    ) == 1


def test_trackers_keep_their_files_in_the_folder_of_the_run(run, colours, tmp_path, monkeypatch):
    given = {}

    def note(self, project, config, init_kwargs):
        given.update(init_kwargs)

    monkeypatch.setattr(Accelerator, "init_trackers", note)
    monkeypatch.setattr("vitesse.train.setup.check_trackers", lambda recipe: [])  # neither is installed here
    run(colours, tmp_path / "tuned", trackers=["wandb", "mlflow"], epochs=1)
    assert given == {
        "wandb": {"name": "tuned", "dir": str(tmp_path / "tuned")},
        "mlflow": {"run_name": "tuned"},
    }
