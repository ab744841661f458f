"""EfficientSAM-Ti and -S: Segment Anything with a plain vision transformer as image encoder.

Xiong et al., CVPR 2024, arXiv 2312.00863. The encoder is that of the paper; the decoder is SAM's, which the
paper keeps and the authors' release varies.

Shape suffixes: B images, C channels, H rows, W columns of patches, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.heads.promptable import PromptConfig
from vitesse.layers import LayerNorm2d, upcast
from vitesse.models.backbone import Backbone
from vitesse.models.promptable import PromptableModel
from vitesse.models.registry import register
from vitesse.models.transformer import NORM_EPS, SIZES, Block, ViTConfig
from vitesse.spec import FeatureSpec, ModelSpec

TABLE_SIDE = 14
"""Rows and columns of the learned positions: the patches of the 224 pixels of pre-training."""


@dataclass(frozen=True, kw_only=True)
class EfficientSamConfig:
    """One model: its plain ViT and its decoder."""

    vit: ViTConfig
    prompt: PromptConfig = field(default_factory=PromptConfig)


CONFIGS = {
    f"efficientsam_{letters}": EfficientSamConfig(vit=ViTConfig(width=width, num_heads=heads))
    for letters, (width, heads) in (("ti", SIZES["tiny"]), ("s", SIZES["small"]))
}


class PatchTransformer(Backbone):
    """A plain ViT whose patches have no class token beside them and no normalisation after them."""

    def __init__(self, spec: ModelSpec, config: ViTConfig) -> None:
        super().__init__()
        self.spec = spec
        self.min_image_size = self.size_multiple = config.patch_size
        width = config.width
        self.feature_specs = (FeatureSpec(name="patches", channels=width, stride=config.patch_size),)
        self.patch_embed = nn.Conv2d(spec.in_chans, width, config.patch_size, config.patch_size)
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + TABLE_SIDE**2, width))
        blocks = (Block(width, config.num_heads, spec.drop_path_rate) for _ in range(config.depth))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Identity()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward_features(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        patches_BCHW = self.patch_embed(x_BCHW)
        size = (patches_BCHW.shape[2], patches_BCHW.shape[3])
        x_BNC = (patches_BCHW + self.positions(size)).flatten(2).mT
        return {self.feature_specs[0].name: torch.unflatten(self.blocks(x_BNC).mT, 2, size)}

    def positions(self, size: tuple[int, int]) -> Tensor:
        """The learned positions for so many rows and columns: (1, C, H, W).

        The first row of the table belongs to the class token of pre-training.
        """
        table_1CHW = torch.unflatten(self.pos_embed[:, 1:].mT, 2, (TABLE_SIDE, TABLE_SIDE))
        return F.interpolate(upcast(table_1CHW), size, mode="bicubic").to(table_1CHW.dtype)


class Neck(nn.Sequential):
    """The patches in the decoder's width: (B, C, H, W) of one name to the embedding."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__(
            nn.Conv2d(width, out_width, 1, bias=False),
            LayerNorm2d(out_width, NORM_EPS),
            nn.Conv2d(out_width, out_width, 3, padding=1, bias=False),
            LayerNorm2d(out_width, NORM_EPS),
        )

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        (x_BCHW,) = features.values()
        for layer in self:
            x_BCHW = layer(x_BCHW)
        return x_BCHW


class EfficientSam(PromptableModel):
    """Takes images of as many patches as the decoder's grid has positions, and no others."""

    @property
    def side(self) -> int:
        """Of its images, in pixels."""
        return self.backbone.size_multiple * self.decoder.prompt_encoder.grid

    def takes(self, height: int, width: int) -> bool:
        return height == width == self.side

    def _sizes(self) -> str:
        return f"height and width {self.side}"


@register(*CONFIGS, task="promptable")
def build(spec: ModelSpec) -> EfficientSam:
    """The EfficientSAM that `spec.name` names."""
    config = CONFIGS[spec.name]
    backbone = PatchTransformer(spec, config.vit)
    return EfficientSam(spec, backbone, Neck(config.vit.width, config.prompt.width), config.prompt)
