"""EfficientViT M0-M5: memory-efficient vision transformer with cascaded group attention.

Liu et al., CVPR 2023, arXiv 2305.07027. Section numbers below are the paper's.

Shape suffixes: B images (or windows), C channels, H rows, W columns, N positions (H*W), D key width,
V value width, A attention heads, R rows and S columns of a bias table.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    layer_norm_like,
    replace_modules,
    to_map,
    to_tokens,
    upcast,
    without_autocast,
)
from vitesse.models.backbone import StagedBackbone
from vitesse.models.registry import check_number, check_parts, check_stages, check_value, configured, register
from vitesse.spec import FeatureSpec, ModelSpec

LEAST_FFN_RATIO = 0.125
"""One hidden channel at the least width, 8."""
LAYOUTS = {
    "sandwich": ("dw0", "ffn0", "mixer", "dw1", "ffn1"),
    "alternating": ("dw0", "mixer0", "ffn0", "dw1", "mixer1", "ffn1"),
}


@dataclass(frozen=True, kw_only=True)
class EfficientViTConfig:
    """One column of the paper's Table 1, per stage: width, blocks, heads; `kernels` by head index.

    Attributes:
        key_dim: width of each head's queries and keys; 0 is that of its values.
        window_size: side in positions; None takes what fits the image size (`window_size_for`).
        ffn_ratio: hidden width of the blocks' feed-forwards, of their width.
        layout: `sandwich` has one attention between two feed-forwards, `alternating` one before each.
        attention: what a head sees: `cascaded` its split of the channels and the output of the head before
            it, `split` its split alone, `full` all channels.
        local_mixing: depthwise convolutions before the parts of a block.
        norm: BatchNorm, or LayerNorm over channels.
        ffn_dims: hidden width of every feed-forward of each stage, those of its subsampling first, instead
            of `ffn_ratio`.
        key_dims: width of each head's queries and keys in every attention of each stage, instead of
            `key_dim`.
    """

    embed_dim: tuple[int, int, int]
    depths: tuple[int, int, int]
    num_heads: tuple[int, int, int]
    kernels: tuple[int, ...] = (7, 5, 3, 3)
    key_dim: int = 16
    window_size: int | None = None
    ffn_ratio: float = 2
    layout: Literal["sandwich", "alternating"] = "sandwich"
    attention: Literal["cascaded", "split", "full"] = "cascaded"
    local_mixing: bool = True
    norm: Literal["batch", "layer"] = "batch"
    act: Literal["relu", "hardswish"] = "relu"
    ffn_dims: tuple[tuple[int, ...], ...] = ()
    key_dims: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        check_stages(self, 3, "embed_dim", "depths", "num_heads")
        odd = isinstance(self.kernels, tuple) and all(type(k) is int and k % 2 == 1 for k in self.kernels)
        if not odd or min(self.kernels, default=1) < 1:
            raise ConfigError(f"kernels: expected odd whole numbers, one a head, got {self.kernels!r}")
        if len(self.kernels) < max(self.num_heads):
            raise ConfigError(
                f"kernels: expected one for each of {max(self.num_heads)} heads, got {self.kernels}"
            )
        for dim, heads in zip(self.embed_dim, self.num_heads, strict=True):
            if heads < 1 or dim < 8 or dim % heads:
                raise ConfigError(f"num_heads: expected a divisor of the width {dim}, got {heads}")
        check_number(self, "key_dim", 0)
        if self.window_size is not None:
            check_number(self, "window_size", 1)
        check_number(self, "ffn_ratio", LEAST_FFN_RATIO, whole=False)
        check_value("local_mixing", self.local_mixing, (True, False))
        for key in ("layout", "attention", "norm", "act"):
            check_value(key, getattr(self, key), get_args(get_type_hints(type(self))[key]))
        check_parts(self, "ffn_dims", [2 * depth + 2 * (i > 0) for i, depth in enumerate(self.depths)])
        mixers = sum(name.startswith("mixer") for name in LAYOUTS[self.layout])
        check_parts(self, "key_dims", [mixers * depth for depth in self.depths])


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

ABLATIONS: dict[str, dict[str, Any]] = {
    "alternating": {"layout": "alternating"},
    "full_heads": {"attention": "full"},
    "no_cascade": {"attention": "split"},
    "equal_qkv": {"key_dim": 0},
    "wide_ffn": {"ffn_ratio": 4},
    "no_local_mixing": {"local_mixing": False},
    "layer_norm": {"norm": "layer"},
    "hardswish": {"act": "hardswish"},
}
"""What the paper's Table 6 changes, one thing each."""

# 7 everywhere, except that the paper's 384-px figure (1486 M MACs) is met by windows of 12, half of the
# first stage's map. 512 px has no published figure; 16 keeps that proportion.
WINDOW_SIZE = 7
HIGH_RESOLUTION_WINDOW_SIZE = {384: 12, 512: 16}


class CascadedGroupAttention(nn.Module):
    """Each head attends on its own split of the channels, plus the output of the head before it (3.2).

    (B, C, H, W) to the same shape. One learned bias per head and absolute offset (|rows|, |columns|).
    `feed` is what a head sees, see `EfficientViTConfig.attention`.
    """

    resampled_on_load: ClassVar = {"attention_bias_ARS": (1, 2)}
    offset_index_NN: Tensor
    gathered_ANN: Tensor | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        key_dim: int,
        kernels: tuple[int, ...],
        resolution: tuple[int, int],
        feed: str = "cascaded",
    ) -> None:
        super().__init__()
        value_dim = dim // num_heads
        self.feed = feed
        self.qkv_widths = (key_dim, key_dim, value_dim)
        self.scale = key_dim**-0.5
        seen_dim = dim if feed == "full" else value_dim
        self.qkvs = nn.ModuleList(ConvNorm(seen_dim, sum(self.qkv_widths)) for _ in range(num_heads))
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
        heads = len(self.qkvs)
        parts = [x_BCHW] * heads if self.feed == "full" else x_BCHW.chunk(heads, dim=1)
        outputs: list[Tensor] = []
        for qkv, query_conv, part, bias_NN in zip(self.qkvs, self.query_convs, parts, biases, strict=True):
            seen = part + outputs[-1] if outputs and self.feed == "cascaded" else part
            q_BDHW, k_BDHW, v_BVHW = qkv(seen).split(self.qkv_widths, dim=1)
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
    """Sandwich layout: one attention between depthwise convolutions and feed-forwards (3.1).

    The alternating layout has an attention before each feed-forward, as other transformers do.
    """

    def __init__(
        self,
        dim: int,
        config: EfficientViTConfig,
        mixer: Callable[[], nn.Module],
        ffn_dims: Iterator[int],
        drop_path: float,
    ) -> None:
        default_ffn_dim = round(dim * config.ffn_ratio)
        make: dict[str, Callable[[], nn.Module]] = {
            "dw": lambda: ConvNorm(dim, dim, 3, groups=dim, norm_init=0),
            "ffn": lambda: FeedForward(dim, next(ffn_dims, default_ffn_dim)),
            "mixer": mixer,
        }
        names = [name for name in LAYOUTS[config.layout] if config.local_mixing or not name.startswith("dw")]
        super().__init__(
            OrderedDict((name, Residual(make[name.rstrip("01")](), drop_path)) for name in names)
        )


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
        if config.norm == "layer":
            for kind in (nn.BatchNorm1d, nn.BatchNorm2d):
                replace_modules(self, kind, layer_norm_like)
        if config.act == "hardswish":
            replace_modules(self, nn.ReLU, lambda _: nn.Hardswish(inplace=True))


def _stages(spec: ModelSpec, config: EfficientViTConfig) -> nn.ModuleList:
    window = config.window_size or window_size_for(spec.image_size)
    rates = iter(drop_path_rates(spec.drop_path_rate, sum(config.depths)))
    resolution = (math.ceil(spec.image_size[0] / 16), math.ceil(spec.image_size[1] / 16))
    stages = nn.ModuleList()
    for i, dim in enumerate(config.embed_dim):
        ffn_dims, key_dims = (iter(dims[i] if dims else ()) for dims in (config.ffn_dims, config.key_dims))
        subsample = None
        if i > 0:
            subsample = Subsample(config.embed_dim[i - 1], dim, ffn_dims)
            resolution = (math.ceil(resolution[0] / 2), math.ceil(resolution[1] / 2))
        mixer = functools.partial(_mixer, config, i, key_dims, resolution, window)
        blocks = [Block(dim, config, mixer, ffn_dims, next(rates)) for _ in range(config.depths[i])]
        stages.append(SubsampledStage(subsample, blocks))
    return stages


def _mixer(
    config: EfficientViTConfig,
    stage: int,
    key_dims: Iterator[int],
    resolution: tuple[int, int],
    window: int,
) -> WindowAttention:
    dim, heads = config.embed_dim[stage], config.num_heads[stage]
    attention = CascadedGroupAttention(
        dim,
        heads,
        next(key_dims, config.key_dim or dim // heads),
        config.kernels,
        resolution if max(resolution) <= window else (window, window),
        config.attention,
    )
    return WindowAttention(attention, window)


def window_size_for(image_size: tuple[int, int]) -> int:
    """Window side in positions for an image size in pixels: 7, but 12 at 384 px and 16 at 512 px."""
    return HIGH_RESOLUTION_WINDOW_SIZE.get(max(image_size), WINDOW_SIZE)


@register(*CONFIGS, changes=ABLATIONS)
def build(spec: ModelSpec) -> EfficientViT:
    """The EfficientViT-M that `spec` names or describes."""
    return EfficientViT(spec, configured(CONFIGS, spec))
