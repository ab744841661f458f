"""DeiT-tiny's published weights give their published accuracy through our preprocessing, model, engines."""

from __future__ import annotations

from pathlib import Path

import pytest

import vitesse
from vitesse import cli
from vitesse.evaluate import evaluate

ARCH = "vit_tiny_patch16"
TOP1, TOP5 = pytest.approx(0.706, abs=0.004), pytest.approx(0.914, abs=0.004)


@pytest.mark.slow
def test_deit_tiny_in_torch_and_in_both_engines(data_dir: Path, tmp_path: Path) -> None:
    photos = data_dir / "in1k_val500"
    published = data_dir / "deit_tiny_in1k_lnq_fp16.safetensors"
    converted, artefact = tmp_path / "deit.safetensors", tmp_path / "deit.onnx"
    assert cli.run(["convert", str(published), "--model", ARCH, "--out", str(converted)]) == 0

    by_torch = evaluate(photos, model=converted)
    assert (by_torch.images, by_torch.refused) == (500, 0)
    assert (by_torch.top1, by_torch.top5) == (TOP1, TOP5)

    manifest = vitesse.export(converted, artefact).manifest
    assert manifest.class_names[0].startswith("tench")
    for engine in ("onnxruntime", "openvino"):
        scores = evaluate(photos, model=artefact, engine=engine)
        assert (scores.images, scores.top1, scores.top5) == (500, TOP1, TOP5)
        assert scores.top1 == pytest.approx(by_torch.top1, abs=0.002)


@pytest.mark.slow
def test_deit_tiny_in_int8_keeps_its_accuracy_within_a_point(data_dir: Path, tmp_path: Path) -> None:
    photos = data_dir / "in1k_val500"
    published = data_dir / "deit_tiny_in1k_lnq_fp16.safetensors"
    options = {"precision": "int8", "calibrate": data_dir / "in1k_samples", "data": photos}
    # Speed is not what this test is about, so a slow machine must not refuse the file.
    written = vitesse.export(published, tmp_path / "deit.onnx", arch=ARCH, force=True, **options)
    accuracy = written.manifest.accuracy
    assert accuracy is not None
    assert accuracy["images"] == 500
    assert accuracy["fp32_top1"] == TOP1
    assert accuracy["top1"] >= accuracy["fp32_top1"] - 0.01
