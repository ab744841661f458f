"""EfficientViT M0-M5: memory-efficient vision transformer with cascaded group attention.

Liu et al., CVPR 2023, arXiv 2305.07027. Section numbers below are the paper's.

Shape suffixes: B images (or windows), C channels, H rows, W columns, N positions (H*W), D key width,
V value width, A attention heads, R rows and S columns of a bias table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
from vitesse.models.registry import register
from vitesse.spec import FeatureSpec, ModelSpec


@dataclass(frozen=True, kw_only=True)
class EfficientViTConfig:
    """One column of the paper's Table 1, per stage: width, blocks, heads; `kernels` by head index."""

    embed_dim: tuple[int, int, int]
    depths: tuple[int, int, int]
    num_heads: tuple[int, int, int]
    kernels: tuple[int, ...] = (7, 5, 3, 3)
    key_dim: int = 16


CONFIGS = {
    "efficientvit_m0": EfficientViTConfig(
        embed_dim=(64, 128, 192), depths=(1, 2, 3), num_heads=(4, 4, 4), kernels=(5, 5, 5, 5)
    ),
    "efficientvit_m1": EfficientViTConfig(embed_dim=(128, 144, 192), depths=(1, 2, 3), num_heads=(2, 3, 3)),
    "efficientvit_m2": EfficientViTConfig(embed_dim=(128, 192, 224), depths=(1, 2, 3), num_heads=(4, 3, 2)),
    "efficientvit_m3": EfficientViTConfig(
        embed_dim=(128, 240, 320), depths=(1, 2, 3), num_heads=(4, 3, 4), kernels=(5, 5, 5, 5)
    ),
    "efficientvit_m4": EfficientViTConfig(embed_dim=(128, 256, 384), depths=(1, 2, 3), num_heads=(4, 4, 4)),
    "efficientvit_m5": EfficientViTConfig(embed_dim=(192, 288, 384), depths=(1, 3, 4), num_heads=(3, 3, 4)),
}

# 7 everywhere, except that the paper's 384-px figure (1486 M MACs) is met by windows of 12, half of the
# first stage's map. 512 px has no published figure; 16 keeps that proportion.
WINDOW_SIZE = 7
HIGH_RESOLUTION_WINDOW_SIZE = {384: 12, 512: 16}


class CascadedGroupAttention(nn.Module):
    """Each head attends on its own split of the channels, plus the output of the head before it (3.2).

    (B, C, H, W) to the same shape. One learned bias per head and absolute offset (|rows|, |columns|).
    """

    resampled_on_load: ClassVar = {"attention_bias_ARS": (1, 2)}
    offset_index_NN: Tensor
    gathered_ANN: Tensor | None

    def __init__(
        self, dim: int, num_heads: int, key_dim: int, kernels: tuple[int, ...], resolution: tuple[int, int]
    ) -> None:
        super().__init__()
        value_dim = dim // num_heads
        self.widths = (key_dim, key_dim, value_dim)
        self.scale = key_dim**-0.5
        self.qkvs = nn.ModuleList(ConvNorm(value_dim, sum(self.widths)) for _ in range(num_heads))
        self.query_convs = nn.ModuleList(
            ConvNorm(key_dim, key_dim, kernel, groups=key_dim) for kernel in kernels[:num_heads]
        )
        self.proj = nn.Sequential(nn.ReLU(inplace=True), ConvNorm(dim, dim, norm_init=0))
        self.attention_bias_ARS = nn.Parameter(torch.zeros(num_heads, *resolution))
        self.register_buffer("offset_index_NN", offset_index(resolution), persistent=False)
        self.register_buffer("gathered_ANN", None, persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        biases = self.gathered_bias((height, width)).unbind()
        splits = x_BCHW.chunk(len(self.qkvs), dim=1)
        outputs: list[Tensor] = []
        for qkv, query_conv, x_BVHW, bias_NN in zip(self.qkvs, self.query_convs, splits, biases, strict=True):
            cascaded_BVHW = x_BVHW + outputs[-1] if outputs else x_BVHW
            q_BDHW, k_BDHW, v_BVHW = qkv(cascaded_BVHW).split(self.widths, dim=1)
            q_BND, k_BND, v_BNV = to_tokens(query_conv(q_BDHW)), to_tokens(k_BDHW), to_tokens(v_BVHW)
            with without_autocast(q_BND):
                logits_BNN = torch.baddbmm(bias_NN, upcast(q_BND), upcast(k_BND).mT, alpha=self.scale)
            out_BNV = logits_BNN.softmax(-1).to(v_BNV.dtype) @ v_BNV
            outputs.append(to_map(out_BNV, (height, width)))
        projected_BCHW: Tensor = self.proj(torch.cat(outputs, dim=1))
        return projected_BCHW

    def resampled(self, table_ARS: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        """A bias table of a model for another image size, fitted to this one's; its shape says its size."""
        rows, columns = self.attention_bias_ARS.shape[1:]
        return resample_bias(upcast(table_ARS), (rows, columns)).to(table_ARS.dtype)

    def gathered_bias(self, resolution: tuple[int, int]) -> Tensor:
        """The bias of every pair of positions of a map of this resolution: (A, N, N)."""
        if self.gathered_ANN is not None and resolution == tuple(self.attention_bias_ARS.shape[1:]):
            return upcast(self.gathered_ANN)
        table_ARS = resample_bias(self.attention_bias_ARS, resolution)
        same = table_ARS is self.attention_bias_ARS
        return upcast(table_ARS).flatten(1)[:, self.offset_index_NN if same else offset_index(resolution)]


def offset_index(resolution: tuple[int, int]) -> Tensor:
    """Where a pair of positions finds its bias in a flat table of absolute offsets: (N, N) int64."""
    height, width = resolution
    row_N = torch.arange(height).repeat_interleave(width)
    column_N = torch.arange(width).repeat(height)
    return (row_N[:, None] - row_N).abs() * width + (column_N[:, None] - column_N).abs()


def resample_bias(bias_ARS: Tensor, resolution: tuple[int, int]) -> Tensor:
    """A bias table for another map size, bicubic as in the paper's fine-tuning at higher resolution."""
    if tuple(bias_ARS.shape[1:]) == tuple(resolution):
        return bias_ARS
    return F.interpolate(bias_ARS[None], size=resolution, mode="bicubic", align_corners=False)[0]


class WindowAttention(nn.Module):
    """Cascaded group attention on the whole map, or in windows where the map is larger than a window.

    Maps that windows do not fill are zero-padded at the right and bottom; padded positions take part,
    as in the paper's released models.
    """

    def __init__(self, attention: CascadedGroupAttention, window_size: int) -> None:
        super().__init__()
        self.attention = attention
        self.window_size = window_size

    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        size = self.window_size
        if max(height, width) <= size:
            return self.attention(x_BCHW)  # type: ignore[no-any-return]
        if height % size or width % size:
            x_BCHW = F.pad(x_BCHW, (0, -width % size, 0, -height % size))
        rows, columns = x_BCHW.shape[2] // size, x_BCHW.shape[3] // size
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)  # moved with the channels last, as engines keep them
        windows = x_BHWC.reshape(-1, rows, size, columns, size, x_BHWC.shape[3]).transpose(2, 3)
        windows = self.attention(windows.flatten(0, 2).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x_BHWC = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        return x_BCHW[:, :, :height, :width]


class Block(nn.Sequential):
    """Sandwich layout: one attention between depthwise convolutions and feed-forwards (3.1)."""

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.dw0 = Residual(ConvNorm(dim, dim, 3, groups=dim, norm_init=0), drop_path)
        self.ffn0 = Residual(FeedForward(dim), drop_path)
        self.mixer = Residual(mixer, drop_path)
        self.dw1 = Residual(ConvNorm(dim, dim, 3, groups=dim, norm_init=0), drop_path)
        self.ffn1 = Residual(FeedForward(dim), drop_path)


class EfficientViT(StagedBackbone):
    """EfficientViT-M: overlapping patch embedding, three stages at strides 16, 32 and 64, BN-linear head."""

    min_image_size = 16

    def __init__(self, spec: ModelSpec, config: EfficientViTConfig) -> None:
        super().__init__()
        self.spec = spec
        self.feature_specs = tuple(
            FeatureSpec(name=f"stage{i + 1}", channels=dim, stride=16 * 2**i)
            for i, dim in enumerate(config.embed_dim)
        )
        self.stem = PatchEmbed(spec.in_chans, config.embed_dim[0])
        self.stages = _stages(spec, config)
        self.head = ClassifierHead(config.embed_dim[-1], spec.num_classes, spec.distilled)


def _stages(spec: ModelSpec, config: EfficientViTConfig) -> nn.ModuleList:
    window = window_size_for(spec.image_size)
    rates = iter(drop_path_rates(spec.drop_path_rate, sum(config.depths)))
    resolution = (math.ceil(spec.image_size[0] / 16), math.ceil(spec.image_size[1] / 16))
    stages = nn.ModuleList()
    for i, dim in enumerate(config.embed_dim):
        subsample = None
        if i > 0:
            subsample = Subsample(config.embed_dim[i - 1], dim)
            resolution = (math.ceil(resolution[0] / 2), math.ceil(resolution[1] / 2))
        attended = resolution if max(resolution) <= window else (window, window)
        blocks = []
        for _ in range(config.depths[i]):
            attention = CascadedGroupAttention(
                dim, config.num_heads[i], config.key_dim, config.kernels, attended
            )
            blocks.append(Block(dim, WindowAttention(attention, window), next(rates)))
        stages.append(SubsampledStage(subsample, blocks))
    return stages


def window_size_for(image_size: tuple[int, int]) -> int:
    """Window side in positions for an image size in pixels: 7, but 12 at 384 px and 16 at 512 px."""
    return HIGH_RESOLUTION_WINDOW_SIZE.get(max(image_size), WINDOW_SIZE)


@register(*CONFIGS)
def build(spec: ModelSpec) -> EfficientViT:
    """The EfficientViT-M that `spec.name` names."""
    return EfficientViT(spec, CONFIGS[spec.name])
