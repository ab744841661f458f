"""`vitesse analyze importance` and `vitesse prune`: what they print, write and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vitesse.models import build
from vitesse.spec import ModelSpec
from vitesse.weights.files import read_checkpoint_header, save_weights

NARROW = {"embed_dim": (16, 24, 24), "depths": (1, 1, 1), "num_heads": (2, 2, 2), "kernels": (3, 3)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = build(ModelSpec(name="efficientvit_m0", image_size=(32, 32), num_classes=3, variant=NARROW))
    metadata = {"class_names": ["blue", "green", "red"], "provenance": {"command": "by hand"}}
    path = tmp_path / "efficientvit_m0+wide" / "mine.safetensors"
    path.parent.mkdir()
    save_weights(path, model, metadata)
    return path


@pytest.fixture
def data(tmp_path: Path, paint_classes: Callable[..., Path]) -> Path:
    return paint_classes(tmp_path / "data", per_class=10)


def test_importance_is_printed_and_written(
    vitesse: Callable[..., Any], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ("analyze", "importance", checkpoint, "--data", data, "--cut", "30", "--limit", "12")
    done = vitesse(*asked, "--json", "--out", out)
    assert done.code == 0, done.err
    assert "12 pictures, labels of the data\n" in done.err
    assert {record["kind"] for record in done.records} == {"q", "k", "v", "ffn", "width"}
    left = sum(record["stay"] for record in done.records)
    total = sum(record["channels"] for record in done.records)
    assert left == total - round(0.3 * total)
    written = json.loads((out / "importance.json").read_text())
    assert len(written["groups"][0]["importances"]) == written["groups"][0]["channels"]
    assert (out / "importance.png").read_bytes().startswith(b"\x89PNG")
    table = vitesse(*asked, "--self")
    assert table.out.splitlines()[0] == "| stay at 30% cut | Q | K | V | FFN hidden | width |"
    assert "stage 2, subsampling" in table.out
    assert "labels of its own" in table.err
    assert (out / "importance.md").read_text().splitlines()[0] == table.out.splitlines()[0]


def test_unreadable_pictures_are_counted(vitesse: Callable[..., Any], checkpoint: Path, data: Path) -> None:
    (data / "red" / "000.png").write_bytes(b"broken")
    done = vitesse("analyze", "importance", checkpoint, "--data", data, "--json")
    assert done.code == 0, done.err
    assert {(record["pictures"], record["refused"]) for record in done.records} == {(29, 1)}
    assert "29 pictures, labels of the data; 1 could not be read and are left out" in done.err


def test_a_model_is_pruned_tuned_and_used_like_any_other(
    vitesse: Callable[..., Any], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small.safetensors"
    recipe = ("--recipe", "finetune", "epochs=1", "batch_size=8", "workers=0", "trackers=[]")
    done = vitesse(
        "prune", checkpoint, *recipe[2:], "--data", data, "--out", out, "--keep", "0.6", *recipe[:2], "--json"
    )
    assert done.code == 0, done.err
    assert "importance and accuracy are of the same pictures" in done.err
    (record,) = done.records
    assert record["after"]["macs"] <= 0.6 * record["before"]["macs"]
    assert record["after"]["params"] < record["before"]["params"]
    assert record["tuned"]["macs"] == record["after"]["macs"]
    spec, metadata = read_checkpoint_header(out)
    assert metadata["class_names"] == ["blue", "green", "red"]
    assert metadata["provenance"]["command"] == "by hand"
    assert metadata["provenance"]["macs"] == record["after"]["macs"]
    assert metadata["provenance"]["pruned"]["keep"] == 0.6
    assert record["spec_file"] == str(tmp_path / "small.json")
    tuned, _ = read_checkpoint_header(record["tuned_checkpoint"])
    assert (tuned.variant, tuned.image_size) == (spec.variant, (32, 32))
    scored = vitesse("evaluate", data, "--model", out, "--engine", "torch", "--json")
    assert scored.records[0]["top1"] == record["after"]["top1"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["analyze", "importance", "CKPT", "--data", "DATA", "--cut", "100"], 2, "--cut: expected per cent"),
        (
            ["analyze", "importance", "CKPT", "--data", "DATA", "--limit", "1"],
            1,
            "2 readable pictures, got 1",
        ),
        (["analyze", "importance", "CKPT", "--data", "none"], 1, "none: no such file or folder"),
        (["analyze", "importance", "bccd", "--data", "DATA"], 2, "this one is bundled as an artefact"),
        (
            ["prune", "efficientvit_m0+no_cascade", "--data", "DATA", "--out", "OUT"],
            2,
            "expected a checkpoint (.safetensors) or a model's name, this one has no published weights",
        ),
        (["analyze", "importance", "a.json", "--data", "DATA"], 2, "this one has no published weights"),
        (["analyze", "importance", "efficientvit_m9", "--data", "DATA"], 2, "did you mean"),
        (["prune", "CKPT", "--data", "DATA", "--out", "OUT", "--keep", "0"], 2, "--keep: expected a share"),
        (
            ["prune", "CKPT", "--data", "DATA", "--out", "OUT", "--of", "heads"],
            2,
            "--of: expected some of ffn",
        ),
        (["prune", "CKPT", "--data", "DATA", "--out", "OUT", "--cost", "ms"], 2, "--cost: expected macs"),
        (["prune", "CKPT", "--data", "DATA", "--out", "a.onnx"], 2, "--out: expected a name ending in"),
    ],
)
def test_bad_requests_are_one_line(
    arguments: list[str],
    code: int,
    message: str,
    vitesse: Callable[..., Any],
    one_error: Callable[..., str],
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    places = {"CKPT": checkpoint, "DATA": data, "OUT": tmp_path / "out.safetensors"}
    done = vitesse(*(places.get(argument, argument) for argument in arguments))
    assert message in one_error(done, code)
