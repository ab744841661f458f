"""Exported detectors with masks: one picture in a run, and masks that are proven beside the boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vitesse.export.onnx as onnx_export
from vitesse.errors import ExportError
from vitesse.export.verify import parity
from vitesse.models import build
from vitesse.runtime.artefact import read_artefact
from vitesse.spec import ModelSpec

Outputs = tuple[Tensor, ...]
BOXES = ("boxes", "scores", "labels")


@pytest.mark.parametrize(
    ("name", "batch", "outputs"),
    [
        ("fcos_e2e_efficientvit_m0", 2, BOXES),
        ("retinanet_efficientvit_m0", 1, BOXES),
        ("mask_rcnn_efficientvit_m0", 1, (*BOXES, "masks")),
    ],
)
def test_what_suppresses_image_by_image_is_traced_for_one(
    name: str, batch: int, outputs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced for two, the graph would take two and nothing else."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(onnx_export, "traced", lambda *arguments: calls.append(arguments))
    with torch.device("meta"):
        model = build(ModelSpec(name=name, num_classes=2, image_size=(64, 96)))
    onnx_export.to_onnx(model, model.spec)
    ((_, inputs, free, named, _),) = calls
    assert tuple(inputs["images"].shape) == (batch, 3, 64, 96)
    assert bool(free["images"]) == (batch > 1)
    assert named == outputs


def reference(instances: dict[str, np.ndarray], change: Callable[..., Outputs]) -> nn.Module:
    class Torch(nn.Module):
        def forward(self, x_BCHW: Tensor) -> Outputs:
            return change(*map(torch.from_numpy, instances.values()))

    return Torch()


def in_another_order(boxes: Tensor, scores: Tensor, labels: Tensor, masks: Tensor) -> Outputs:
    order = [1, 0, 2, 3]
    return boxes[:, order], scores, labels[:, order], masks[:, order]


@pytest.mark.parametrize("change", [lambda *found: found, in_another_order])
def test_masks_are_proven_box_by_box(
    instance_artefact: Path, instances: dict[str, np.ndarray], change: Callable[..., Outputs]
) -> None:
    images_BCHW = np.zeros((3, 3, 64, 96), np.float32)
    proof = parity(read_artefact(instance_artefact), reference(instances, change), images_BCHW)
    assert proof == {"onnxruntime": 0, "openvino": 0, "equal_boxes": 1, "equal_masks": 1}


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda b, s, c, masks: (b, s, c, masks.flip(1)), r"of the pixels of their masks are as torch's"),
        (lambda b, s, c, masks: (b, s, c, masks * 0.55), r"of the pixels of their masks are as torch's"),
        (
            lambda boxes, s, c, m: (boxes + 2, s, c, m),
            r"of torch's boxes are found, expected at least 98\.0%",
        ),
        (lambda b, s, labels, m: (b, s, 1 - labels, m), r"of torch's boxes are found"),
    ],
)
def test_a_file_whose_masks_or_boxes_disagree_is_refused(
    instance_artefact: Path,
    instances: dict[str, np.ndarray],
    harm: Callable[..., Outputs],
    complaint: str,
) -> None:
    images_BCHW = np.zeros((1, 3, 64, 96), np.float32)
    with pytest.raises(ExportError, match=f"{complaint}.*nothing was written"):
        parity(read_artefact(instance_artefact), reference(instances, harm), images_BCHW)
