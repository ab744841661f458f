"""A model for promptable masks as two files that compute what it does, on every engine."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import vitesse.export.promptable as exporting
from vitesse import evaluate, load, train
from vitesse.cli import run
from vitesse.errors import ConfigError, ExportError
from vitesse.export import export
from vitesse.models.promptable import PromptableModel
from vitesse.runtime.artefact import Artefact, decoder_path, read_artefact
from vitesse.runtime.engines import available_engines
from vitesse.runtime.imaging import preprocess
from vitesse.runtime.promptable import MaskPredictor
from vitesse.weights import save_weights

NAME, SIDE = "efficientvit_sam_l0", 128


@dataclass(frozen=True)
class Written:
    """A model, its checkpoint, the encoder that was written, and both graphs in the order of tracing."""

    model: PromptableModel
    checkpoint: Path
    encoder: Artefact
    graphs: tuple[onnx.ModelProto, ...]


@pytest.fixture(scope="module")
def written(narrow_sam: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    folder, graphs = tmp_path_factory.mktemp("sam"), []
    with pytest.MonkeyPatch.context() as patch:
        model = narrow_sam(patch)
        save_weights(folder / "m.safetensors", model)
        traced = exporting.traced

        def kept(*args: Any) -> onnx.ModelProto:
            graphs.append(traced(*args))
            return copy.deepcopy(graphs[-1])

        patch.setattr(exporting, "traced", kept)
        artefact = export(folder / "m.safetensors", folder / "sam.onnx", trained_on="nothing", licence="MIT")
        yield Written(model, folder / "m.safetensors", artefact, tuple(graphs))


@pytest.fixture
def traced_before(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export need not trace again, which takes seconds."""
    graphs = iter(written.graphs)
    monkeypatch.setattr(exporting, "traced", lambda *_: copy.deepcopy(next(graphs)))


def test_the_manifests_name_the_task_and_each_other(written):
    encoder, decoder = written.encoder, read_artefact(decoder_path(written.encoder.path))
    assert encoder.manifest.decoder == decoder.sha256
    assert decoder.manifest.decoder == ""
    for artefact in (encoder, decoder):
        manifest = artefact.manifest
        assert (manifest.task, manifest.class_names) == ("promptable", ("object",))
        assert (manifest.preprocess.resize, manifest.preprocess.interpolation) == ("fit", "bilinear")
        assert (manifest.trained_on, manifest.licence) == ("nothing", "MIT")
        assert set(manifest.parity) == {*available_engines(), "images"}
        assert all(manifest.parity[engine] < 1e-4 for engine in available_engines())
    assert encoder.input_shape == (None, 3, SIDE, SIDE)
    assert decoder.input_shape == (None, None, 3)


def in_torch(model: PromptableModel, image: Image.Image, prompts_NP3: torch.Tensor) -> Any:
    """Logits in the picture's pixels (N, 4, H, W) and qualities by segment-anything's recipe."""
    x_CHW = torch.from_numpy(preprocess(image, model.preprocess))
    scale = 1024 / max(image.size)
    with torch.no_grad():
        masks, quality = model.decoder(prompts_NP3, model(x_CHW[None]))
    masks = F.interpolate(masks, (1024, 1024), mode="bilinear")
    masks = masks[..., : round(image.height * scale), : round(image.width * scale)]
    return F.interpolate(masks, (image.height, image.width), mode="bilinear"), quality


@pytest.mark.parametrize("engine", available_engines())
@pytest.mark.parametrize("multimask", [False, True])
def test_the_files_segment_a_photo_as_torch_does(written, photo, engine, multimask):
    """With more objects and points than were traced."""
    image, boxes = photo(400, 300), [(40, 60, 320, 240), (0, 0, 90, 80), (100, 50, 400, 300)]
    predictor = MaskPredictor(written.encoder, engine=engine, threads=1)
    predictor.set_image(image)
    found = [predictor.predict(boxes=boxes, multimask=multimask)]
    found += [predictor.predict(points=[(i * 30, i * 20, i % 2) for i in range(7)], multimask=multimask)]
    corners = [[[x0, y0, 2], [x1, y1, 3]] for x0, y0, x1, y1 in boxes]
    points = [[[i * 30, i * 20, i % 2] for i in range(7)] + [[0, 0, -1]]]
    for result, rows in zip(found, (corners, points), strict=True):
        prompts_NP3 = torch.tensor(rows, dtype=torch.float32) * torch.tensor([1024 / 400, 1024 / 400, 1])
        logits, quality = in_torch(written.model, image, prompts_NP3)
        best = quality[:, 1:].argmax(1) + 1 if multimask else torch.zeros(len(rows), dtype=torch.long)
        for mask, expected, wanted in zip(
            result.predictions, logits[range(len(rows)), best], quality[range(len(rows)), best], strict=True
        ):
            assert np.mean(mask.mask_HW == (expected > 0).numpy()) > 0.9999
            assert mask.score == pytest.approx(float(wanted.clamp(0, 1)), abs=1e-4)


def test_half_precision_runs_and_stays_near(written, traced_before, tmp_path, photo):
    artefact = export(written.checkpoint, tmp_path / "half.onnx", precision="fp16")
    assert artefact.manifest.precision == "fp16"
    assert len(artefact.data) < 0.7 * len(written.encoder.data)
    masks = []
    for model in (written.encoder, artefact):
        predictor = MaskPredictor(model, engine="onnxruntime", threads=1)
        predictor.set_image(photo(400, 300))
        masks.append(predictor.predict(boxes=[(40, 60, 320, 240)]).predictions[0].mask_HW)
    assert np.mean(masks[0] == masks[1]) > 0.99


def test_files_that_disagree_are_not_written(written, traced_before, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "tolerance", lambda *_: 0.0)
    with pytest.raises(
        ExportError, match=r"m\.decoder\.onnx: on onnxruntime an output differs .* nothing was"
    ):
        export(written.checkpoint, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"precision": "int8", "calibrate": "photos"}, "--calibrate"),
        ({"dynamic_size": True}, "--dynamic-size"),
        ({"formats": ["openvino"]}, "--format"),
        ({"data": "photos"}, "--data"),
    ],
)
def test_what_it_cannot_do_is_refused(written, tmp_path, options, named):
    with pytest.raises(ConfigError, match=f"{named}: expected a model to .*, got one of the task promptable"):
        export(written.checkpoint, tmp_path / "m.onnx", **options)


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_a_checkpoint_is_not_asked_what_it_sees(written, engine):
    for call in (
        lambda: load(written.checkpoint, engine=engine),
        lambda: evaluate("photos", model=written.checkpoint),
    ):
        with pytest.raises(ConfigError, match=r"^\S+m\.safetensors: makes masks .*; use `vitesse segment`$"):
            call()


def test_it_is_not_trained(tmp_path):
    with pytest.raises(ConfigError, match=f"^{NAME}: expected a model to classify or .*task promptable"):
        train("photos", model=NAME, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_both(written, traced_before, tmp_path, capsys):
    assert run(["export", str(written.checkpoint), "--out", str(tmp_path / "sam.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"]["images"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sam.decoder.onnx", "sam.onnx"]
