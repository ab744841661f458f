"""DeiT-tiny's published weights give their published accuracy through our preprocessing, model, engines."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import vitesse
from vitesse import cli
from vitesse.evaluate import evaluate

ARCH = "vit_tiny_patch16"
TOP1, TOP5 = pytest.approx(0.706, abs=0.004), pytest.approx(0.914, abs=0.004)


def as_in_real(photos: Path) -> list[list[int]]:
    """The labels of the validation pictures at hand, in the form of ImageNet-ReaL's file."""
    labels: list[list[int]] = [[] for _ in range(50_000)]
    with (photos / "labels.tsv").open(newline="") as stream:
        for row in csv.DictReader(stream, delimiter="\t"):
            labels[int(row["file"][15:23]) - 1] = [int(row["index"])]
    return labels


@pytest.mark.slow
def test_deit_tiny_in_torch_and_in_both_engines(data_dir: Path, tmp_path: Path) -> None:
    photos = data_dir / "in1k_val500"
    published = data_dir / "deit_tiny_in1k_lnq_fp16.safetensors"
    converted, artefact = tmp_path / "deit.safetensors", tmp_path / "deit.onnx"
    assert cli.run(["convert", str(published), "--model", ARCH, "--out", str(converted)]) == 0

    own, wider = tmp_path / "own.json", tmp_path / "wider.json"
    labels = as_in_real(photos)
    own.write_text(json.dumps(labels))
    wider.write_text(json.dumps([[*label, *((index + 1) % 1000 for index in label)] for label in labels]))
    by_torch = evaluate(photos, model=converted, labels=own)
    assert (by_torch.images, by_torch.refused) == (500, 0)
    assert (by_torch.top1, by_torch.top5) == (TOP1, TOP5)
    assert (by_torch.labels_top1, by_torch.labels_images) == (by_torch.top1, 500)
    assert by_torch.engine_img_per_s > by_torch.img_per_s > 0

    manifest = vitesse.export(converted, artefact).manifest
    assert manifest.class_names[0].startswith("tench")
    some = evaluate(photos, model=converted, limit=150)
    for engine in ("onnxruntime", "openvino"):
        scores = evaluate(photos, model=artefact, engine=engine, labels=wider, limit=150)
        assert (scores.images, scores.top1, scores.top5) == (150, some.top1, some.top5)
        assert (scores.ece, scores.nll) == pytest.approx((some.ece, some.nll), abs=0.005)
        assert scores.labels_top1 is not None
        assert scores.labels_top1 >= scores.top1


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
