"""The other verbs: what they print, what they refuse, which flags they have."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main

import vitesse.cli
from vitesse.cli import app, run
from vitesse.errors import ExportError
from vitesse.runtime.artefact import Artefact

Capture = pytest.CaptureFixture[str]

FLAGS = {
    "predict": "--arch --batch-size --engine --ensemble --image-size --json --max-bytes --max-pixels "
    "--min-score --model --overlap --save --streams --threads --tile --top-k",
    "segment": "--box --engine --json --max-bytes --max-pixels --model --multimask --point --save --threads",
    "train": "--export --json --model --out --ray --ray-workers --recipe --strict",
    "evaluate": "--arch --batch-size --engine --ensemble --image-size --json --labels --limit --model "
    "--overlap --split --threads --tile",
    "export": "--arch --calibrate --data --dynamic-size --force --format --json --licence --out --precision "
    "--split --trained-on",
    "bench": "--batch-size --data --engine --goal --json --out --peers --precision --rounds --stage "
    "--threads",
    "analyze runtime": "--arch --batch-size --engine --image-size --json --out --rounds --threads",
    "analyze heads": "--arch --batch-size --data --json --limit --out --split",
    "search": "--batch-size --confirm --data --device --engine --family --floor --image-size --json "
    "--max-latency --max-macs --out --recipe --samples --seed --threads --trials",
    "analyze importance": "--arch --batch-size --cut --data --image-size --json --limit --out --self --split",
    "prune": "--arch --batch-size --cost --data --json --keep --limit --of --out --recipe --split",
    "models": "--family --json --max-macs --max-params --min-top1 --pretrained --task --weights",
    "convert": "--image-size --json --model --num-classes --out --to",
    "push": "--dry-run --json --private --to",
    "doctor": "--json",
}


def verbs_of(command: Any, prefix: str = "") -> dict[str, Any]:
    """Every verb with its command; `analyze` has verbs of its own."""
    found = {}
    for name, inner in command.commands.items():
        found |= verbs_of(inner, f"{prefix}{name} ") if hasattr(inner, "commands") else {prefix + name: inner}
    return found


def flags_of(command: Any) -> set[str]:
    options = [parameter.opts for parameter in command.params]
    return {name for names in options for name in names if name.startswith("--")}


def test_verbs_and_their_flags_change_only_on_purpose() -> None:
    verbs = verbs_of(typer.main.get_command(app))
    assert {verb: " ".join(sorted(flags_of(command))) for verb, command in verbs.items()} == FLAGS


@pytest.mark.parametrize("verb", FLAGS)
def test_help_has_examples(verb: str, capsys: Capture) -> None:
    assert run([*verb.split(), "--help"]) == 0
    assert f"vitesse {verb}" in capsys.readouterr().out.partition("Examples:")[2]


def test_the_version_is_the_packages(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"vitesse {vitesse.__version__}\n"
    assert run([]) == 2
    assert "predict" in capsys.readouterr().err
    assert run(["predct"]) == 2
    assert "predict" in capsys.readouterr().err


def test_models_are_listed_as_table_and_as_json(capsys: Capture) -> None:
    assert run(["models", "--json"]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert len(rows) == 142
    wanted = {"name", "family", "params", "macs", "image_size", "top1", "source", "weights", "bundled"}
    wanted |= {"task", "num_classes", "dataset", "miou", "pickle"}
    assert all(wanted <= row.keys() for row in rows.values())
    assert (rows["efficientvit_m5"]["params"], rows["efficientvit_m5"]["top1"]) == (12_473_772, 0.771)
    assert rows["efficientvit_l0"]["top1"] is None
    assert [w["hub_id"] for w in rows["shvit_s1"]["weights"]] == ["timm/shvit_s1.in1k"]
    assert run(["models", "*_m5"]) == 0
    assert "12.5" in capsys.readouterr().out
    assert run(["models", "concatplexer_tiny_n2"]) == 0
    assert "published" not in capsys.readouterr().out
    assert run(["models", "nothing*"]) == 1
    assert "leave one out" in capsys.readouterr().err


def test_models_are_listed_by_task(capsys: Capture) -> None:
    assert run(["models", "*_b1*", "--max-params", "9.2"]) == 0
    classifiers, *others = capsys.readouterr().out.split("\n\n")
    assert "top-1 %" in classifiers
    segmenters, detectors = sorted(others, key=lambda text: "AP %" in text)
    assert "fcos_e2e_efficientvit_b1" in detectors
    assert "mIoU: Cityscapes and ADE20K validation" in segmenters
    assert run(["models", "*_b1_*", "--task", "segment"]) == 0
    header, cityscapes, ade20k, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["mIoU", "%"]
    assert cityscapes.split()[-4:] == ["4.8", "25095", "1024x2048", "80.5"]
    assert ade20k.split()[-4:] == ["4.8", "3089", "512x512", "42.8"]


def test_models_are_filtered_in_millions_and_per_cent(capsys: Capture) -> None:
    assert run(["models", "--max-params", "10", "--max-macs", "600", "--min-top1", "75", "--json"]) == 0
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == ["efficientvit_b1"]
    assert run(["models", "--min-top1", "0.75"]) == 2
    assert "per cent, such as 75, got 0.75" in capsys.readouterr().err
    assert run(["models", "efficientvit_b1", "--weights"]) == 0
    out = capsys.readouterr().out
    assert out.count("timm/efficientvit_b1.r") == 3
    assert max(map(len, out.splitlines())) <= 110


def test_doctor_reports_what_a_bug_report_needs(capsys: Capture) -> None:
    assert run(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"versions", "cpu", "engines", "extras", "bundled", "cache", "ok"} <= report.keys()
    assert report["engines"]["onnxruntime"]["ok"] is True
    assert report["versions"]["numpy"]
    assert report["extras"]["demo"] == {
        "installed": True,
        "missing": [],
        "install": "pip install 'vitesse[demo]'",
    }


def test_evaluate_prints_fractions(
    make_artefact: Callable[..., Path], tmp_path: Path, paint_classes: Callable[..., Path], capsys: Capture
) -> None:
    data = paint_classes(tmp_path, per_class=4)
    (data / "red" / "000.png").write_bytes(b"broken")
    names = ["blue", "green", "red", *(f"class {index}" for index in range(3, 10))]
    arguments = [
        "evaluate",
        str(data),
        "--model",
        str(make_artefact({"class_names": names})),
        "--engine",
        "onnxruntime",
        "--json",
    ]
    assert run(arguments) == 3
    scores = json.loads(capsys.readouterr().out)
    assert {"top1", "top5", "images", "refused", "engine", "model", "precision"} <= scores.keys()
    assert (scores["images"], scores["refused"]) == (11, 1)
    assert 0 <= scores["top1"] <= scores["top5"] <= 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evaluate", "{tmp}/absent"], 1, "no such file or folder"),
        (
            ["train", "{tmp}", "--model", "efficientvit_m0", "--out", "{tmp}/o", "epoch=3"],
            2,
            "did you mean epochs",
        ),
        (["train", "{tmp}", "--model", "efficientvit_m0", "--out", "{tmp}/o"], 1, "expected class folders"),
        (["train", "{tmp}", "--recipe", "finetun", "--out", "{tmp}/o"], 2, "did you mean finetune"),
        (["predict", "{tmp}/a.jpg", "--tile", "64"], 2, "tile: expected a detector or segmenter"),
        (["predict", "{tmp}/a.jpg", "--tile", "8", "--model", "bccd"], 2, "at least 16 pixels, got 8x8"),
        (["evaluate", "{tmp}", "--tile", "a"], 2, "--tile: expected pixels such as 384, or 384x512"),
        (["export", "efficientvit_m77", "--out", "{tmp}/m.onnx"], 2, "did you mean efficientvit_m"),
        (["export", "{tmp}/absent.safetensors", "--out", "{tmp}/m.onnx"], 1, "absent.safetensors"),
        (
            ["convert", "{tmp}/absent.pth", "--model", "efficientvit_m0", "--out", "{tmp}/w.safetensors"],
            1,
            "absent.pth",
        ),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path, capsys: Capture, arguments: list[str], code: int, message: str
) -> None:
    assert run([text.format(tmp=tmp_path) for text in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_missing_extra_names_its_install_command(
    tiny_artefact: Artefact, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    picture = str(Path(__file__).parent / "x.jpg")
    assert run(["predict", picture, "--model", str(tiny_artefact.path), "--engine", "openvino"]) == 1
    assert "pip install 'vitesse[openvino]'" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITESSE_DEBUG", "1")
    assert run(["evaluate", str(tmp_path / "absent")]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_one_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitesse.evaluate.evaluate", interrupt)
    assert run(["evaluate", "x"]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith("interrupted")


def test_what_shipping_takes_is_asked_for_before_training(
    vitesse: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    monkeypatch.setattr("vitesse.train.train", lambda *a, **_: trained.append(a))
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    done = vitesse("train", str(tmp_path), "--model", "efficientvit_m0", "--export", "fp32")
    assert (done.code, trained) == (1, [])
    assert "needs onnxslim, which is not installed: pip install 'vitesse[export]'" in done.err


def test_a_refused_int8_leaves_fp32_and_fails(
    vitesse: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ship(result: Any, folder: Path, precision: str = "fp32") -> SimpleNamespace:
        if precision != "fp32":
            raise ExportError("int8 is slower")
        return SimpleNamespace(path=folder / "model.onnx")

    scores = SimpleNamespace(to_dict=dict, refused=0)
    result = SimpleNamespace(scores=scores, checkpoint="w", report="r", refused=())
    monkeypatch.setattr("vitesse.train.train", lambda *_, **__: result)
    monkeypatch.setattr("vitesse.ship.ship", ship)
    out = tmp_path / "run"
    options = ("--model", "efficientvit_m0", "--out", str(out), "--export", "int8", "--json")
    done = vitesse("train", str(tmp_path), *options)
    assert done.code == 1
    assert done.err == "error: int8 is slower; fp32 is written instead\n"
    assert done.records[0]["artefact"] == str(out / "model.onnx")
