"""EfficientViT-Seg: semantic segmentation on EfficientViT-B and -L.

Cai et al., ICCV 2023, arXiv 2205.14756, section 3.2 and the released models, which differ by data set.

Shape suffixes: B images, C channels, H rows, W columns, K classes, h and w rows and columns at stride 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from vitesse.heads.segmentation import SegHead, Segmenter
from vitesse.models.backbone import DenseModel
from vitesse.models.efficientvit_mit import (
    CONFIGS,
    EfficientViT,
    EfficientViTConfig,
    FusedMBConv,
    MBConv,
    init_weights,
    silence_residuals,
)
from vitesse.models.registry import register
from vitesse.spec import FeatureSpec, ModelSpec, Task


@dataclass(frozen=True, kw_only=True)
class SegHeadConfig:
    """One head.

    Attributes:
        width: channels of the summed feature maps.
        depth: residual blocks after the sum.
        expand_ratio: of these blocks.
        hidden_ratio: channels before the classifier over `width`; None for no convolution there.
    """

    width: int
    depth: int = 3
    expand_ratio: int = 4
    hidden_ratio: int | None = None


HEADS = {
    "efficientvit_seg_b0_cityscapes": SegHeadConfig(width=32, depth=1, hidden_ratio=4),
    "efficientvit_seg_b1_cityscapes": SegHeadConfig(width=64, hidden_ratio=4),
    "efficientvit_seg_b2_cityscapes": SegHeadConfig(width=96, hidden_ratio=4),
    "efficientvit_seg_b3_cityscapes": SegHeadConfig(width=128, hidden_ratio=4),
    "efficientvit_seg_l1_cityscapes": SegHeadConfig(width=256, expand_ratio=1),
    "efficientvit_seg_l2_cityscapes": SegHeadConfig(width=256, depth=5, expand_ratio=1),
    "efficientvit_seg_b1_ade20k": SegHeadConfig(width=64),
    "efficientvit_seg_b2_ade20k": SegHeadConfig(width=96),
    "efficientvit_seg_b3_ade20k": SegHeadConfig(width=128),
    "efficientvit_seg_l1_ade20k": SegHeadConfig(width=128, hidden_ratio=8),
    "efficientvit_seg_l2_ade20k": SegHeadConfig(width=128, hidden_ratio=8),
}


class EfficientViTSeg(DenseModel):
    """Images (B, C, H, W) to logits (B, K, h, w); any size of 32 pixels a side or more."""

    task: ClassVar[Task] = "segment"
    head_prefixes = ("head.classifier.",)

    def __init__(self, spec: ModelSpec, backbone: EfficientViT, config: SegHeadConfig) -> None:
        super().__init__(spec, backbone)
        features = backbone.feature_specs[:0:-1]
        self.stride = features[-1].stride
        self.head = _head(features, spec.num_classes, config, CONFIGS[backbone.spec.name])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """
        Raises:
            ConfigError: the channels differ from `spec.in_chans`, or a side is too short.
        """
        logits_BKhw: Tensor = self.head(self.forward_features(x_BCHW))
        return logits_BKhw

    def deployed(self) -> Segmenter:
        return Segmenter(self, self.spec.num_classes, self.stride)


def _head(
    features: Sequence[FeatureSpec], num_classes: int, config: SegHeadConfig, family: EfficientViTConfig
) -> SegHead:
    head = SegHead(
        features,
        num_classes,
        width=config.width,
        blocks=[_block(config, family) for _ in range(config.depth)],
        hidden=None if config.hidden_ratio is None else config.width * config.hidden_ratio,
        activation=family.activation,
        norm_eps=family.norm_eps,
    )
    head.apply(init_weights)
    silence_residuals(head)
    return head


def _block(config: SegHeadConfig, family: EfficientViTConfig) -> nn.Module:
    kind = FusedMBConv if family.large else MBConv
    return kind(config.width, config.width, family, expand_ratio=config.expand_ratio)


@register(*HEADS, task="segment")
def build(spec: ModelSpec) -> EfficientViTSeg:
    """The EfficientViT-Seg that `spec.name` names."""
    size = spec.name.split("_")[2]
    backbone = ModelSpec(
        name=f"efficientvit_{size}", in_chans=spec.in_chans, drop_path_rate=spec.drop_path_rate
    )
    return EfficientViTSeg(spec, EfficientViT(backbone, CONFIGS[backbone.name]), HEADS[spec.name])
