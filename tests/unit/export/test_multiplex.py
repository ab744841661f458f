"""Multiplexed models as artefacts: any number of pictures, on both engines, in every precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitesse.export import export, fold
from vitesse.export.half import to_half
from vitesse.export.onnx import to_onnx, write_artefact
from vitesse.export.quantize import quantize
from vitesse.export.verify import tolerance
from vitesse.models import Backbone
from vitesse.models.engine import TorchEngine
from vitesse.runtime.artefact import Artefact, read_artefact
from vitesse.runtime.engines import create_engine
from vitesse.spec import Manifest, PreprocessSpec
from vitesse.weights import save_weights

SIZE = (16, 16)
KINDS = ("concatplexer_tiny_patch4_n2", "concatplexer_tiny_patch4_n2_block", "vit_tiny_patch4_tome")
KINDS += ("concatplexer_tiny_patch4_n2_pool", "concatplexer_tiny_patch4_n4_dim0")
KINDS += ("imagemux_tiny_patch4_n4_orthogonal",)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, *SIZE), np.float32)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Artefact]:
    """A function that writes a graph with the manifest of its model."""

    def write(model: Backbone, proto: object, precision: str = "fp32") -> Artefact:
        manifest = Manifest(
            model=model.spec,
            class_names=("a", "b", "c"),
            preprocess=PreprocessSpec(image_size=SIZE),
            precision=precision,
            mux_width=model.mux_width,
        )
        write_artefact(proto, manifest, tmp_path / "model.onnx")
        return read_artefact(tmp_path / "model.onnx")

    return write


@pytest.mark.parametrize("name", KINDS)
def test_any_number_of_pictures_gives_torchs_logits_on_both_engines(
    name: str, settled: Callable[..., Backbone], written: Callable[..., Artefact]
) -> None:
    model = settled(name, SIZE)
    artefact = written(model, to_onnx(fold(model), model.spec))
    width = model.mux_width
    for engine in ("onnxruntime", "openvino"):
        running = create_engine(artefact, engine, 1)
        for count in sorted({1, max(1, width - 1), width, width + 1, 2 * width + 1}):
            (expected_BK,) = TorchEngine(model).run(pictures(count))
            (found_BK,) = running.run(pictures(count))
            assert expected_BK.std() > 0.01
            assert np.abs(found_BK - expected_BK).max() <= tolerance(expected_BK, "fp32"), (engine, count)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_take_any_number_too(
    precision: str, settled: Callable[..., Backbone], written: Callable[..., Artefact]
) -> None:
    model = settled("concatplexer_tiny_patch4_n4", SIZE)
    proto = to_onnx(fold(model), model.spec)
    proto = to_half(proto) if precision == "fp16" else quantize(proto, pictures(16), mux_width=4)
    artefact = written(model, proto, precision)
    for count in (1, 4, 6):
        (expected_BK,) = TorchEngine(model).run(pictures(count))
        for engine in ("onnxruntime", "openvino"):
            (found_BK,) = create_engine(artefact, engine, 1).run(pictures(count))
            noise = np.square(found_BK - expected_BK).mean() / np.square(expected_BK).mean()
            assert noise < (1e-5 if precision == "fp16" else 0.3), (engine, count)  # 1 were another picture


def test_the_manifest_tells_how_many_share_a_pass(settled: Callable[..., Backbone], tmp_path: Path) -> None:
    save_weights(tmp_path / "n2.safetensors", settled("concatplexer_tiny_patch4_n2", SIZE), {})
    artefact = export(tmp_path / "n2.safetensors", tmp_path / "n2.onnx")
    assert artefact.manifest.mux_width == 2
    assert artefact.input_shape == (None, 3, *SIZE)
    assert max(artefact.manifest.parity[engine] for engine in ("onnxruntime", "openvino")) < 1e-4
