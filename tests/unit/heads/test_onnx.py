"""Folded detectors as ONNX give what torch gives, on both engines, with all of the decoding inside."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitesse.export import fold
from vitesse.heads import mask_rcnn
from vitesse.heads.fcos import ConvNormAct, EndToEndHead
from vitesse.heads.fpn import FeaturePyramid
from vitesse.heads.mask_rcnn import MaskRCNNHead
from vitesse.heads.retinanet import RetinaHead
from vitesse.models import build
from vitesse.spec import FeatureSpec, ModelSpec

CLASSES, WIDTH = 2, 32
NAMES = ("boxes", "scores", "labels", "masks")
Features = tuple[FeatureSpec, ...]
Tiny = Callable[[nn.Module, nn.Module], nn.Module]
Scenes = tuple[Tensor, list[dict[str, Tensor]]]
Outputs = list[NDArray[np.generic]]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(previous)


def engines(
    model: nn.Module, images: Tensor, outputs: int, *, any_batch: bool
) -> list[Callable[[Tensor], Outputs]]:
    """The model on ONNX Runtime and on OpenVINO."""
    onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    program = torch.onnx.export(
        model,
        (images,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},) if any_batch else None,
        input_names=["images"],
        output_names=list(NAMES[:outputs]),
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [
        lambda batch: session.run(None, {"images": batch.numpy()}),
        lambda batch: list(compiled([batch.numpy()]).values()),
    ]


def check(run: Callable[[Tensor], Outputs], model: nn.Module, images: Tensor, least: float) -> int:
    """Compare what scores at least so much with torch, one by one; gives how much that was."""
    with torch.no_grad():
        expected = [values.numpy() for values in model(images)]
    found = run(images)
    clear = expected[1] >= least
    assert (clear == (found[1] >= least)).all()
    for values, wanted in zip(found, expected, strict=True):
        assert values.shape == wanted.shape
        assert values.dtype == wanted.dtype
        np.testing.assert_allclose(values[clear], wanted[clear], rtol=1e-3, atol=2e-3)
    return int(clear.sum())


def train(model: nn.Module, scenes: Scenes, steps: int) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = sum(model.train()(*scenes).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
    return fold(model)


def some(scenes: Scenes, *which: int) -> Scenes:
    return scenes[0][list(which)], [scenes[1][i] for i in which]


@pytest.mark.slow
def test_the_real_time_detector_after_training_for_any_batch(
    tiny: Tiny, features: Features, scenes: Scenes
) -> None:
    torch.manual_seed(0)
    strides = (8, 16, 32)
    neck = FeaturePyramid(features, strides, WIDTH, ConvNormAct)
    few = some(scenes, 0, 1, 3, 4)
    model = train(tiny(neck, EndToEndHead(strides, WIDTH, CLASSES)), few, 60)
    for run in engines(model, few[0][:2], 3, any_batch=True):
        assert check(run, model, few[0], 0.05) > 10
        assert check(run, model, few[0][2:3], 0.01) > 0
        assert check(run, model, scenes[0][5:], 0.01) > 0


@pytest.mark.slow
def test_retinanet_after_training_one_picture_at_a_time(
    tiny: Tiny, features: Features, scenes: Scenes
) -> None:
    torch.manual_seed(0)
    strides = (8, 16, 32, 64, 128)
    few = some(scenes, 1, 3)
    model = train(
        tiny(FeaturePyramid(features, strides, WIDTH), RetinaHead(strides, WIDTH, CLASSES)), few, 150
    )
    for run in engines(model, few[0][:1], 3, any_batch=False):
        assert sum(check(run, model, few[0][i : i + 1], 0.1) for i in range(2)) > 4
        check(run, model, scenes[0][:1], 0.1)


@pytest.mark.slow
def test_mask_rcnn_after_training_one_picture_at_a_time(
    tiny: Tiny, features: Features, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(mask_rcnn, "PROPOSALS", 60)
    monkeypatch.setattr(mask_rcnn, "HIDDEN", 64)
    strides = (4, 8, 16, 32, 64)
    few = some(scenes, 4)
    model = train(
        tiny(FeaturePyramid(features, strides, WIDTH), MaskRCNNHead(strides, WIDTH, CLASSES)), few, 80
    )
    for run in engines(model, few[0], 4, any_batch=False):
        assert check(run, model, few[0], 0.3) > 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["fcos_e2e_efficientvit_b0", "fcos_e2e_efficientvit_m0", "fcos_e2e_shvit_s1"]
)
def test_registered_detectors_as_they_begin(name: str, randomise: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = randomise(build(ModelSpec(name=name, num_classes=3, image_size=(64, 96)))).eval()
    for parameter in model.head.parameters():
        if parameter.ndim == 4:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    folded = fold(model)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        boxes, scores, labels = (values.numpy() for values in model(images))
    for run in engines(folded, images, 3, any_batch=True):
        found = run(images)
        np.testing.assert_allclose(found[1], scores, atol=1e-5)
        near = np.abs(found[1][:, :, None] - scores[:, None]) < 1e-4  # equal scores may change places
        alike = (np.abs(found[0][:, :, None] - boxes[:, None]) < 1e-2).all(3)
        alike &= found[2][:, :, None] == labels[:, None]
        assert (near & alike).any(2).mean() > 0.99
