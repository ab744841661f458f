"""Export: an artefact that both engines run as torch does, with its proof inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

import vitesse.export.artefact as exporting
from vitesse import load
from vitesse.data.sources import HELD_OUT_SHARE, hold_out, open_source
from vitesse.errors import ConfigError, DataError, ExportError
from vitesse.export import export, fold
from vitesse.export.onnx import to_onnx, write_artefact
from vitesse.models import Backbone, build, load_checkpoint
from vitesse.runtime.artefact import read_artefact
from vitesse.runtime.engines import available_engines, create_engine
from vitesse.runtime.imaging import preprocess
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
    """Of data without splits that the model was trained on, what was held out proves and scores it."""
    data = paint_classes(tmp_path / "data", per_class=110, size=8)
    seen, _ = hold_out(open_source(data), HELD_OUT_SHARE, 3)
    provenance = {"data": seen.fingerprint, "recipe": {"seed": 3}}
    model, metadata = load_checkpoint(checkpoint)
    save_weights(checkpoint, model, {**metadata, "provenance": provenance})
    written = export(checkpoint, tmp_path / "m.onnx", data=data, trained_on="colours", licence="CC0-1.0")
    manifest = read_artefact(tmp_path / "m.onnx").manifest
    assert manifest.class_names == CLASSES
    assert manifest.preprocess == PreprocessSpec(image_size=(32, 48))
    assert (manifest.trained_on, manifest.licence, manifest.provenance) == ("colours", "CC0-1.0", provenance)
    assert set(available_engines()) == {"onnxruntime", "openvino"}
    assert manifest.parity is not None
    assert manifest.parity["images"] == 32
    assert max(manifest.parity[name] for name in available_engines()) <= 1e-4
    assert manifest.accuracy is not None
    assert (manifest.accuracy["images"], manifest.accuracy["split"]) == (33, "held out of training")
    assert written.manifest == manifest
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "efficientvit_m0",
        "efficientvit_m5",
        "shvit_s1",
        "shvit_s4",
        "efficientvit_b0",
        "efficientvit_b0_single_scale",
        "efficientvit_l0",
        "vit_tiny_patch16",
    ],
)
def test_both_engines_give_torchs_logits(name: str, tmp_path: Path, settled: Callable[..., Backbone]) -> None:
    model = settled(name, (224, 224), num_classes=1000)
    classes = tuple(map(str, range(1000)))
    manifest = Manifest(model=model.spec, class_names=classes, preprocess=PreprocessSpec())
    write_artefact(to_onnx(fold(model), model.spec), manifest, tmp_path / "m.onnx")
    artefact = read_artefact(tmp_path / "m.onnx")
    x_BCHW = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x_BCHW).numpy()
    assert expected.std(0).mean() > 0.01, "the logits say something of the picture"
    for engine in ("onnxruntime", "openvino"):
        for count in (1, 3):
            logits_BK = create_engine(artefact, engine).run(x_BCHW[:count].numpy())[0]
            assert np.abs(logits_BK - expected[:count]).max() <= 1e-4 * max(1, expected.max()), engine


@pytest.mark.usefixtures("traced_before")
def test_without_data_parity_is_proven_on_noise_and_no_accuracy_is_claimed(
    b0_checkpoint: Path, tmp_path: Path
) -> None:
    export(b0_checkpoint, tmp_path / "m.onnx")
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


def test_what_cannot_be_traced_is_one_line_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        reason = RuntimeError("Could not guard on data\nsee there")
        raise torch.onnx.errors.OnnxExporterError(
            "\x1b[96mThis is step 1/3\x1b[0m. Next steps:\n- x"
        ) from reason

    monkeypatch.setattr("torch.onnx.export", fail)
    model = build(ModelSpec(name="efficientvit_m0", image_size=(64, 64)))
    with pytest.raises(ExportError) as caught:
        to_onnx(model, model.spec)
    assert str(caught.value) == "efficientvit_m0: torch cannot export it to ONNX: Could not guard on data"


AnySize = tuple[Backbone, Path]


@pytest.fixture(scope="module", params=["shvit_s1", "efficientvit_b0"])
def any_size(
    request: pytest.FixtureRequest,
    settled: Callable[..., Backbone],
    saved: Callable[[Backbone], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> AnySize:
    """A model and its artefact for any size; at its own size SHViT's last map has one row."""
    model, out = settled(request.param, (128, 160)), tmp_path_factory.mktemp("any") / "m.onnx"
    model.spec = replace(model.spec, image_size=(64, 96))
    return model, export(saved(model), out, dynamic_size=True).path


@torch.no_grad()
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [(160, 96), (224, 224), (75, 101)])
def test_a_file_for_any_size_gives_torchs_logits(
    any_size: AnySize, size: tuple[int, int], engine: str
) -> None:
    model, path = any_size
    x_BCHW = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    expected_BK = model(x_BCHW).numpy()
    found_BK = create_engine(read_artefact(path).at_size(size), engine).run(x_BCHW.numpy())[0]
    assert np.abs(found_BK - expected_BK).max() <= 1e-4 * max(1, np.abs(expected_BK).max())
    assert np.abs(expected_BK[0] - expected_BK[1]).max() > 0.01, "the logits say something of the picture"


@torch.no_grad()
def test_a_file_for_any_size_is_loaded_for_one(any_size: AnySize, photo: Callable[..., Image.Image]) -> None:
    model, path = any_size
    predictor = load(path, engine="onnxruntime", image_size=(128, 160))
    spec = predictor.artefact.manifest.preprocess
    assert predictor.artefact.manifest.model.image_size == spec.image_size == (128, 160)
    pictures = [photo(200, 150, seed) for seed in range(3)]
    logits_BK = model(torch.from_numpy(np.stack([preprocess(picture, spec) for picture in pictures])))
    records = predictor.predict(pictures)
    assert [record.top.index for record in records] == logits_BK.argmax(1).tolist()
    scores_B = logits_BK.softmax(1).amax(1).tolist()
    assert [record.top.score for record in records] == pytest.approx(scores_B, abs=1e-4)
    assert load(path, engine="onnxruntime").artefact.manifest.model.image_size == (64, 96)
    assert load(path, engine="onnxruntime", image_size=80).artefact.manifest.model.image_size == (80, 80)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("efficientvit_m0", r"stages\.0\.blocks\.0\.mixer\.branch\S* holds a table of positions"),
        ("vit_tiny_patch16", "its stem holds a table of positions"),
    ],
)
def test_a_model_with_tables_of_positions_is_for_one_size(name: str, reason: str) -> None:
    spec = ModelSpec(name=name, image_size=(64, 64))
    with pytest.raises(ExportError, match=f"^{name}: cannot take several sizes: {reason}; export one file"):
        to_onnx(fold(build(spec)), spec, dynamic_size=True)


def test_a_file_for_one_size_is_not_loaded_for_another(make_artefact: Callable[..., Path]) -> None:
    path = make_artefact()
    assert load(path, engine="onnxruntime", image_size=(24, 32)).artefact == read_artefact(path)
    with pytest.raises(
        ConfigError, match="takes 24x32 pixels alone, got 32x24; export it with --dynamic-size"
    ):
        load(path, image_size=(32, 24))
    with pytest.raises(ConfigError, match=r"image_size: expected an artefact, got m\.safetensors"):
        load("m.safetensors", image_size=64)
    with pytest.raises(ConfigError, match="expected positive whole numbers of pixels, one or two, got 0x0"):
        load(path, image_size=0)
    half_free = read_artefact(make_artefact(size=(24, "width")))
    assert half_free.at_size((24, 99)).manifest.preprocess.image_size == (24, 99)
    with pytest.raises(ConfigError, match="takes 24x32 pixels alone"):
        half_free.at_size((25, 32))
