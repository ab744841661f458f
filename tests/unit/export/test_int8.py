"""int8 files are written when they are worth it, on pictures that a model really learned."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vitesse.export.artefact as exporting
import vitesse.export.int8 as int8
from vitesse.data.sources import open_source
from vitesse.errors import ConfigError, DataError, ExportError
from vitesse.evaluate import evaluate
from vitesse.export import export
from vitesse.export.onnx import to_onnx
from vitesse.models import build
from vitesse.runtime.artefact import read_artefact
from vitesse.runtime.imaging import load_tensor
from vitesse.spec import ModelSpec, PreprocessSpec, to_mapping
from vitesse.weights import save_weights

SIDE = 64


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, paint_classes: Callable[..., Path]) -> Path:
    return paint_classes(tmp_path_factory.mktemp("photos"), per_class=30, size=SIDE)


@pytest.fixture(scope="module")
def checkpoint(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tells red, green and blue apart."""
    source, preprocess = open_source(photos), PreprocessSpec(image_size=(SIDE, SIDE))
    x_NCHW = torch.stack(
        [torch.from_numpy(load_tensor(source.read(i), preprocess)) for i in range(len(source))]
    )
    labels_N = torch.from_numpy(source.labels)
    torch.manual_seed(0)
    model = build(ModelSpec(name="efficientvit_b0", image_size=(SIDE, SIDE), num_classes=3))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(15):
        chosen = torch.randperm(len(source))[:24]
        loss = F.cross_entropy(model(x_NCHW[chosen]), labels_N[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():  # statistics of the final weights
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
        model(x_NCHW)
    path = tmp_path_factory.mktemp("checkpoint") / "m.safetensors"
    metadata = {"class_names": list(source.class_names), "preprocess": to_mapping(preprocess)}
    save_weights(path, model, metadata)
    return path


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    """All exports are of one checkpoint, and tracing it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        graphs: list[Any] = []

        def traced(*arguments: Any, **options: Any) -> Any:
            graphs[:] = graphs or [to_onnx(*arguments, **options)]
            return copy.deepcopy(graphs[0])

        patch.setattr(exporting, "to_onnx", traced)
        yield


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is not what these tests are about, and this machine is busy."""
    monkeypatch.setattr(int8, "seconds_a_picture", lambda runners, _: {"fp32": 2.0, "int8": 1.0})


@pytest.mark.slow
@pytest.mark.usefixtures("faster")
def test_an_int8_file_says_what_it_costs(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    manifest = export(checkpoint, out, precision="int8", calibrate=photos, data=photos).manifest
    assert manifest.precision == "int8"
    assert manifest.accuracy is not None
    assert manifest.calibration is not None
    assert (manifest.accuracy["images"], manifest.accuracy["fp32_top1"]) == (90, 1.0)
    assert manifest.calibration["images"] == 90
    assert manifest.calibration["img_per_s"]["onnxruntime"] == {"fp32": 0.5, "int8": 1.0}
    found = [evaluate(photos, model=out, engine=engine).top1 for engine in ("onnxruntime", "openvino")]
    assert min(found) == manifest.accuracy["top1"] >= 0.995
    whole = export(checkpoint, tmp_path / "fp32.onnx")
    assert len(read_artefact(out).data) < 0.5 * len(whole.data)


@pytest.mark.usefixtures("faster")
def test_a_loss_of_accuracy_is_refused_and_the_old_file_stays(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges from dark noise would ruin the model: here its calibration pictures are all but black."""
    out = tmp_path / "m.onnx"
    out.write_bytes(b"the last good file")
    seen = int8.calibration_images
    monkeypatch.setattr(int8, "calibration_images", lambda *arguments: seen(*arguments) * 0 + 1e-3)
    monkeypatch.setattr(int8, "ATTEMPTS", 1)
    with pytest.raises(ExportError, match=r"loses \d+\.\d+ points, at most.*--force writes it anyway"):
        export(checkpoint, out, precision="int8", calibrate=photos)
    assert out.read_bytes() == b"the last good file"
    forced = export(checkpoint, out, precision="int8", calibrate=photos, force=True).manifest
    assert forced.accuracy is not None
    assert forced.accuracy["top1"] < forced.accuracy["fp32_top1"]


def test_no_gain_in_speed_is_refused(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "seconds_a_picture", lambda runners, _: {"fp32": 1.0, "int8": 1.25})
    with pytest.raises(ExportError, match=r"int8 is 0\.80 times as fast as fp32"):
        export(checkpoint, tmp_path / "m.onnx", precision="int8", calibrate=photos)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.usefixtures("faster")
def test_operators_go_back_to_float_until_accuracy_holds(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    real = int8.quantize
    monkeypatch.setattr(
        int8, "quantize", lambda proto, x, floats, _: (kept.append(len(floats)), real(proto, x, floats))[1]
    )
    monkeypatch.setattr(int8, "MAX_LOSS", -1.0)  # never content
    with pytest.raises(ExportError):
        export(checkpoint, tmp_path / "m.onnx", precision="int8", calibrate=photos)
    assert len(kept) == int8.ATTEMPTS
    assert kept == sorted(set(kept)), "each attempt keeps more operators float"


def test_wrong_requests_are_refused(
    checkpoint: Path, photos: Path, tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    out = tmp_path / "m.onnx"
    with pytest.raises(ConfigError, match="go together"):
        export(checkpoint, out, precision="int8")
    with pytest.raises(ConfigError, match="go together"):
        export(checkpoint, out, calibrate=photos)
    with pytest.raises(ConfigError, match="expected fp32, fp16 or int8, got 'int4'"):
        export(checkpoint, out, precision="int4")
    few = paint_classes(tmp_path / "few", per_class=2)
    with pytest.raises(DataError, match="at least 32 pictures, half of them to compare on, got 6"):
        export(checkpoint, out, precision="int8", calibrate=few)
    broken = paint_classes(tmp_path / "broken", per_class=12)
    for file in sorted(broken.rglob("*.png")):
        file.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"got 0; .*expected a"):
        export(checkpoint, out, precision="int8", calibrate=broken)
    assert not out.exists()


def test_pictures_that_the_model_knows_nothing_of_are_refused(
    checkpoint: Path, tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    """Their colours stand in folders of other colours' names."""
    data = paint_classes(tmp_path / "data", per_class=12, size=SIDE)
    for name, other in (("blue", "x"), ("green", "blue"), ("red", "green"), ("x", "red")):
        (data / name).rename(data / other)
    with pytest.raises(DataError, match="no more than chance: these are not the model's classes"):
        export(checkpoint, tmp_path / "m.onnx", precision="int8", calibrate=data)


def test_a_small_source_is_parted_in_halves(photos: Path) -> None:
    seen, unseen = int8._parted(open_source(photos), hold_out=True)
    assert (len(seen), len(unseen)) == (45, 45)
    assert not set(seen.indices) & set(unseen.indices)
    assert len(int8._parted(open_source(photos), hold_out=False)[0]) == 90
