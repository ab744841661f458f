"""EfficientViT-SAM L0-L2, XL0 and XL1: Segment Anything with an EfficientViT as image encoder.

Zhang, Cai, Han, CVPR workshops 2024, arXiv 2402.05008. The decoder is SAM's, unchanged.

Shape suffixes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.heads.promptable import PromptConfig
from vitesse.layers import ConvNorm, LayerNorm2d, Residual, upcast
from vitesse.models.efficientvit_mit import CONFIGS as BACKBONES
from vitesse.models.efficientvit_mit import EfficientViT, EfficientViTConfig, FusedMBConv
from vitesse.models.promptable import PromptableModel
from vitesse.models.registry import register
from vitesse.spec import FeatureSpec, ModelSpec

NORM_EPS = 1e-6
NUM_INPUTS = 3
"""The neck joins so many of the deepest stages."""


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """One model.

    Attributes:
        backbone: of `efficientvit_mit.CONFIGS`.
        depth, expand_ratio: of the neck's blocks.
    """

    backbone: str
    depth: int
    expand_ratio: int = 1
    prompt: PromptConfig = field(default_factory=PromptConfig)


CONFIGS = {
    "efficientvit_sam_l0": SamConfig(backbone="efficientvit_l0", depth=4),
    "efficientvit_sam_l1": SamConfig(backbone="efficientvit_l1", depth=8),
    "efficientvit_sam_l2": SamConfig(backbone="efficientvit_l2", depth=12),
    "efficientvit_sam_xl0": SamConfig(backbone="efficientvit_xl0", depth=6, expand_ratio=4),
    "efficientvit_sam_xl1": SamConfig(backbone="efficientvit_xl1", depth=12, expand_ratio=4),
}


class Neck(nn.Module):
    """Feature maps, deepest first, resized to the embedding's grid, summed and refined."""

    def __init__(
        self, features: Sequence[FeatureSpec], config: SamConfig, backbone: EfficientViTConfig
    ) -> None:
        super().__init__()
        width = config.prompt.width
        self.grid = config.prompt.grid
        self.names = tuple(feature.name for feature in features)
        self.inputs = nn.ModuleList(
            ConvNorm(feature.channels, width, norm_eps=backbone.norm_eps) for feature in features
        )
        self.blocks = nn.Sequential(
            *(
                Residual(FusedMBConv(width, width, backbone, expand_ratio=config.expand_ratio))
                for _ in range(config.depth)
            )
        )
        self.project = nn.Conv2d(width, width, 1)
        self.norm = LayerNorm2d(width, backbone.norm_eps)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """(B, C, H, W) of H and W the grid."""
        maps = [
            self._resized(conv(features[name])) for name, conv in zip(self.names, self.inputs, strict=True)
        ]
        embedding_BCHW: Tensor = self.norm(self.project(self.blocks(sum(maps[1:], maps[0]))))
        return embedding_BCHW

    def _resized(self, x_BCHW: Tensor) -> Tensor:
        size = (self.grid, self.grid)
        if x_BCHW.shape[2:] == torch.Size(size):
            return x_BCHW
        return F.interpolate(upcast(x_BCHW), size, mode="bicubic").to(x_BCHW.dtype)


@register(*CONFIGS, task="promptable")
def build(spec: ModelSpec) -> PromptableModel:
    """The EfficientViT-SAM that `spec.name` names."""
    config = CONFIGS[spec.name]
    headless = replace(BACKBONES[config.backbone], head_widths=None, norm_eps=NORM_EPS)
    backbone = EfficientViT(replace(spec, name=config.backbone), headless)
    deepest_first = backbone.feature_specs[: -NUM_INPUTS - 1 : -1]
    return PromptableModel(spec, backbone, Neck(deepest_first, config, headless), config.prompt)
