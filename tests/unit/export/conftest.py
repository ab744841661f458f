"""What tests of export share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import vitesse.export.artefact as exporting
from vitesse.export import fold
from vitesse.export.onnx import to_onnx
from vitesse.models import Backbone, build
from vitesse.models.efficientvit_mit import MultiScaleLinearAttention
from vitesse.spec import ModelSpec, PreprocessSpec, to_mapping
from vitesse.weights import save_weights

B0_SIZE = (64, 96)
"""Its linear attention takes both orders: 24 positions are more than a head is wide, 6 are fewer."""


@pytest.fixture(scope="session")
def settled() -> Callable[..., Backbone]:
    """A function that builds a model whose values neither vanish nor grow from layer to layer.

    Its normalisations have the statistics of noise; gains and bias tables are as training leaves them.
    """

    def make(
        name: str,
        image_size: tuple[int, int] = (64, 64),
        num_classes: int = 3,
        distilled: bool = False,
        pictures: int = 16,
    ) -> Backbone:
        torch.manual_seed(0)
        spec = ModelSpec(name=name, image_size=image_size, num_classes=num_classes, distilled=distilled)
        model = build(spec)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        for key, parameter in model.named_parameters():
            if "attention_bias" in key:
                nn.init.normal_(parameter)
        with torch.no_grad():
            model.train()(torch.randn(pictures, 3, *image_size))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def b0(settled: Callable[..., Backbone]) -> Backbone:
    """A B0 whose keys meet values in sums far above the 65504 that half precision ends at."""
    model = settled("efficientvit_b0", B0_SIZE, pictures=32)
    for module in model.modules():
        if isinstance(module, MultiScaleLinearAttention):  # these factors cancel out
            module.qkv.weight.data *= 100
            module.proj.conv.weight.data /= 100
    return model


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Backbone], Path]:
    """A function that saves a model of three classes as a checkpoint."""

    def save(model: Backbone) -> Path:
        path = tmp_path_factory.mktemp("saved") / "m.safetensors"
        resize = "crop" if model.task == "classify" else "squash"
        preprocess = to_mapping(PreprocessSpec(image_size=model.spec.image_size, resize=resize))
        save_weights(path, model, {"class_names": ["blue", "green", "red"], "preprocess": preprocess})
        return path

    return save


@pytest.fixture(scope="session")
def b0_checkpoint(b0: Backbone, saved: Callable[[Backbone], Path]) -> Path:
    return saved(b0)


@pytest.fixture(scope="session")
def b0_graph(b0: Backbone) -> onnx.ModelProto:
    return to_onnx(fold(b0), b0.spec)


@pytest.fixture
def traced_before(b0_graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export of the B0 checkpoint need not trace it again, which takes seconds."""
    monkeypatch.setattr(exporting, "to_onnx", lambda *_, **__: copy.deepcopy(b0_graph))
