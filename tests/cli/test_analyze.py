"""`vitesse analyze runtime`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vitesse import errors
from vitesse.analyze import roofline, runtime
from vitesse.analyze.roofline import Machine
from vitesse.analyze.subject import find_subject
from vitesse.cli import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(threads=1, flops_per_s=1e11, bytes_per_s=1e10, cache_bytes_per_s=4e10)
    monkeypatch.setattr(runtime, "measure_machine", lambda threads, precision: machine)


def test_an_artefact_is_profiled_by_both_engines(
    make_artefact: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    path, out = str(make_artefact()), tmp_path / "out"
    options = ["--rounds", "2", "--batch-size", "64"]  # OpenVINO counts whole microseconds
    assert run(["analyze", "runtime", path, *options, "--json", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    records = [json.loads(line) for line in printed.out.splitlines()]
    assert [record["engine"] for record in records] == ["onnxruntime", "openvino"]
    for record in records:
        assert 0 < record["memory_bound_share"] <= 1
        assert sum(record["kinds"].values()) == pytest.approx(1, abs=1e-3)
        assert sum(record["modules"].values()) == pytest.approx(1, abs=1e-3)
        assert record["machine"]["ridge_flops_per_byte"] == 10
        assert record["p50_ms"] > 0
        assert record["flops"] > 0
    assert "onnxruntime: no attention or other token mixer found, its share is 0" in printed.err
    written = json.loads((out / "analysis.json").read_text())
    assert [analysis["engine"] for analysis in written["analyses"]] == ["onnxruntime", "openvino"]
    operators = written["analyses"][0]["operators"]
    assert sum(operator["flops"] for operator in operators) == records[0]["flops"]
    assert (out / "analysis.png").read_bytes().startswith(b"\x89PNG")
    assert "bound by memory, by roofline" in (out / "analysis.md").read_text()


def test_a_name_is_profiled_by_torch_and_printed_as_a_table(capsys: Capture) -> None:
    arguments = ["efficientvit_m0", "--image-size", "64", "--engine", "torch", "--rounds", "2"]
    assert run(["analyze", "runtime", *arguments]) == 0
    printed = capsys.readouterr()
    assert "USDT" not in printed.err
    rows = [line.split("|")[1:3] for line in printed.out.splitlines()]
    table = {name.strip(): value.strip() for name, value in rows}
    assert table["share of the time in operators"] == "torch"
    assert float(table["module: mixer"].rstrip("%")) > 10
    assert table["module: other"] == table["kind: other"] == "0.0%"
    assert "GFLOP/s in large products" in printed.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["efficientvit_m9"], 2, "no model is named 'efficientvit_m9'; did you mean"),
        (["efficientvit_m0", "--engine", "tvm"], 2, "--engine: expected of onnxruntime, openvino, torch"),
        (["efficientvit_m0", "--engine", "torch-compile"], 2, "--engine: expected of"),
        (
            ["FILE", "--engine", "torch"],
            2,
            "--engine torch: expected a name or .safetensors, got an artefact",
        ),
        (["FILE", "--image-size", "64"], 2, "takes 24x32 pixels alone, got 64x64"),
        (["FILE", "--arch", "efficientvit_m0"], 2, "--arch: expected a checkpoint"),
        (["model.pth"], 2, "model.pth: expected .onnx or .safetensors"),
        (["efficientvit_sam_l0"], 2, "got one for prompts"),
        (["efficientvit_m0", "--batch-size", "0"], 2, "--batch-size: expected at least 1, got 0"),
        (["efficientvit_m0", "--rounds", "0"], 2, "--rounds: expected at least 1, got 0"),
        (["none.onnx"], 1, "none.onnx"),
    ],
)
def test_bad_requests_are_one_line(
    arguments: list[str], code: int, message: str, make_artefact: Callable[..., Path], capsys: Capture
) -> None:
    named = [str(make_artefact()) if argument == "FILE" else argument for argument in arguments]
    assert run(["analyze", "runtime", *named]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_missing_extra_is_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, make_artefact: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    real = errors.importlib.import_module

    def without_matplotlib(name: str, package: str | None = None) -> object:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr(errors.importlib, "import_module", without_matplotlib)
    assert run(["analyze", "runtime", str(make_artefact()), "--out", str(tmp_path / "out")]) == 1
    assert "pip install 'vitesse[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [errors.EngineError, errors.ExportError])
def test_an_engine_that_fails_is_listed_beside_those_that_run(
    kind: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    make_artefact: Callable[..., Path],
    capsys: Capture,
) -> None:
    def refuse(artefact: object, engine: str, threads: int) -> object:
        if engine == "openvino":
            raise kind("openvino refused the model: too odd")
        return real(artefact, engine, threads)

    real = runtime.started
    monkeypatch.setattr(runtime, "started", refuse)
    assert run(["analyze", "runtime", str(make_artefact()), "--rounds", "1", "--json"]) == 0
    printed = capsys.readouterr()
    good, bad = map(json.loads, printed.out.splitlines())
    assert good["error"] is None
    assert (bad["engine"], bad["memory_bound_share"]) == ("openvino", None)
    assert "openvino: failed: openvino refused the model: too odd" in printed.err
    assert run(["analyze", "runtime", str(make_artefact()), "--rounds", "1", "--engine", "openvino"]) == 1
    assert "no engine runs it: openvino refused the model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "side"), [("timm:vit_tiny_patch16_384", 384), ("timm:mobilevit_xxs", 256), ("shvit_s4", 256)]
)
def test_a_name_is_taken_at_the_model_s_own_size(name: str, side: int) -> None:
    assert find_subject(name).spec.image_size == (side, side)
    assert find_subject(name, (128, 192)).spec.image_size == (128, 192)


def test_the_roof_is_not_a_secret(capsys: Capture, make_artefact: Callable[..., Path]) -> None:
    assert run(["analyze", "runtime", str(make_artefact()), "--rounds", "1", "--engine", "onnxruntime"]) == 0
    assert "roof with 1 thread: 100 GFLOP/s" in capsys.readouterr().err
    assert roofline.Machine(threads=2, flops_per_s=8, bytes_per_s=4, cache_bytes_per_s=4).ridge == 2
