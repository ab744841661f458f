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

VITESSE = [sys.executable, "-c", "from vitesse.cli import main; main()"]


def vitesse(*arguments: str | Path) -> list[dict[str, Any]]:
    """Run the command as a person would, and read what it prints as JSON."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
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
        assert (scores["top1"], scores["images"]) == (by_torch["top1"], 72)
        records = vitesse("predict", *names, "--model", artefact, "--engine", engine)
        assert [record["predictions"][0]["label"] for record in records] == ["blue", "green", "red"]
