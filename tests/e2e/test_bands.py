"""Models of any number of bands, from creation to predictions; the worked example on real data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vitesse
from vitesse.runtime.imaging import preprocess_bands
from vitesse.spec import PreprocessSpec, to_mapping
from vitesse.weights import save_weights

EXAMPLE = Path(__file__).parents[2] / "examples" / "hyperspectral.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_bands"),
    [("efficientvit_b0", 1), ("shvit_s1", 13), ("vit_tiny_patch16", 156)],
)
def test_bands_go_the_whole_way(name: str, num_bands: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    mean, std = (tuple(generator.uniform(0.2, 0.8, num_bands).tolist()) for _ in range(2))
    spec = PreprocessSpec(image_size=(64, 64), mean=mean, std=std)
    torch.manual_seed(0)
    model = vitesse.create_model(name, in_chans=num_bands, num_classes=4, image_size=64)
    torch.nn.init.normal_(
        next(p for n, p in model.named_parameters() if n.startswith("head") and p.ndim == 2)
    )
    model.eval()
    metadata = {"class_names": list("abcd"), "preprocess": to_mapping(spec)}
    save_weights(tmp_path / "m.safetensors", model, metadata)
    written = vitesse.export(tmp_path / "m.safetensors", tmp_path / "m.onnx")
    assert written.manifest.preprocess == spec
    assert written.manifest.model.in_chans == num_bands

    scenes = [generator.integers(0, 65536, (70, 90, num_bands), np.uint16) for _ in range(3)]
    np.save(tmp_path / "scene.npy", scenes[0])
    x_BCHW = torch.from_numpy(np.stack([preprocess_bands(scene, spec) for scene in scenes]))
    with torch.no_grad():
        expected_BK = model(x_BCHW).softmax(1).numpy()
    for engine in ("onnxruntime", "openvino"):
        predictor = vitesse.load(tmp_path / "m.onnx", engine=engine, top_k=4)
        records = predictor.predict([tmp_path / "scene.npy", *scenes[1:]])
        for record, probabilities_K in zip(records, expected_BK, strict=True):
            assert record.error is None
            for prediction in record.predictions:
                assert prediction.score == pytest.approx(probabilities_K[prediction.index], abs=1e-4)


@pytest.mark.slow
def test_the_example_learns_the_scene(data_dir: Path, tmp_path: Path) -> None:
    """A short run: chance is 1/3 of the classes' average."""
    command = [sys.executable, str(EXAMPLE), "--models", "efficientvit_b0", "--seeds", "1"]
    options = ["--steps", "80", "--out", str(tmp_path)]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "VITESSE_DATA": str(data_dir)}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "samson.json").read_text())
    methods = record["methods"]
    assert methods["linear, centre pixel"]["overall_mean"] >= 0.9
    assert methods["efficientvit_b0"]["average_mean"] >= 0.6
    assert record["onnxruntime_overall"] == pytest.approx(
        methods["efficientvit_b0"]["overall_mean"], abs=2e-3
    )
    assert (tmp_path / "samson.png").stat().st_size > 10_000
