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
from PIL import Image
from torch import nn
from torch.nn import functional as F

import vitesse.export.artefact as exporting
from vitesse.cli import run
from vitesse.errors import ArtefactError, ConfigError, ExportError
from vitesse.evaluate import evaluate
from vitesse.export import export, fold
from vitesse.export.onnx import OUTPUTS, write_artefact
from vitesse.export.verify import parity
from vitesse.models import Backbone
from vitesse.models.efficientvit_mit import CONFIGS
from vitesse.models.engine import TorchEngine
from vitesse.runtime.artefact import Artefact, read_artefact
from vitesse.runtime.engines import create_engine
from vitesse.spec import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec, to_mapping
from vitesse.weights import save_weights

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
def any_size(short_sided: Path, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return export(short_sided, tmp_path_factory.mktemp("any") / "m.onnx")


@pytest.fixture(scope="module")
def short_sided(model: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint, for pictures of sizes of their own."""
    path = tmp_path_factory.mktemp("short") / "m.safetensors"
    preprocess = to_mapping(PreprocessSpec(image_size=SIZE, resize="short"))
    save_weights(path, model, {"class_names": ["blue", "green", "red"], "preprocess": preprocess})
    return path


@ENGINES
@pytest.mark.parametrize("size", [(64, 96), (160, 96), (75, 101)])
def test_a_file_for_any_size(
    any_size: Artefact, model: nn.Module, engine: str, size: tuple[int, int]
) -> None:
    check(any_size.at_size(size), model, engine, pictures(2, size))


@pytest.mark.parametrize("source", ["any_size", "short_sided"], ids=["onnx", "torch"])
def test_pictures_of_any_shape_are_scored_as_by_the_formula(
    model: nn.Module, source: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Shorter side 64, longer up to a multiple of 32, logits enlarged, classes at the picture's pixels."""
    rng, shapes = np.random.default_rng(0), [(70, 130), (130, 70), (64, 64), (90, 110)]
    counts_KK = np.zeros((3, 3))
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.txt").write_text("blue\ngreen\nred\n")
    for number, (height, width) in enumerate(shapes):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        picture, labels_HW = small.resize((width, height)), rng.integers(0, 3, (height, width), np.uint8)
        picture.save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(labels_HW).save(tmp_path / "masks" / f"{number}.png")
        longer = -(-max(shapes[number]) * 64 // min(shapes[number]) // 32) * 32
        seen = picture.resize((64, longer) if height > width else (longer, 64), Image.Resampling.BICUBIC)
        x_HWC = (np.asarray(seen) / 255 - IMAGENET_MEAN) / IMAGENET_STD
        with torch.no_grad():
            logits_BKhw = model(torch.from_numpy(x_HWC.transpose(2, 0, 1)[None]).float())
        classes_HW = F.interpolate(logits_BKhw, scale_factor=8, mode="bicubic").argmax(1)[0].numpy()
        found_HW = np.asarray(Image.fromarray(classes_HW.astype(np.uint8)).resize((width, height), 0))
        np.add.at(counts_KK, (labels_HW.ravel(), found_HW.ravel()), 1)
    both_K = counts_KK.diagonal()
    expected = (both_K / (counts_KK.sum(0) + counts_KK.sum(1) - both_K)).mean()
    named = request.getfixturevalue(source)
    found = evaluate(tmp_path, model=named if isinstance(named, Path) else named.path, split=None)
    assert found.scores.images == 4  # type: ignore[union-attr]
    assert found.scores.miou == pytest.approx(expected, abs=1e-3)  # type: ignore[union-attr]


def test_one_size_for_pictures_of_sizes_of_their_own_is_refused(artefact: Artefact, tmp_path: Path) -> None:
    preprocess = replace(artefact.manifest.preprocess, resize="short")
    write_artefact(
        onnx.load(artefact.path), replace(artefact.manifest, preprocess=preprocess), tmp_path / "m.onnx"
    )
    with pytest.raises(ArtefactError, match=r"a size of its own, the graph takes \(None, 3, 64, 96\)"):
        read_artefact(tmp_path / "m.onnx")


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
