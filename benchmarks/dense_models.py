"""The networks of `dense.py` as ONNX graphs for one picture: ours, torchvision's detectors, SegFormer-B0.

All have random weights. Normalisations take the statistics of noise, so that values are as large as after
training. Ours are folded and traced as `vitesse export` does it; SegFormer (transformers) is traced the same
way, torchvision's detectors by torch's TorchScript exporter, since the newer one refuses them. All graphs are
simplified alike.

A graph is of one of two stages. `whole` holds the post-processing that the model comes with: suppression of
duplicates, or the class of every pixel of the input. `network` ends before it; a detector of two stages has
no such graph.

How long suppression takes depends on how many candidates pass the threshold of the scores, and that on
training. Peers' thresholds are therefore set so that as many candidates pass on the timed picture as our
real-time detector gives results, and fewer of the first stage's. Ours suppresses the best 1000 of each level
whatever their scores are.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList

from vitesse.bench.contenders import count_macs, made_once, random_manifest, random_model
from vitesse.export.fold import fold
from vitesse.export.onnx import INPUT, OPSET, OUTPUTS, quiet, traced
from vitesse.heads.fcos import EndToEndHead
from vitesse.models.backbone import VisionModel
from vitesse.runtime.artefact import Artefact
from vitesse.spec import Manifest, ModelSpec, Task

Size = tuple[int, int]
"""(Height, width) in pixels."""

WHOLE, NETWORK = "whole", "network"
TORCHVISION, TRANSFORMERS = "torchvision:", "transformers:"
SEGFORMER = TRANSFORMERS + "segformer_b0"
TWO_STAGES = "fasterrcnn"
CLASSES: Mapping[Task, int] = {"detect": 80, "segment": 19}
"""Of COCO and Cityscapes, for both sides."""
CANDIDATES, PROPOSALS = 300, 100
"""Pairs of box and class, and boxes of a first stage, that pass a peer's threshold before suppression."""
SETTLING = (2, 3, 320, 320)
"""The batch whose statistics normalisations take."""


@dataclass(frozen=True)
class Graph:
    """What is exported: images (1, 3, H, W) to outputs by these names."""

    module: nn.Module
    outputs: tuple[str, ...]


@functools.cache
def picture(size: Size) -> NDArray[np.float32]:
    """What is timed and counted on: noise (1, 3, H, W)."""
    return np.random.default_rng(0).standard_normal((1, 3, *size), np.float32)


def artefact_of(name: str, size: Size, stage: str) -> Artefact:
    """The graph of a model for pictures of (height, width), from the cache folder or made now."""
    own_code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    label = f"{name}-{size[0]}x{size[1]}-{stage}-{own_code}"
    return made_once(label, lambda: made(name, size, stage))


def made(name: str, size: Size, stage: str) -> tuple[onnx.ModelProto, Manifest]:
    """A graph, and a manifest whose `provenance` has its MACs and how many boxes it gives."""
    if name.startswith(TORCHVISION):
        return _made_of_torchvision(name, size, stage)
    task: Task = "segment" if name == SEGFORMER or "_seg_" in name else "detect"
    spec = ModelSpec(name=name, image_size=size, num_classes=CLASSES[task])
    model = segformer() if name == SEGFORMER else random_model(spec)
    settle(model, lambda: model(noise()))
    macs = count_macs(model, spec)
    if isinstance(model, VisionModel):
        model = fold(model)
    parts = _parts_of_ours(model) if isinstance(model, VisionModel) else _parts_of_segformer(model)
    graph = parts[stage]
    proto = traced(graph.module, {INPUT: torch.from_numpy(picture(size))}, {}, graph.outputs, name)
    return proto, random_manifest(spec, {"macs": macs}, task)


def noise() -> Tensor:
    return torch.randn(SETTLING, generator=torch.Generator().manual_seed(0))


def settle(model: nn.Module, run: Callable[[], object]) -> None:
    """Give every BatchNorm the statistics of what passes it during a run."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        run()
    model.eval()


class RawDetector(nn.Module):
    """One of our detectors as far as its head's convolutions: to logits (B, P, K) and boxes (B, P, 4)."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        levels = self.detector.neck(self.detector.forward_features(x_BCHW))
        head = self.detector.head
        if isinstance(head, EndToEndHead):
            return tuple(head.one_to_one(levels))
        return tuple(head.outputs(levels).values())


def _parts_of_ours(model: VisionModel) -> Mapping[str, Graph]:
    if model.task == "segment":
        network = Graph(model, ("logits",))
    else:
        network = Graph(RawDetector(model), ("class_logits", "box_values"))
    return {WHOLE: Graph(model.deployed(), OUTPUTS[model.task]), NETWORK: network}


def segformer() -> nn.Module:
    """SegFormer-B0 (arXiv 2105.15203) to logits (B, K, H/4, W/4)."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    return Logits(SegformerForSemanticSegmentation(SegformerConfig(num_labels=CLASSES["segment"]))).eval()


class Logits(nn.Module):
    """A model of transformers without the names of its outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BKhw: Tensor = self.model(x_BCHW).logits
        return logits_BKhw


class PixelClasses(nn.Module):
    """As transformers' `post_process_semantic_segmentation`: enlarged bilinearly, the largest."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.interpolate(self.network(x_BCHW), size=x_BCHW.shape[2:], mode="bilinear").argmax(1)


def _parts_of_segformer(network: nn.Module) -> Mapping[str, Graph]:
    return {WHOLE: Graph(PixelClasses(network), ("classes",)), NETWORK: Graph(network, ("logits",))}


class AsItIs(nn.Module):
    """In the place of torchvision's transform: pictures come normalised and in their size, as ours do."""

    def forward(self, images: Iterable[Tensor], targets: None = None) -> tuple[ImageList, None]:
        batch_BCHW = torch.stack(list(images))
        return ImageList(batch_BCHW, [tuple(batch_BCHW.shape[2:])] * len(batch_BCHW)), targets

    def postprocess(self, result: Any, *sizes: object) -> Any:
        return result


class WholeDetector(nn.Module):
    """A detector of torchvision on one picture: boxes (1, N, 4), scores (1, N), labels (1, N)."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        (found,) = self.detector([x_BCHW[0]])
        return tuple(found[name].unsqueeze(0) for name in OUTPUTS["detect"])


class NetworkDetector(WholeDetector):
    """One of one stage as far as its head's convolutions."""

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        outputs = self.detector.head(list(self.detector.backbone(x_BCHW).values()))
        return outputs["cls_logits"], outputs["bbox_regression"]


def _made_of_torchvision(name: str, size: Size, stage: str) -> tuple[onnx.ModelProto, Manifest]:
    spec = ModelSpec(name=name, image_size=size, num_classes=CLASSES["detect"])
    detector, counts = torchvision_detector(name, size)
    macs = count_macs(WholeDetector(detector), spec)
    module = (WholeDetector if stage == WHOLE else NetworkDetector)(detector)
    proto = scripted(module.eval(), torch.from_numpy(picture(size)))
    return proto, random_manifest(spec, {"macs": macs, **counts}, "detect")


def torchvision_detector(name: str, size: Size) -> tuple[Any, dict[str, int]]:
    """A detector whose thresholds let the wanted number of candidates pass; see `let_candidates_pass`."""
    torch.manual_seed(0)
    builder = name.removeprefix(TORCHVISION)
    background = not builder.startswith("retinanet")
    options = {"weights": None, "weights_backbone": None, "num_classes": CLASSES["detect"] + background}
    detector = getattr(detection, builder)(**options).eval()
    detector.transform = AsItIs()
    settle(detector, lambda: detector(list(noise())))
    (picture_CHW,) = torch.from_numpy(picture(size))
    return detector, let_candidates_pass(detector, lambda: detector([picture_CHW]))


def let_candidates_pass(detector: Any, run: Callable[[], object]) -> dict[str, int]:
    """Set the thresholds of the scores so that `CANDIDATES`, and `PROPOSALS` before them, pass in a run.

    Gives how many boxes reach the second stage, where there is one.
    """
    if not hasattr(detector, "rpn"):
        logits_BPK = seen_of(detector.head, run)["cls_logits"]
        sigmoid = isinstance(detector, detection.RetinaNet)
        scores = logits_BPK.sigmoid() if sigmoid else logits_BPK.softmax(-1)[..., 1:]
        detector.score_thresh = threshold(scores, CANDIDATES)
        return {}
    objectness, _ = seen_of(detector.rpn.head, run)
    scores = torch.cat([level.flatten() for level in objectness]).sigmoid()
    detector.rpn.score_thresh = threshold(scores, PROPOSALS)
    logits_RK, _ = seen_of(detector.roi_heads.box_predictor, run)
    detector.roi_heads.score_thresh = threshold(logits_RK.softmax(-1)[:, 1:], CANDIDATES)
    return {"proposals": len(logits_RK)}


@torch.no_grad()
def seen_of(module: nn.Module, run: Callable[[], object]) -> Any:
    """What a module gives in a run."""
    outputs: list[Any] = []
    hook = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    run()
    hook.remove()
    return outputs[0]


def threshold(scores: Tensor, count: int) -> float:
    """A score that so many are above, or one less than all; between two of them."""
    ranked = scores.double().flatten().sort(descending=True).values
    first_out = min(count, len(ranked) - 1)
    return float(ranked[first_out - 1 : first_out + 1].mean())


def scripted(module: nn.Module, x_BCHW: Tensor) -> onnx.ModelProto:
    """A module whose shapes depend on data as a simplified graph."""
    buffer = io.BytesIO()
    with quiet():
        torch.onnx.export(module, (x_BCHW,), buffer, dynamo=False, opset_version=OPSET, input_names=[INPUT])
        return onnxslim.slim(onnx.load_from_string(buffer.getvalue()))
