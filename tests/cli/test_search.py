"""`vitesse search`: what it prints, writes and refuses, and how it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitesse.search import latency
from vitesse.search.latency import Measured, Meter

SHORT = [
    "image_size=32",
    "epochs=2",
    "batch_size=8",
    "workers=0",
    "warmup_epochs=0",
    "ema=0",
    "rand_augment=",
]


@pytest.fixture
def colours(tmp_path: Path, paint_classes: Callable[..., Path]) -> Path:
    return paint_classes(tmp_path / "colours", per_class=8)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which latency is a law of what is computed; M0 takes 2 ms."""

    def measure(meter: Meter, specs: Any) -> list[Measured]:
        unit = latency.cost_of(meter.reference).macs
        ratios = [0.05 + 0.95 * latency.cost_of(spec).macs / unit for spec in specs]
        return [Measured(spec=s, ratio=r, reference_s=0.002) for s, r in zip(specs, ratios, strict=True)]

    monkeypatch.setattr(Meter, "measure", measure)


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return [
        *("search", "--data", str(data), "--max-latency", "2ms", "--samples", "10", "--out", str(out)),
        *more,
    ]


@pytest.mark.usefixtures("steady")
def test_the_best_is_named_and_its_spec_is_a_model(
    vitesse: Callable[..., Any], colours: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = arguments(colours, out, "--trials", "2", "--confirm", "0", "--json", *SHORT)
    done = vitesse(*asked)
    assert done.code == 0, done.err
    *trials, last = done.records
    assert [trial["state"] for trial in trials if trial["state"] != "too slow"] == ["trained", "trained"]
    assert trials[0]["spec"]["name"] == "efficientvit_m0"
    assert last["verdict"]["baseline"] == 0
    verdict = done.err.splitlines()[-1]
    assert "efficientvit_m0" in verdict
    assert "by" in verdict
    assert "fitted on" in done.err
    again = vitesse(*asked[:-8], *SHORT)
    assert again.code == 0
    assert "epoch" not in again.err
    assert verdict[1:] in again.out
    assert json.loads((out / "front" / "best.json").read_text())["num_classes"] == 3


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--max-latency", "fast"], 2, "expected a time such as 5ms or 0.005s, or one of efficientvit_m0"),
        (["--max-latency", "0ms"], 2, "expected a time such as 5ms"),
        (["--max-latency", "1us"], 2, "the fastest candidate takes 0.1"),
        (["--device", "cuda"], 2, "models are timed on the cpu, got 'cuda'"),
        (["--family", "efficientvit"], 2, "did you mean efficientvit_m"),
        (["--family", "vit"], 2, "no design space for 'vit'"),
        (["--engine", "onnx"], 2, "--engine: expected of onnxruntime, openvino, torch, got 'onnx'"),
        (["--image-size", "8"], 2, "--image-size: expected sides of at least 16 pixels"),
        (["--image-size", "a"], 2, "--image-size: expected numbers"),
        (["--trials", "0"], 2, "--trials: expected at least 1, got 0"),
        (["--samples", "5"], 2, "--samples: expected at least 10, got 5"),
        (["--threads", "9999"], 2, "CPUs, got 9999"),
        (["--max-macs", "0"], 2, "--max-macs: expected more than 0 millions, got 0"),
        (["--floor", "1"], 2, "--floor: expected a share of the latency, 0 to 1"),
        (["--data", "absent"], 1, "no such file or folder"),
        (["epoch=2"], 2, "did you mean epochs"),
        (["--recipe", "finetun"], 2, "did you mean finetune"),
    ],
)
def test_refusals_are_one_line(
    vitesse: Callable[..., Any],
    one_error: Callable[..., str],
    colours: Path,
    tmp_path: Path,
    options: list[str],
    code: int,
    message: str,
) -> None:
    done = vitesse(*arguments(colours, tmp_path / "out", *SHORT, *options))
    assert message in one_error(done, code)


def test_what_is_not_installed_is_named_before_anything_runs(
    vitesse: Callable[..., Any],
    one_error: Callable[..., str],
    colours: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = vitesse(*arguments(colours, tmp_path / "out"))
    assert "pip install 'vitesse[search]'" in one_error(done, 1)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are different there")
def test_a_search_that_is_terminated_goes_on(colours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from vitesse.cli import main; main()"]
    options = ["--engine", "torch", "--max-latency", "efficientvit_m0", "--trials", "2", "--confirm", "0"]
    command += arguments(colours, out, *options, *SHORT, "epochs=4")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 75
    assert "the search was stopped by SIGTERM at step" in rest
    assert "after 0 of 2 trials; run the same command again to go on" in rest
    steps = (out / "trials/0000/metrics.jsonl").read_text()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    assert (out / "trials/0000/metrics.jsonl").read_text().startswith(steps)
    record = json.loads((out / "search.json").read_text())
    assert [t["number"] for t in record["trials"]] == list(range(len(record["trials"])))
    assert sum(t["state"] in ("trained", "stopped") for t in record["trials"]) == 2
    specs = [json.dumps(t["spec"]) for t in record["trials"]]
    assert len(set(specs)) == len(specs)
