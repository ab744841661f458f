"""Segmentation models as artefacts: classes and logits on both engines, of one size or any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vitesse.export.artefact as exporting
from vitesse.cli import run
from vitesse.errors import ConfigError, ExportError
from vitesse.export import export, fold
from vitesse.export.onnx import OUTPUTS
from vitesse.export.verify import parity
from vitesse.models import Backbone
from vitesse.models.efficientvit_mit import CONFIGS
from vitesse.models.engine import TorchEngine
from vitesse.runtime.artefact import Artefact, read_artefact
from vitesse.runtime.engines import create_engine

NAME, SIZE = "efficientvit_seg_b0_cityscapes", (64, 96)
ENGINES = pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])


@pytest.fixture(scope="module", autouse=True)
def a_shallow_b0() -> Iterator[None]:
    """The same code in a backbone that is traced in half the time."""
    with pytest.MonkeyPatch.context() as patch:
        shallow = replace(CONFIGS["efficientvit_b0"], depths=(1, 1, 1, 1, 1))
        patch.setitem(CONFIGS, "efficientvit_b0", shallow)
        yield


@pytest.fixture(scope="module")
def model(settled: Callable[..., Any]) -> nn.Module:
    """Of three classes, each the largest somewhere, with logits of about 1."""
    model = settled(NAME, SIZE)
    classifier = model.head.classifier
    nn.init.normal_(classifier.weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits_BKhw = model(pictures(8, SIZE))
        classifier.bias -= logits_BKhw.mean((0, 2, 3))
        for parameter in classifier.parameters():
            parameter /= logits_BKhw.std()
    return model


@pytest.fixture(scope="module")
def artefact(
    model: Backbone, saved: Callable[[Backbone], Path], tmp_path_factory: pytest.TempPathFactory
) -> Artefact:
    return export(saved(model), tmp_path_factory.mktemp("seg") / "m.onnx")


def pictures(count: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


def check(artefact: Artefact, model: nn.Module, engine: str, x_BCHW: torch.Tensor) -> None:
    """Logits are the model's; classes those of its logits enlarged by torch, at the size of the pictures."""
    with torch.no_grad():
        logits_BKhw = model(x_BCHW)
    classes_BHW, found_BKhw = create_engine(artefact, engine).run(x_BCHW.numpy())
    assert np.abs(found_BKhw - logits_BKhw.numpy()).max() <= 1e-4 * max(1, logits_BKhw.abs().max())
    enlarged_BKHW = F.interpolate(logits_BKhw, scale_factor=8, mode="bicubic")
    height, width = x_BCHW.shape[2:]
    expected_BHW = enlarged_BKHW.argmax(1)[:, :height, :width]
    assert classes_BHW.shape == expected_BHW.shape
    assert classes_BHW.dtype == np.int32
    assert (classes_BHW == expected_BHW.numpy()).mean() > 0.999
    assert np.unique(classes_BHW, return_counts=True)[1].min() > classes_BHW.size / 100, (
        "every class somewhere"
    )


@ENGINES
@pytest.mark.parametrize("count", [1, 3])
def test_both_engines_give_torch_s_classes_and_logits(
    artefact: Artefact, model: nn.Module, engine: str, count: int
) -> None:
    check(artefact, model, engine, pictures(count, SIZE))


def test_the_manifest_says_what_the_outputs_are_and_how_equal(artefact: Artefact) -> None:
    manifest, proto = artefact.manifest, onnx.load(artefact.path)
    assert manifest.task == "segment"
    assert manifest.parity is not None
    assert manifest.parity["images"] == 4
    assert manifest.parity["equal_pixels"] > 0.999
    assert max(manifest.parity[engine] for engine in ("onnxruntime", "openvino")) < 1e-4
    assert tuple(output.name for output in proto.graph.output) == OUTPUTS["segment"]
    operators = {node.op_type for node in proto.graph.node}
    assert not operators & {"Resize", "BatchNormalization", "GatherND", "If", "Loop"}
    onnx.checker.check_model(proto, full_check=True)


@pytest.fixture(scope="module")
def any_size(
    model: Backbone, saved: Callable[[Backbone], Path], tmp_path_factory: pytest.TempPathFactory
) -> Artefact:
    return export(saved(model), tmp_path_factory.mktemp("any") / "m.onnx", dynamic_size=True)


@ENGINES
@pytest.mark.parametrize("size", [(64, 96), (160, 96), (75, 101)])
def test_a_file_for_any_size(
    any_size: Artefact, model: nn.Module, engine: str, size: tuple[int, int]
) -> None:
    check(any_size.at_size(size), model, engine, pictures(2, size))


def test_a_folded_model_enlarges_without_resizing(model: nn.Module) -> None:
    folded, x_BCHW = fold(model), pictures(2, (81, 100))
    assert "MatrixUpsample" in repr(folded)
    with torch.no_grad():
        expected = model(x_BCHW)
        assert (folded(x_BCHW) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


def test_torch_as_an_engine_gives_the_same_outputs(model: nn.Module, artefact: Artefact) -> None:
    x_BCHW = pictures(2, SIZE).numpy()
    classes_BHW, logits_BKhw = TorchEngine(model).run(x_BCHW)
    assert (classes_BHW.dtype, logits_BKhw.dtype) == (np.int32, np.float32)
    assert (classes_BHW == create_engine(artefact, "onnxruntime").run(x_BCHW)[0]).mean() > 0.999


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda classes, logits: (classes, logits + 1), r"the logits differ from torch by 1\.00e\+00"),
        (
            lambda classes, logits: (classes * 0, logits),
            r"of the pixels have torch's class, expected at least 99\.9%",
        ),
    ],
)
def test_a_file_that_disagrees_is_refused(
    harm: Any, complaint: str, artefact: Artefact, model: nn.Module
) -> None:
    class Harmed(nn.Module):
        def forward(self, x_BCHW: torch.Tensor) -> Any:
            return harm(*model.deployed()(x_BCHW))  # type: ignore[operator]

    with pytest.raises(ExportError, match=f"onnxruntime .*{complaint}.*nothing was written"):
        parity(artefact, Harmed(), pictures(2, SIZE).numpy())


def test_what_is_for_classifiers_is_refused(
    model: Backbone, saved: Callable[[Backbone], Path], tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"^--format: expected a model to classify, got one of the task segment"
    ):
        export(saved(model), tmp_path / "m.onnx", formats=["openvino"])


def test_the_command_says_how_equal_the_pixels_are(
    model: Backbone,
    saved: Callable[[Backbone], Path],
    artefact: Artefact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(exporting, "to_onnx", lambda *_, **__: onnx.load(artefact.path))
    assert run(["export", str(saved(model)), "--out", str(tmp_path / "m.onnx"), "--precision", "fp16"]) == 0
    out = capsys.readouterr().out
    assert "pixels with torch's class: " in out
    assert "onnxruntime" in out
    assert read_artefact(tmp_path / "m.onnx").manifest.precision == "fp16"
