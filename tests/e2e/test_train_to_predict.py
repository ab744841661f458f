"""The whole way on a small folder: train, evaluate, export, predict through both engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitesse import evaluate, load

VITESSE = [sys.executable, "-c", "from vitesse.cli import main; main()"]


def vitesse(*arguments: str | Path) -> list[dict[str, Any]]:
    """Run the command as a person would, and read what it prints as JSON."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*VITESSE, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_photos_become_a_model_that_labels_them(tmp_path: Path, paint_classes: Callable[..., Path]) -> None:
    photos = paint_classes(tmp_path / "photos", per_class=24, size=48)
    run, artefact = tmp_path / "run", tmp_path / "colours.onnx"
    settings = (
        "epochs=8",
        "image_size=64",
        "batch_size=12",
        "workers=0",
        "lr=2e-3",
        "ema=0.9",
        "rand_augment=",
    )
    (trained,) = vitesse("train", photos, "--model", "efficientvit_m0", "--out", run, *settings)
    assert trained["top1"] == 1.0
    checkpoint = run / "checkpoints" / "last" / "model.safetensors"
    (exported,) = vitesse("export", checkpoint, "--out", artefact, "--data", photos)
    assert exported["accuracy"]["top1"] == 1.0
    assert max(exported["parity"][engine] for engine in ("onnxruntime", "openvino")) <= 1e-3

    (by_torch,) = vitesse("evaluate", photos, "--model", checkpoint)
    names = [photos / "blue" / "000.png", photos / "green" / "001.png", photos / "red" / "002.png"]
    for engine in ("onnxruntime", "openvino"):
        (scores,) = vitesse("evaluate", photos, "--model", artefact, "--engine", engine)
        assert (scores["top1"], scores["images"]) == (by_torch["top1"], 6)  # held out
        records = vitesse("predict", *names, "--model", artefact, "--engine", engine)
        assert [record["predictions"][0]["label"] for record in records] == ["blue", "green", "red"]


@pytest.mark.slow
def test_a_multiplexed_model_goes_the_same_way(tmp_path: Path, paint_classes: Callable[..., Path]) -> None:
    photos = paint_classes(tmp_path / "photos", per_class=24, size=24)
    run, artefact, name = tmp_path / "run", tmp_path / "colours.onnx", "concatplexer_tiny_patch4_n2_pool"
    settings = ("epochs=8", "image_size=16", "batch_size=12", "workers=0", "lr=5e-4", "rand_augment=")
    warm_up = ("retrieval_epochs=1", "retrieval=0.1", "short_groups=0.5")
    (trained,) = vitesse("train", photos, "--model", name, "--out", run, *settings, *warm_up)
    assert trained["top1"] >= 0.9
    assert len(trained["slots"]) == 2
    checkpoint = run / "checkpoints" / "last" / "model.safetensors"
    (exported,) = vitesse("export", checkpoint, "--out", artefact, "--data", photos)
    assert max(exported["parity"][engine] for engine in ("onnxruntime", "openvino")) <= 1e-3
    assert exported["accuracy"]["agreement"] >= 0.8
    assert len(exported["accuracy"]["slots"]) == 2
    by_torch = evaluate(photos, model=checkpoint)
    cut = photos / "cut.png"
    names = [photos / "blue" / "000.png", cut, photos / "green" / "001.png", photos / "red" / "002.png"]
    for engine in ("onnxruntime", "openvino"):
        scores = evaluate(photos, model=artefact, engine=engine)
        assert (scores.mux_width, scores.top1) == (2, by_torch.top1)
        records = load(artefact, engine=engine).predict(names)
        assert records[1].error
        labels = [record.predictions[0].label for record in records if record.error is None]
        assert labels == ["blue", "green", "red"]
