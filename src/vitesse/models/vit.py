"""Plain vision transformer in DeiT's layout, tiny, small and base, with patches of 16 pixels.

Dosovitskiy et al., ICLR 2021, arXiv 2010.11929; Touvron et al., ICML 2021, arXiv 2012.12877.

Shape suffixes: B images, C channels, H rows, W columns of patches, P prefix tokens, N tokens, A attention
heads, D head width.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.models.backbone import Backbone
from vitesse.models.layers import (
    Residual,
    drop_path_rates,
    fit_position_table,
    logits_or_pair,
    resample_position_table,
)
from vitesse.models.registry import register
from vitesse.spec import FeatureSpec, ModelSpec

PATCH_SIZE = 16
MLP_RATIO = 4
NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Width, blocks and heads."""

    width: int
    num_heads: int
    depth: int = 12


CONFIGS = {
    "vit_tiny_patch16": ViTConfig(width=192, num_heads=3),
    "vit_small_patch16": ViTConfig(width=384, num_heads=6),
    "vit_base_patch16": ViTConfig(width=768, num_heads=12),
}


class SelfAttention(nn.Module):
    """Multi-head softmax attention: (B, N, C) to the same shape."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        q_BAND, k_BAND, v_BAND = (
            torch.unflatten(part_BNC, 2, (self.num_heads, -1)).transpose(1, 2)
            for part_BNC in self.qkv(x_BNC).chunk(3, dim=2)
        )
        out_BAND = F.scaled_dot_product_attention(q_BAND, k_BAND, v_BAND)
        projected_BNC: Tensor = self.proj(out_BAND.transpose(1, 2).flatten(2))
        return projected_BNC


class Block(nn.Sequential):
    """Attention and feed-forward, each after a normalisation and beside a skip."""

    def __init__(self, dim: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        hidden = dim * MLP_RATIO
        attention = OrderedDict(norm=nn.LayerNorm(dim, NORM_EPS), attention=SelfAttention(dim, num_heads))
        ffn = OrderedDict(
            norm=nn.LayerNorm(dim, NORM_EPS),
            fc1=nn.Linear(dim, hidden),
            act=nn.GELU(),
            fc2=nn.Linear(hidden, dim),
        )
        self.attention = Residual(nn.Sequential(attention), drop_path)
        self.ffn = Residual(nn.Sequential(ffn), drop_path)


class Head(nn.Module):
    """A linear classifier on the class token, and one on the distillation token: (B, P, C) to (B, K).

    With both, training returns the pair (logits, distillation logits), evaluation their mean.
    """

    def __init__(self, dim: int, num_classes: int, distilled: bool) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, num_classes)
        self.classifier_dist = nn.Linear(dim, num_classes) if distilled else None

    def forward(self, x_BPC: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        distilled_BK = None if self.classifier_dist is None else self.classifier_dist(x_BPC[:, 1])
        return logits_or_pair(self.classifier(x_BPC[:, 0]), distilled_BK, self.training)


class VisionTransformer(Backbone):
    """Patches and one or two learned tokens through transformer blocks; its one feature map are the patches.

    Image sides that are no multiple of the patch are refused. For another image size than the one it was
    built for, the position table is resampled.
    """

    min_image_size = PATCH_SIZE
    size_multiple = PATCH_SIZE
    resampled_on_load: ClassVar = {"pos_embed": (1,)}

    def __init__(self, spec: ModelSpec, config: ViTConfig) -> None:
        super().__init__()
        self.spec = spec
        self.check_image_size()
        width = config.width
        self.feature_specs = (FeatureSpec(name="patches", channels=width, stride=PATCH_SIZE),)
        self.grid = (spec.image_size[0] // PATCH_SIZE, spec.image_size[1] // PATCH_SIZE)
        self.num_prefix_tokens = 2 if spec.distilled else 1
        self.patch_embed = nn.Conv2d(spec.in_chans, width, PATCH_SIZE, PATCH_SIZE)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.dist_token = nn.Parameter(torch.empty(1, 1, width)) if spec.distilled else None
        num_tokens = self.num_prefix_tokens + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, width))
        rates = drop_path_rates(spec.drop_path_rate, config.depth)
        self.blocks = nn.Sequential(*(Block(width, config.num_heads, rate) for rate in rates))
        self.norm = nn.LayerNorm(width, NORM_EPS)
        self.head = Head(width, spec.num_classes, spec.distilled)
        self.apply(_init_weights)
        for token in (self.cls_token, self.dist_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def resampled(self, table_1NC: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        """A position table of a model for another image size (pixels), fitted to this one's grid."""
        source = None if image_size is None else (image_size[0] // PATCH_SIZE, image_size[1] // PATCH_SIZE)
        return fit_position_table(table_1NC, self.num_prefix_tokens, self.grid, source)

    def forward_tokens(self, x_BCHW: Tensor) -> Tensor:
        """All tokens after the last block, normalised: (B, P+H*W, C), the class token first."""
        patches_BCHW = self.patch_embed(x_BCHW)
        grid = (patches_BCHW.shape[2], patches_BCHW.shape[3])
        prefix = [
            token.expand(x_BCHW.shape[0], -1, -1)
            for token in (self.cls_token, self.dist_token)
            if token is not None
        ]
        x_BNC = torch.cat([*prefix, patches_BCHW.flatten(2).mT], dim=1)
        x_BNC = x_BNC + resample_position_table(self.pos_embed, self.num_prefix_tokens, self.grid, grid)
        normed_BNC: Tensor = self.norm(self.blocks(x_BNC))
        return normed_BNC

    def forward_features(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        rows, columns = (side // PATCH_SIZE for side in x_BCHW.shape[2:])
        patches_BNC = self.forward_tokens(x_BCHW)[:, self.num_prefix_tokens :]
        return {self.feature_specs[0].name: torch.unflatten(patches_BNC.mT, 2, (rows, columns))}

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.check_input(x_BCHW)
        prefix_BPC = self.forward_tokens(x_BCHW)[:, : self.num_prefix_tokens]
        logits_BK: Tensor = self.head(prefix_BPC)
        return logits_BK


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


@register(*CONFIGS)
def build(spec: ModelSpec) -> VisionTransformer:
    """The vision transformer that `spec.name` names."""
    return VisionTransformer(spec, CONFIGS[spec.name])
