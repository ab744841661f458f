"""Detectors: a pyramid and a head on any of the hierarchical backbones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitesse.errors import ConfigError
from vitesse.heads.detection import Detections, Losses, Target
from vitesse.heads.fcos import ConvNormAct, EndToEndHead
from vitesse.heads.fpn import FeaturePyramid
from vitesse.models.backbone import Backbone, DenseModel
from vitesse.models.registry import build_model, register
from vitesse.spec import ModelSpec

BACKBONE_SIZE = (448, 448)
"""Pixels at which every stage of EfficientViT-M has a bias table of a whole 7x7 window, whatever size the
detector is built for: its detection code makes them so, and windows never grow with the picture."""


class Detector(DenseModel):
    """Images (B, in_chans, H, W) to objects.

    Attributes:
        freeze_norm: BatchNorm of the backbone keeps its statistics while training; read by `train()`.
    """

    task = "detect"

    def __init__(
        self, spec: ModelSpec, backbone: Backbone, neck: FeaturePyramid, head: nn.Module, *, freeze_norm: bool
    ) -> None:
        super().__init__(spec, backbone)
        self.neck, self.head = neck, head
        self.head_prefixes = tuple(f"head.{name}" for name in cast(tuple[str, ...], head.classifiers))
        self.freeze_norm, self.any_batch = freeze_norm, cast(bool, head.any_batch)
        self.train()

    def forward(self, x_BCHW: Tensor, targets: Sequence[Target] | None = None) -> Losses | Detections:
        """Losses by name of `targets` while training, see `heads.detection`; in evaluation `Detections`.

        Raises:
            ConfigError: the channels differ from `spec.in_chans`, a side is too short, no targets are given.
            DataError: targets that cannot be.
        """
        levels = self.neck(self.forward_features(x_BCHW))
        return cast(Losses | Detections, self.head(levels, x_BCHW, targets))

    def train(self, mode: bool = True) -> Detector:
        super().train(mode)
        if self.freeze_norm:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


PAPER_CHANNELS = 256
RETINANET_STRIDES = (8, 16, 32, 64, 128)
MASK_RCNN_STRIDES = (4, 8, 16, 32, 64)
FCOS_STRIDES = (8, 16, 32)
FCOS_CHANNELS = {
    "efficientvit_m0": 64,
    "efficientvit_m1": 96,
    "efficientvit_m2": 96,
    "efficientvit_m3": 128,
    "efficientvit_m4": 128,
    "efficientvit_m5": 128,
    "shvit_s1": 96,
    "shvit_s2": 128,
    "shvit_s3": 128,
    "shvit_s4": 160,
    "efficientvit_b0": 64,
    "efficientvit_b1": 144,
    "efficientvit_b2": 160,
    "efficientvit_b3": 192,
}
"""Width of the real-time detector's pyramid and head, by backbone."""
BACKBONES = tuple(FCOS_CHANNELS)


def _backbone(spec: ModelSpec, prefix: str) -> Backbone:
    if spec.distilled:
        raise ConfigError(f"{spec.name}: expected distilled=False, a detector has no distillation head")
    name = spec.name.removeprefix(prefix)
    return cast(
        Backbone, build_model(dataclasses.replace(spec, name=name, image_size=BACKBONE_SIZE, num_classes=1))
    )


@register(*(f"retinanet_{name}" for name in BACKBONES), task="detect")
def build_retinanet(spec: ModelSpec) -> Detector:
    """The RetinaNet that `spec.name` names."""
    from vitesse.heads.retinanet import RetinaHead  # brings torchvision, which takes seconds to import

    backbone = _backbone(spec, "retinanet_")
    neck = FeaturePyramid(backbone.feature_specs, RETINANET_STRIDES, PAPER_CHANNELS)
    head = RetinaHead(RETINANET_STRIDES, PAPER_CHANNELS, spec.num_classes)
    return Detector(spec, backbone, neck, head, freeze_norm=True)


@register(*(f"mask_rcnn_{name}" for name in BACKBONES), task="detect", masks=True)
def build_mask_rcnn(spec: ModelSpec) -> Detector:
    """The Mask R-CNN that `spec.name` names."""
    from vitesse.heads.mask_rcnn import MaskRCNNHead  # brings torchvision, which takes seconds to import

    backbone = _backbone(spec, "mask_rcnn_")
    neck = FeaturePyramid(backbone.feature_specs, MASK_RCNN_STRIDES, PAPER_CHANNELS)
    head = MaskRCNNHead(MASK_RCNN_STRIDES, PAPER_CHANNELS, spec.num_classes)
    return Detector(spec, backbone, neck, head, freeze_norm=True)


@register(*(f"fcos_e2e_{name}" for name in BACKBONES), task="detect")
def build_fcos(spec: ModelSpec) -> Detector:
    """The real-time detector that `spec.name` names."""
    backbone = _backbone(spec, "fcos_e2e_")
    channels = FCOS_CHANNELS[backbone.spec.name]
    neck = FeaturePyramid(backbone.feature_specs, FCOS_STRIDES, channels, ConvNormAct)
    head = EndToEndHead(FCOS_STRIDES, channels, spec.num_classes)
    return Detector(spec, backbone, neck, head, freeze_norm=False)
