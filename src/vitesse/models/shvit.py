"""SHViT S1-S4: single-head vision transformer with a memory-efficient macro design.

Yun and Ro, CVPR 2024, arXiv 2401.16456. Section numbers below are the paper's.

Shape suffixes: B images, C channels, P attended channels, H rows, W columns, N positions (H*W), D key width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitesse.errors import ConfigError
from vitesse.layers import (
    ClassifierHead,
    ConvNorm,
    FeedForward,
    PatchEmbed,
    Residual,
    Subsample,
    SubsampledStage,
    drop_path_rates,
    to_map,
    to_tokens,
    upcast,
    without_autocast,
)
from vitesse.models.backbone import StagedBackbone
from vitesse.models.registry import check_number, check_parts, check_stages, check_value, configured, register
from vitesse.spec import FeatureSpec, ModelSpec


@dataclass(frozen=True, kw_only=True)
class SHViTConfig:
    """One column of the paper's Table 1, per stage: width, blocks, attended channels (0: no attention).

    Attributes:
        partial_ratio: share of the channels that stages with attention attend on, instead of `partial_dim`.
        stem_stride: pixels a position of the first stage, a power of two.
        ffn_dims: hidden width of every feed-forward of each stage, those of its subsampling first, instead
            of twice its width.
        key_dims: width of queries and keys in every attention of each stage, instead of `key_dim`.
    """

    embed_dim: tuple[int, int, int]
    depths: tuple[int, int, int]
    partial_dim: tuple[int, int, int]
    key_dim: int = 16
    partial_ratio: float | None = None
    stem_stride: int = 16
    ffn_dims: tuple[tuple[int, ...], ...] = ()
    key_dims: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        check_stages(self, 3, "embed_dim", "depths", "partial_dim")
        check_value("stem_stride", self.stem_stride, (2, 4, 8, 16, 32))
        least = max(8, self.stem_stride // 2)
        if min(self.embed_dim) < least:
            raise ConfigError(f"embed_dim: expected widths of {least} or more, got {self.embed_dim}")
        check_number(self, "key_dim", 1)
        if self.partial_ratio is not None:
            check_number(self, "partial_ratio", 0, whole=False)
        if self.partial_ratio is not None and self.partial_ratio > 1:
            raise ConfigError(f"partial_ratio: expected a share, 0 to 1, got {self.partial_ratio}")
        if any(part > dim for part, dim in zip(self.partial_dim, self.embed_dim, strict=True)):
            raise ConfigError(f"partial_dim: expected at most {self.embed_dim}, got {self.partial_dim}")
        check_parts(self, "ffn_dims", [depth + 2 * (i > 0) for i, depth in enumerate(self.depths)])
        mixers = [depth if part else 0 for depth, part in zip(self.depths, self.attended, strict=True)]
        check_parts(self, "key_dims", mixers)

    @property
    def attended(self) -> tuple[int, ...]:
        """Channels that each stage attends on."""
        if self.partial_ratio is None:
            return self.partial_dim
        pairs = zip(self.partial_dim, self.embed_dim, strict=True)
        return tuple(round(dim * self.partial_ratio) if part else 0 for part, dim in pairs)


CONFIGS = {
    "shvit_s1": SHViTConfig(embed_dim=(128, 224, 320), depths=(2, 4, 5), partial_dim=(0, 48, 68)),
    "shvit_s2": SHViTConfig(embed_dim=(128, 308, 448), depths=(2, 4, 5), partial_dim=(0, 66, 96)),
    "shvit_s3": SHViTConfig(embed_dim=(192, 352, 448), depths=(3, 5, 5), partial_dim=(0, 75, 96)),
    "shvit_s4": SHViTConfig(embed_dim=(224, 336, 448), depths=(4, 7, 6), partial_dim=(0, 72, 96)),
}

ABLATIONS: dict[str, dict[str, Any]] = {
    "no_attention": {"partial_ratio": 0.0},
    "eighth": {"partial_ratio": 0.125},
    "half": {"partial_ratio": 0.5},
    "all_channels": {"partial_ratio": 1.0},
    "stem8": {"stem_stride": 8},
    "stem4": {"stem_stride": 4},
}
"""Attended channels as the paper's Table 6 and figure 6 change them, but for the multi-head row; the stem's
stride as in figure 2, with three stages as ever where the paper has four behind a stride of 4."""


class SingleHeadSelfAttention(nn.Module):
    """One head attends on the first `partial_dim` channels, the others pass by (3.2).

    (B, C, H, W) to the same shape. The attended channels are normalised over all of their positions
    and channels; the paper calls this layer normalisation.
    """

    def __init__(self, dim: int, partial_dim: int, key_dim: int) -> None:
        super().__init__()
        self.split_widths = [partial_dim, dim - partial_dim]
        self.qkv_widths = (key_dim, key_dim, partial_dim)
        self.scale = key_dim**-0.5
        self.norm = nn.GroupNorm(1, partial_dim)
        self.qkv = ConvNorm(partial_dim, sum(self.qkv_widths))
        self.proj = nn.Sequential(nn.ReLU(inplace=True), ConvNorm(dim, dim, norm_init=0))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BPHW, passed_BCHW = torch.split(x_BCHW, self.split_widths, dim=1)
        q_BDHW, k_BDHW, v_BPHW = self.qkv(self.norm(x_BPHW)).split(self.qkv_widths, dim=1)
        q_BND, k_BND, v_BNP = to_tokens(q_BDHW), to_tokens(k_BDHW), to_tokens(v_BPHW)
        with without_autocast(x_BCHW):
            logits_BNN = upcast(q_BND) * self.scale @ upcast(k_BND).mT
        out_BNP = logits_BNN.softmax(-1).to(v_BNP.dtype) @ v_BNP
        out_BPHW = to_map(out_BNP, (x_BCHW.shape[2], x_BCHW.shape[3]))
        projected_BCHW: Tensor = self.proj(torch.cat((out_BPHW, passed_BCHW), dim=1))
        return projected_BCHW


class Block(nn.Sequential):
    """Depthwise convolution, single-head attention where the stage has it, feed-forward (3.3)."""

    def __init__(
        self,
        dim: int,
        partial_dim: int,
        key_dims: Iterator[int],
        ffn_dims: Iterator[int],
        drop_path: float,
    ) -> None:
        super().__init__()
        self.dw = Residual(ConvNorm(dim, dim, 3, groups=dim, norm_init=0), drop_path)
        if partial_dim:
            self.mixer = Residual(SingleHeadSelfAttention(dim, partial_dim, next(key_dims)), drop_path)
        self.ffn = Residual(FeedForward(dim, next(ffn_dims, None)), drop_path)


class SHViT(StagedBackbone):
    """Overlapping patch embedding, three stages at strides 16, 32 and 64, BN-linear head."""

    def __init__(self, spec: ModelSpec, config: SHViTConfig) -> None:
        super().__init__()
        self.spec = spec
        self.feature_specs = tuple(
            FeatureSpec(name=f"stage{i + 1}", channels=dim, stride=config.stem_stride * 2**i)
            for i, dim in enumerate(config.embed_dim)
        )
        self.min_image_size = config.stem_stride
        self.stem = PatchEmbed(spec.in_chans, config.embed_dim[0], config.stem_stride)
        rates = iter(drop_path_rates(spec.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList()
        for i, dim in enumerate(config.embed_dim):
            ffn_dims = iter(config.ffn_dims[i] if config.ffn_dims else ())
            key_dims = iter(config.key_dims[i] if config.key_dims else [config.key_dim] * config.depths[i])
            subsample = Subsample(config.embed_dim[i - 1], dim, ffn_dims) if i > 0 else None
            blocks = [
                Block(dim, config.attended[i], key_dims, ffn_dims, next(rates))
                for _ in range(config.depths[i])
            ]
            self.stages.append(SubsampledStage(subsample, blocks))
        self.head = ClassifierHead(config.embed_dim[-1], spec.num_classes, spec.distilled)


@register(*CONFIGS, changes=ABLATIONS)
def build(spec: ModelSpec) -> SHViT:
    """The SHViT that `spec` names or describes."""
    return SHViT(spec, configured(CONFIGS, spec))
