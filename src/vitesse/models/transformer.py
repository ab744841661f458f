"""The plain transformer's parts, for every model whose images become tokens.

Dosovitskiy et al., ICLR 2021, arXiv 2010.11929. The names are those of DeiT's layout, so that weights of a
plain ViT fit wherever these parts are used.

Shape suffixes: B images, C channels, H rows, W columns of patches, P prefix tokens, N tokens, A attention
heads, D head width, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.errors import ConfigError
from vitesse.layers import (
    Residual,
    drop_path_rates,
    fit_position_table,
    logits_or_pair,
    resample_position_table,
    upcast,
)
from vitesse.models.backbone import Backbone
from vitesse.models.registry import check_number, check_parts
from vitesse.spec import FeatureSpec, ModelSpec

MLP_RATIO = 4
NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Width, heads, blocks, and the patch's side in pixels.

    Attributes:
        key_dims: width of each head's queries and keys in every block, instead of an equal share of the
            width; listed as of one stage, as `ffn_dims` is.
        ffn_dims: hidden width of every block's feed-forward, instead of `MLP_RATIO` times the width.
    """

    width: int
    num_heads: int
    depth: int = 12
    patch_size: int = 16
    key_dims: tuple[tuple[int, ...], ...] = ()
    ffn_dims: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for key in ("width", "num_heads", "depth", "patch_size"):
            check_number(self, key, 1)
        if self.width % self.num_heads:
            raise ConfigError(
                f"num_heads: expected a divisor of the width {self.width}, got {self.num_heads}"
            )
        check_parts(self, "key_dims", [self.depth])
        check_parts(self, "ffn_dims", [self.depth])

    def blocks(self, drop_path_rate: float) -> Iterator[Block]:
        """All of them, dropped the more often the later they come."""
        rates = drop_path_rates(drop_path_rate, self.depth)
        keys, ffns = (dims[0] if dims else [None] * self.depth for dims in (self.key_dims, self.ffn_dims))
        for rate, key_dim, ffn_dim in zip(rates, keys, ffns, strict=True):
            yield Block(self.width, self.num_heads, rate, key_dim, ffn_dim)


SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
"""Width and heads by name (arXiv 2012.12877, table 1)."""


class SelfAttention(nn.Module):
    """Multi-head softmax attention: (B, N, C) to the same shape.

    `key_dim` is the width of each head's queries and keys, by default that of its values.
    """

    def __init__(self, dim: int, num_heads: int, key_dim: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        keys = dim if key_dim is None else key_dim * num_heads
        self.qkv_widths = (keys, keys, dim)
        self.scale = float((keys // num_heads) ** -0.5)
        self.qkv = nn.Linear(dim, sum(self.qkv_widths))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BNC: Tensor, bias_B1NN: Tensor | None = None) -> Tensor:
        """With `bias_B1NN`, which may have sides of 1, it is added to every head's logits."""
        q_BAND, k_BAND, v_BAND = self.heads(x_BNC)
        return self.merged(F.scaled_dot_product_attention(q_BAND, k_BAND, v_BAND, bias_B1NN))

    def heads(self, x_BNC: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values."""
        return tuple(
            torch.unflatten(part_BNC, 2, (self.num_heads, -1)).transpose(1, 2)
            for part_BNC in self.qkv(x_BNC).split(self.qkv_widths, dim=2)
        )

    def merged(self, out_BAND: Tensor) -> Tensor:
        """The heads' outputs side by side, projected."""
        projected_BNC: Tensor = self.proj(out_BAND.transpose(1, 2).flatten(2))
        return projected_BNC


class NormedAttention(nn.Module):
    """Normalisation, then attention."""

    def __init__(self, dim: int, num_heads: int, key_dim: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, NORM_EPS)
        self.attention = SelfAttention(dim, num_heads, key_dim)

    def forward(self, x_BNC: Tensor, bias_B1NN: Tensor | None = None) -> Tensor:
        out_BNC: Tensor = self.attention(self.norm(x_BNC), bias_B1NN)
        return out_BNC


class Block(nn.Module):
    """Attention and feed-forward, each after a normalisation and beside a skip: (B, N, C) to the same."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        drop_path: float,
        key_dim: int | None = None,
        ffn_dim: int | None = None,
    ) -> None:
        super().__init__()
        hidden = ffn_dim or dim * MLP_RATIO
        ffn = OrderedDict(
            norm=nn.LayerNorm(dim, NORM_EPS),
            fc1=nn.Linear(dim, hidden),
            act=nn.GELU(),
            fc2=nn.Linear(hidden, dim),
        )
        self.attention = Residual(NormedAttention(dim, num_heads, key_dim), drop_path)
        self.ffn = Residual(nn.Sequential(ffn), drop_path)

    def forward(self, x_BNC: Tensor, bias_B1NN: Tensor | None = None) -> Tensor:
        """See `SelfAttention`."""
        out_BNC: Tensor = self.ffn(self.attention(x_BNC, bias_B1NN))
        return out_BNC


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


class TokenBackbone(Backbone):
    """A model whose images become tokens, one a patch, that go through blocks; the frame of a plain ViT.

    Image sides that are no multiple of the patch are refused. For another image size than the one it was
    built for, the position table is resampled. The one feature map are the patches.
    """

    resampled_on_load: ClassVar = {"pos_embed": (1,), "patch_embed.weight": (2, 3)}

    def __init__(self, spec: ModelSpec, config: ViTConfig, num_prefix_tokens: int = 1) -> None:
        super().__init__()
        self.spec = spec
        self.min_image_size = self.size_multiple = config.patch_size
        self.check_image_size()
        width = config.width
        self.feature_specs = (FeatureSpec(name="patches", channels=width, stride=config.patch_size),)
        self.grid = self.grid_of(spec.image_size)
        self.num_prefix_tokens = num_prefix_tokens
        self.patch_embed = nn.Conv2d(spec.in_chans, width, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        num_tokens = num_prefix_tokens + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, width))
        self.blocks = nn.Sequential(*config.blocks(spec.drop_path_rate))
        self.norm = nn.LayerNorm(width, NORM_EPS)
        self.head = Head(width, spec.num_classes, spec.distilled)

    def reset_parameters(self) -> None:
        """Fresh linear layers, learned tokens and position table."""
        self.apply(_init_linear)
        for name, parameter in self.named_parameters():
            if name.endswith(("_token", "_embed")):
                nn.init.trunc_normal_(parameter, std=0.02)

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches in an image of so many pixels."""
        return image_size[0] // self.size_multiple, image_size[1] // self.size_multiple

    def resampled(self, table: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        """Another model's position table (1, N, C), or patch embedding (C, I, H, W), fitted to this model's.

        `image_size` in pixels is that of the other model, where it is known.
        """
        if table.ndim == 4:
            return resample_patch_embedding(table, self.size_multiple)
        source = None if image_size is None else self.grid_of(image_size)
        return fit_position_table(table, self.num_prefix_tokens, self.grid, source)

    def embed(self, x_BCHW: Tensor) -> Tensor:
        """Patches with their positions: (B, H*W, C)."""
        patches_BCHW = self.patch_embed(x_BCHW)
        grid = (patches_BCHW.shape[2], patches_BCHW.shape[3])
        table_1NC = resample_position_table(self.pos_embed, self.num_prefix_tokens, self.grid, grid)
        patches_BNC: Tensor = patches_BCHW.flatten(2).mT
        return patches_BNC + table_1NC[:, self.num_prefix_tokens :]

    def as_maps(self, patches_BNC: Tensor, x_BCHW: Tensor) -> dict[str, Tensor]:
        """The patches of images as their feature map."""
        grid = self.grid_of((x_BCHW.shape[2], x_BCHW.shape[3]))
        return {self.feature_specs[0].name: torch.unflatten(patches_BNC.mT, 2, grid)}


def _init_linear(module: nn.Module) -> None:
    """Linear layers normal with deviation 0.02, their biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def resample_patch_embedding(weight_OIHW: Tensor, patch_size: int) -> Tensor:
    """A patch embedding for smaller patches: what it gives for a patch enlarged to its old side, bilinearly.

    So a model of small patches begins as the one of large patches on enlarged images, but for the seams
    between patches. For larger patches it is given back as it is.
    """
    old = (weight_OIHW.shape[2], weight_OIHW.shape[3])
    if min(old) <= patch_size:
        return weight_OIHW
    pixels = patch_size * patch_size
    full_OIHW = upcast(weight_OIHW)
    unit_P1hw = torch.eye(pixels, dtype=full_OIHW.dtype).view(pixels, 1, patch_size, patch_size)
    enlarged_PHW = F.interpolate(unit_P1hw, size=old, mode="bilinear", align_corners=False)[:, 0]
    resampled_OIP = torch.einsum("oihw,phw->oip", full_OIHW, enlarged_PHW)
    return torch.unflatten(resampled_OIP, 2, (patch_size, patch_size)).to(weight_OIHW.dtype)
