"""Files for other runtimes: beside the artefact, the same function, each with a sidecar that proves it."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import vitesse.export.artefact as exporting
from vitesse import cli
from vitesse.errors import ConfigError, ExportError, MissingExtraError
from vitesse.export import coreml, executorch, export, fold, targets
from vitesse.export.quantize import quantize
from vitesse.models import Backbone
from vitesse.runtime.artefact import Artefact, read_artefact
from vitesse.runtime.engines import openvino_core
from vitesse.spec import ModelSpec

EVERY = ("openvino", "executorch", "coreml")
SLOW = pytest.mark.slow
"""The lowering to ExecuTorch alone takes ten seconds; all tests share one."""


@pytest.fixture(scope="module")
def printed(
    b0_checkpoint: Path, b0_graph: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What `vitesse export --json` says after it wrote every kind of file."""
    out, stdout = tmp_path_factory.mktemp("targets") / "b0.onnx", io.StringIO()
    options = ["--out", str(out), "--format", "onnx, openvino,executorch,coreml", "--json"]
    with contextlib.redirect_stdout(stdout), pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "to_onnx", lambda *_, **__: copy.deepcopy(b0_graph))
        assert cli.run(["export", str(b0_checkpoint), *options]) == 0
    return json.loads(stdout.getvalue())


@pytest.fixture(scope="module")
def out(printed: dict[str, Any]) -> Path:
    return Path(printed["out"])


def sidecar(out: Path, name: str) -> dict[str, Any]:
    return json.loads(targets.sidecar_of(out, name).read_text())


def pictures(count: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 3, *size), np.float32)


@SLOW
def test_every_file_lies_beside_the_artefact_and_nothing_else_does(out: Path) -> None:
    files = {"b0.onnx", "b0.xml", "b0.bin", "b0.pte", "b0.mlpackage"}
    sidecars = {"b0.xml.json", "b0.pte.json", "b0.mlpackage.json"}
    assert {path.name for path in out.parent.iterdir()} == files | sidecars


@SLOW
@pytest.mark.parametrize("name", EVERY)
def test_a_sidecar_holds_the_manifest_and_the_hash_of_each_file(out: Path, name: str) -> None:
    record = sidecar(out, name)
    assert record["format"] == name
    assert record["manifest"] == read_artefact(out).manifest.to_dict()
    package = [path for path in (out.parent / "b0.mlpackage").rglob("*") if path.is_file()]
    files = {"openvino": ["b0.xml", "b0.bin"], "executorch": ["b0.pte"], "coreml": package}[name]
    hashes = {path: hashlib.sha256((out.parent / path).read_bytes()).hexdigest() for path in files}
    assert record["files"] == {
        Path(out.parent / path).relative_to(out.parent).as_posix(): value for path, value in hashes.items()
    }


@SLOW
def test_a_sidecar_says_what_was_proven(out: Path) -> None:
    for name in ("openvino", "executorch"):
        assert sidecar(out, name)["parity"]["images"] == 32
        assert sidecar(out, name)["parity"][name] <= 1e-4
    program = sidecar(out, "executorch")
    assert 0.9 <= program["delegated"] < 1
    assert {"aten.native_layer_norm.default", "aten.sum.dim_IntList"} <= set(program["not_delegated"])
    assert all(len(name) < 50 for name in program["not_delegated"])
    package = sidecar(out, "coreml")
    assert "parity" not in package, "nothing here runs it"
    assert package["operators"]["conv"] == 50


@SLOW
def test_openvino_runs_its_files_as_torch_does(out: Path, b0: Backbone) -> None:
    compiled = openvino_core().compile_model(
        out.with_suffix(".xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for count in (1, 3):
        x_BCHW = pictures(count, b0.spec.image_size)
        with torch.no_grad():
            expected_BK = b0(torch.from_numpy(x_BCHW)).numpy()
        assert np.abs(compiled(x_BCHW)[0] - expected_BK).max() <= 1e-4


@SLOW
@torch.no_grad()
def test_executorch_runs_its_program_as_torch_does(out: Path, b0: Backbone) -> None:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(out.with_suffix(".pte")).load_method("forward")
    for x_CHW in torch.from_numpy(pictures(2, b0.spec.image_size)):
        (found_1K,) = method.execute([x_CHW[None]])
        assert (found_1K - b0(x_CHW[None])).abs().max() <= 1e-4


@SLOW
def test_a_core_ml_package_of_another_model_is_refused(out: Path, b0: Backbone) -> None:
    package = out.with_suffix(".mlpackage")
    assert coreml.checked(package, b0.spec) == {"operators": sidecar(out, "coreml")["operators"]}
    for other in ({"image_size": (96, 64)}, {"num_classes": 4}, {"in_chans": 1}):
        with pytest.raises(ExportError, match=r"b0\.mlpackage: expected .* what was written has "):
            coreml.checked(package, replace(b0.spec, **other))


@SLOW
def test_the_command_tells_of_each_as_json(out: Path, printed: dict[str, Any]) -> None:
    assert [target["format"] for target in printed["targets"]] == list(EVERY)
    paths = [str(out.with_suffix(suffix)) for suffix in (".xml", ".pte", ".mlpackage")]
    assert [target["out"] for target in printed["targets"]] == paths
    assert not any("manifest" in target for target in printed["targets"])


@SLOW
def test_the_command_prints_a_line_for_each(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def exported(*_: object, **options: Any) -> Artefact:
        given.update(options)
        return read_artefact(out)

    monkeypatch.setattr(sys.modules["vitesse.export"], "export", exported)
    arguments = ["m.safetensors", "--out", str(out), "--format", "coreml,openvino, executorch", "--force"]
    assert cli.run(["export", *arguments]) == 0
    assert (given["formats"], given["force"]) == (["coreml", "openvino", "executorch"], True)
    first, _, package, files, program = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out}: ")
    assert re.match(rf"{out.with_suffix('.mlpackage')}: \d+ operators, checked but not run", package)
    assert re.match(rf"{out.with_suffix('.xml')}: .* run by openvino: \d\.\de[-+]\d\d$", files)
    told = r"9\d% of the operators in XNNPACK; .* run by executorch: \d\.\de-\d\d$"
    assert re.match(rf"{out.with_suffix('.pte')}: {told}", program)


@SLOW
def test_a_program_mostly_outside_its_delegate_is_refused_unless_forced(tmp_path: Path) -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            return self.conv(x_BCHW).cumsum(2).cumsum(3).mean((2, 3))

    model, spec = Outside().eval(), ModelSpec(name="outside", image_size=(8, 8), num_classes=4)
    path = tmp_path / "m.pte"
    told = r"^outside: XNNPACK takes 60% .* left are aten\.cumsum\.default; nothing was written, --force"
    with pytest.raises(ExportError, match=told):
        executorch.write(model, spec, path)
    assert not path.exists()
    assert executorch.write(model, spec, path, force=True)["delegated"] == 0.6
    x_BCHW = pictures(2, (8, 8))
    with torch.no_grad():
        np.testing.assert_allclose(executorch.run(path, x_BCHW), model(torch.from_numpy(x_BCHW)), atol=1e-4)


@SLOW
def test_what_no_kernel_here_can_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.pte").write_bytes(b"no program")
    with pytest.raises(ExportError, match=r"^m\.pte: ExecuTorch cannot run it here: \S"):
        executorch.run(tmp_path / "m.pte", pictures(1, (8, 8)))


def test_core_ml_in_half_precision_is_half_as_large(tmp_path: Path) -> None:
    model, spec = (
        nn.Sequential(nn.Conv2d(3, 400, 8), nn.Flatten()),
        ModelSpec(name="m", image_size=(8, 8), num_classes=400),
    )
    sizes = {}
    for precision in ("fp32", "fp16"):
        coreml.write(model, spec, tmp_path / f"{precision}.mlpackage", precision=precision)
        sizes[precision] = sum(
            path.stat().st_size for path in (tmp_path / f"{precision}.mlpackage").rglob("*") if path.is_file()
        )
    assert sizes["fp16"] < 0.55 * sizes["fp32"]


@SLOW
@pytest.mark.usefixtures("traced_before")
def test_nothing_is_left_where_one_target_is_refused_and_not_forced(
    out: Path, b0_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(model: nn.Module, spec: ModelSpec, path: Path, *, force: bool) -> dict[str, Any]:
        if not force:
            raise ExportError("XNNPACK takes 10% of the operators")
        path.write_bytes(out.with_suffix(".pte").read_bytes())
        return {"delegated": 0.1}

    monkeypatch.setattr(executorch, "write", write)
    (tmp_path / "b0.onnx").write_bytes(b"the last good file")
    with pytest.raises(ExportError, match="XNNPACK takes"):
        export(b0_checkpoint, tmp_path / "b0.onnx", formats=["openvino", "executorch"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"b0.onnx": b"the last good file"}
    export(b0_checkpoint, tmp_path / "b0.onnx", formats=["executorch"], force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"b0.onnx", "b0.pte", "b0.pte.json"}
    assert sidecar(tmp_path / "b0.onnx", "executorch")["delegated"] == 0.1


@pytest.mark.usefixtures("traced_before")
def test_files_that_disagree_are_not_written(
    b0_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nudge(proto: onnx.ModelProto, path: Path, **options: Any) -> None:
        (last,) = (
            tensor for tensor in proto.graph.initializer if tensor.name == proto.graph.node[-1].input[1]
        )
        last.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(last) + 0.01, last.name))
        write(proto, path, **options)

    write = targets.openvino.write
    monkeypatch.setattr(targets.openvino, "write", nudge)
    with pytest.raises(ExportError, match=r"m\.xml: its logits differ from the artefact's by .*nothing was"):
        export(b0_checkpoint, tmp_path / "m.onnx", formats=["openvino"])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("traced_before")
def test_openvinos_files_hold_the_artefacts_precision(
    b0: Backbone, b0_checkpoint: Path, b0_graph: onnx.ModelProto, tmp_path: Path
) -> None:
    whole = export(b0_checkpoint, tmp_path / "fp32.onnx", formats=["openvino"])
    export(b0_checkpoint, tmp_path / "fp16.onnx", formats=["openvino"], precision="fp16")
    x_BCHW = pictures(8, b0.spec.image_size)
    int8 = quantize(b0_graph, x_BCHW)
    (tmp_path / "int8").mkdir()
    drafted = replace(whole, path=tmp_path / "int8.onnx", manifest=replace(whole.manifest, precision="int8"))
    drafted = replace(drafted, data=int8.SerializeToString(), sha256="8")
    targets.write_target(
        "openvino", tmp_path, model=fold(b0), proto=int8, artefact=drafted, images_BCHW=x_BCHW
    )
    sizes = {name: (tmp_path / f"{name}.bin").stat().st_size for name in ("fp32", "fp16", "int8")}
    assert sizes["fp16"] < 0.55 * sizes["fp32"]
    assert sizes["int8"] < 0.40 * sizes["fp32"]
    records = {name: sidecar(tmp_path / f"{name}.onnx", "openvino") for name in sizes}
    assert {name: record["manifest"]["precision"] for name, record in records.items()} == {
        name: name for name in sizes
    }
    assert all(record["parity"]["openvino"] <= 1e-2 for record in records.values())


@pytest.mark.usefixtures("traced_before")
def test_weights_are_found_whatever_the_files_name(b0_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "b0 [1].v2*.onnx"
    export(b0_checkpoint, out, formats=["openvino"])
    names = {out.name, "b0 [1].v2*.xml", "b0 [1].v2*.bin", "b0 [1].v2*.xml.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert set(sidecar(out, "openvino")["files"]) == {"b0 [1].v2*.xml", "b0 [1].v2*.bin"}


def test_a_package_replaces_an_older_one_whole(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        (folder / "m.mlpackage").mkdir(parents=True)
        (folder / "m.mlpackage" / folder.name).write_text(folder.name)
    (new / "m.mlpackage.json").write_text("{}")
    assert targets.install(new / "m.mlpackage.json", old) == old / "m.mlpackage.json"
    assert [path.name for path in (old / "m.mlpackage").iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("formats", "precision", "message"),
    [
        (["tflite"], "fp32", r"--format: expected of onnx, openvino, executorch, coreml, got 'tflite'"),
        (["openvino", ""], "fp32", "got ''"),
        (["executorch"], "fp16", "--format executorch: expected --precision fp32, got fp16"),
        (["openvino", "coreml"], "int8", "--format coreml: expected --precision fp32 or fp16, got int8"),
    ],
)
def test_formats_are_refused_before_any_work(formats: list[str], precision: str, message: str) -> None:
    """The checkpoint, which is not there, is not even opened."""
    calibrate = "photos" if precision == "int8" else None
    with pytest.raises(ConfigError, match=message):
        export("absent.safetensors", "m.onnx", formats=formats, precision=precision, calibrate=calibrate)


@pytest.mark.parametrize(
    ("name", "package"), [("openvino", "openvino"), ("executorch", "executorch"), ("coreml", "coremltools")]
)
def test_a_missing_package_is_named_before_any_work(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    told = rf"^this needs {package}, which is not installed: pip install 'vitesse\[{name}\]'$"
    with pytest.raises(MissingExtraError, match=told):
        export("absent.safetensors", "m.onnx", formats=[name])


def test_the_command_refuses_an_unknown_format_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["export", "absent.safetensors", "--out", "m.onnx", "--format", "onnx,tflite"]) == 2
    assert capsys.readouterr().err == (
        "error: --format: expected of onnx, openvino, executorch, coreml, got 'tflite'\n"
    )


def test_programs_of_one_picture_refuse_groups():
    targets.check_groups(["openvino"], 4)
    targets.check_groups(EVERY, 1)
    with pytest.raises(
        ConfigError, match="--format coreml: takes one picture at a time, this model groups of 4;"
    ):
        targets.check_groups(["openvino", "coreml"], 4)
