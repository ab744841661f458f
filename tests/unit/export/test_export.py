"""Export: an artefact that both engines run as torch does, with its proof inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import vitesse.export.artefact as exporting
from vitesse.errors import ConfigError, DataError, ExportError
from vitesse.export import export, fold
from vitesse.export.onnx import to_onnx, write_artefact
from vitesse.models import build
from vitesse.runtime.artefact import read_artefact
from vitesse.runtime.engines import available_engines, create_engine
from vitesse.spec import Manifest, ModelSpec, PreprocessSpec, to_mapping
from vitesse.weights.files import save_weights

Randomise = Callable[..., nn.Module]
CLASSES = ("blue", "green", "red")


@pytest.fixture
def checkpoint(tmp_path: Path, randomise: Randomise) -> Path:
    spec = ModelSpec(name="efficientvit_m0", image_size=(32, 48), num_classes=3)
    preprocess = PreprocessSpec(image_size=(32, 48))
    metadata = {"class_names": list(CLASSES), "preprocess": to_mapping(preprocess), "provenance": {"seed": 3}}
    save_weights(tmp_path / "model.safetensors", randomise(build(spec)), metadata)
    return tmp_path / "model.safetensors"


def test_the_artefact_carries_what_inference_needs_and_its_proof(
    checkpoint: Path, tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    data = paint_classes(tmp_path / "data", per_class=15)
    written = export(checkpoint, tmp_path / "m.onnx", data=data, trained_on="colours", licence="CC0-1.0")
    manifest = read_artefact(tmp_path / "m.onnx").manifest
    assert manifest.class_names == CLASSES
    assert manifest.preprocess == PreprocessSpec(image_size=(32, 48))
    assert (manifest.trained_on, manifest.licence, manifest.provenance) == ("colours", "CC0-1.0", {"seed": 3})
    assert set(available_engines()) == {"onnxruntime", "openvino"}
    assert manifest.parity is not None
    assert manifest.parity["images"] == 32
    assert max(manifest.parity[name] for name in available_engines()) <= 1e-4
    assert manifest.accuracy is not None
    assert manifest.accuracy["images"] == 45
    assert written.manifest == manifest
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(f"efficientvit_m{index}" for index in range(6)),
        "shvit_s1",
        "shvit_s4",
        "efficientvit_b0",
        "efficientvit_b0_single_scale",
        "efficientvit_l0",
        "vit_tiny_patch16",
    ],
)
def test_both_engines_give_torchs_logits(name: str, tmp_path: Path, randomise: Randomise) -> None:
    spec = ModelSpec(name=name)
    model = randomise(build(spec)).eval()
    classes = tuple(map(str, range(1000)))
    manifest = Manifest(model=spec, class_names=classes, preprocess=PreprocessSpec())
    write_artefact(to_onnx(fold(model), spec), manifest, tmp_path / "m.onnx")
    artefact = read_artefact(tmp_path / "m.onnx")
    x_BCHW = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x_BCHW).numpy()
    for engine in ("onnxruntime", "openvino"):
        for count in (1, 3):
            logits_BK = create_engine(artefact, engine).run(x_BCHW[:count].numpy())[0]
            assert np.abs(logits_BK - expected[:count]).max() <= 1e-4, engine


def test_without_data_parity_is_proven_on_noise_and_no_accuracy_is_claimed(
    checkpoint: Path, tmp_path: Path
) -> None:
    export(checkpoint, tmp_path / "m.onnx")
    manifest = read_artefact(tmp_path / "m.onnx").manifest
    assert manifest.accuracy is None
    assert manifest.parity is not None


def test_a_file_that_disagrees_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folding is broken on purpose: the old artefact must stay."""
    (tmp_path / "m.onnx").write_bytes(b"the last good file")
    monkeypatch.setattr(exporting, "fold", lambda model: _nudged(fold(model)))
    with pytest.raises(ExportError, match=r"the logits differ from torch by .*nothing was written"):
        export(checkpoint, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"the last good file"


def _nudged(model: nn.Module) -> nn.Module:
    next(iter(model.parameters())).data += 1.0
    return model


def test_wrong_requests_are_refused(
    checkpoint: Path, tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=r"ending in \.onnx"):
        export(checkpoint, tmp_path / "m.bin")
    with pytest.raises(DataError, match="no such file"):
        export(checkpoint, tmp_path / "m.onnx", data=tmp_path / "absent")
    data = paint_classes(tmp_path / "data", per_class=2)
    (data / "white").mkdir()
    (data / "white" / "0.png").write_bytes((data / "red" / "000.png").read_bytes())
    with pytest.raises(DataError, match="the model has 3 classes, the data has label 3"):
        export(checkpoint, tmp_path / "m.onnx", data=data)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("model", "advice"),
    [("timm:resnet18", "vitesse train"), ("a.pth", "vitesse convert"), ("a.onnx", "what it was made from")],
)
def test_what_is_not_ours_is_told_its_way(model: str, advice: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{model}: expected a checkpoint .*{advice}"):
        export(model, tmp_path / "m.onnx")
