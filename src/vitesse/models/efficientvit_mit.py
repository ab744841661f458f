"""EfficientViT B0-B3 and L0-L3: multi-scale ReLU linear attention for high-resolution dense prediction.

Cai et al., ICCV 2023, arXiv 2205.14756. Section numbers below are the paper's.

`*_single_scale` are the B series with the linear attention of the paper's first version: one scale. XL0 and
XL1, with a fifth stage, have no classifier: they encode images for masks (arXiv 2402.05008).

Shape suffixes: B images, C channels, H rows, W columns, A attention heads (of all scales), D head width,
N positions (H*W).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.layers import (
    ConvNorm,
    Residual,
    drop_path_rates,
    logits_or_pair,
    upcast,
    without_autocast,
)
from vitesse.models.backbone import StagedBackbone
from vitesse.models.qkv_order import check_qkv_order
from vitesse.models.registry import register
from vitesse.spec import FeatureSpec, ModelSpec

ATTENTION_EPS = 1e-5
"""Added to the sum of attention weights; the original's 1e-15 vanishes in half precision and makes the
gradient of a position that attends to nothing explode."""


@dataclass(frozen=True, kw_only=True)
class EfficientViTConfig:
    """One model: widths and blocks of the stem and of each stage.

    Attributes:
        embed_dim, depths: of the stem, then of each stage. In all stages that begin with an extra strided
            block, the depth counts the blocks after it.
        head_dim: width of an attention head.
        head_widths: of the classifier's two hidden layers; None for a backbone without classifier.
        scales: kernel sides of the depthwise convolutions that aggregate tokens for further heads.
        large: the L series, for GPUs: full convolutions in the early stages, GELU, wider expansion.
        num_fused: of the L series, how many stages have full convolutions.
        norm_eps: of every normalisation; not part of a checkpoint, but its weights expect it.
    """

    embed_dim: tuple[int, ...]
    depths: tuple[int, ...]
    head_dim: int
    head_widths: tuple[int, int] | None
    scales: tuple[int, ...] = (5,)
    large: bool = False
    num_fused: int = 2
    norm_eps: float = 1e-5

    def activation(self) -> nn.Module:
        return nn.GELU("tanh") if self.large else nn.Hardswish(inplace=True)


CONFIGS = {
    "efficientvit_b0": EfficientViTConfig(
        embed_dim=(8, 16, 32, 64, 128), depths=(1, 2, 2, 2, 2), head_dim=16, head_widths=(1024, 1280)
    ),
    "efficientvit_b1": EfficientViTConfig(
        embed_dim=(16, 32, 64, 128, 256), depths=(1, 2, 3, 3, 4), head_dim=16, head_widths=(1536, 1600)
    ),
    "efficientvit_b2": EfficientViTConfig(
        embed_dim=(24, 48, 96, 192, 384), depths=(1, 3, 4, 4, 6), head_dim=32, head_widths=(2304, 2560)
    ),
    "efficientvit_b3": EfficientViTConfig(
        embed_dim=(32, 64, 128, 256, 512), depths=(1, 4, 6, 6, 9), head_dim=32, head_widths=(2304, 2560)
    ),
    "efficientvit_l1": EfficientViTConfig(
        embed_dim=(32, 64, 128, 256, 512),
        depths=(1, 1, 1, 6, 6),
        head_dim=32,
        head_widths=(3072, 3200),
        large=True,
        norm_eps=1e-7,
    ),
    "efficientvit_l3": EfficientViTConfig(
        embed_dim=(64, 128, 256, 512, 1024),
        depths=(1, 2, 2, 8, 8),
        head_dim=32,
        head_widths=(6144, 6400),
        large=True,
        norm_eps=1e-7,
    ),
    "efficientvit_xl0": EfficientViTConfig(
        embed_dim=(32, 64, 128, 256, 512, 1024),
        depths=(0, 1, 1, 2, 3, 3),
        head_dim=32,
        head_widths=None,
        scales=(3,),
        large=True,
        num_fused=3,
        norm_eps=1e-6,
    ),
}
CONFIGS["efficientvit_xl1"] = replace(CONFIGS["efficientvit_xl0"], depths=(1, 2, 2, 4, 6, 6))
CONFIGS["efficientvit_l2"] = replace(CONFIGS["efficientvit_l1"], depths=(1, 2, 2, 8, 8))
# Published as a backbone only; the classifier is L1's.
CONFIGS["efficientvit_l0"] = replace(CONFIGS["efficientvit_l1"], depths=(1, 1, 1, 4, 4))
CONFIGS |= {
    f"efficientvit_b{i}_single_scale": replace(CONFIGS[f"efficientvit_b{i}"], scales=()) for i in range(4)
}


def relu_linear_attention(q_BADN: Tensor, k_BADN: Tensor, v_BADN: Tensor) -> Tensor:
    """Attention whose weights are relu(q)·relu(k), normalised over the keys: (B, A, D, N), dtype of `q_BADN`.

    Computed in float32 at least, whatever the inputs and autocast. Keys meet values first, so cost and
    memory grow with N and not N²; on maps of at most D positions the other order costs less (3.1). A traced
    program for any size has the first order alone.
    """
    with without_autocast(q_BADN):
        q, k, v = upcast(F.relu(q_BADN)), upcast(F.relu(k_BADN)), upcast(v_BADN)
        head_dim, num_positions = q.shape[2:]
        if type(num_positions) is int and num_positions <= head_dim:
            weights_BANN = k.mT @ q
            out_BADN = v @ (weights_BANN / (weights_BANN.sum(2, keepdim=True) + ATTENTION_EPS))
        else:
            # One more row of v·kᵀ, for a v of ones, gives the sums to divide by.
            values_by_keys = torch.cat((v @ k.mT, k.sum(3).unsqueeze(2)), dim=2)
            weighted, sums = torch.split(values_by_keys @ q, [head_dim, 1], dim=2)
            out_BADN = weighted / (sums + ATTENTION_EPS)
    return out_BADN.to(q_BADN.dtype)


class MultiScaleLinearAttention(nn.Module):
    """Linear attention among tokens of one position and among tokens aggregated over neighbourhoods (3.1).

    (B, C, H, W) to the same shape. The channels of `qkv` are head by head, each q, then k, then v.
    """

    def __init__(self, dim: int, config: EfficientViTConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.aggregate = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3 * dim, 3 * dim, kernel, padding=kernel // 2, groups=3 * dim, bias=False),
                nn.Conv2d(3 * dim, 3 * dim, 1, groups=3 * dim // config.head_dim, bias=False),
            )
            for kernel in config.scales
        )
        self.proj = ConvNorm(dim * (1 + len(config.scales)), dim, norm_eps=config.norm_eps)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BADN = relu_linear_attention(*self.heads(x_BCHW))
        projected_BCHW: Tensor = self.proj(torch.unflatten(out_BADN.flatten(1, 2), 2, x_BCHW.shape[2:]))
        return projected_BCHW

    def heads(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of the heads of all scales: (B, A, D, N) each."""
        qkv = self.qkv(x_BCHW)
        scales = torch.cat([qkv, *(aggregate(qkv) for aggregate in self.aggregate)], dim=1)
        return torch.unflatten(scales.flatten(2), 1, (-1, 3 * self.head_dim)).chunk(3, dim=2)


class DSConv(nn.Sequential):
    """Depthwise-separable convolution: (B, C, H, W) to the same shape."""

    def __init__(self, dim: int, config: EfficientViTConfig) -> None:
        super().__init__()
        self.depthwise = ConvNorm(dim, dim, 3, groups=dim, norm_eps=config.norm_eps)
        self.act = config.activation()
        self.project = ConvNorm(dim, dim, norm_eps=config.norm_eps)


class ResBlock(nn.Sequential):
    """Two full 3x3 convolutions: (B, C, H, W) to the same shape."""

    def __init__(self, dim: int, config: EfficientViTConfig) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, dim, 3, norm_eps=config.norm_eps)
        self.act = config.activation()
        self.conv2 = ConvNorm(dim, dim, 3, norm_eps=config.norm_eps)


class MBConv(nn.Sequential):
    """Inverted bottleneck: (B, C, H, W) to (B, C', H/stride, W/stride).

    With `fewer_norm` the first two convolutions have a bias in place of a norm.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        config: EfficientViTConfig,
        *,
        stride: int = 1,
        expand_ratio: int = 4,
        fewer_norm: bool = False,
    ) -> None:
        super().__init__()
        hidden, eps = in_dim * expand_ratio, config.norm_eps
        inner_eps = None if fewer_norm else eps
        self.expand = ConvNorm(in_dim, hidden, norm_eps=inner_eps)
        self.act1 = config.activation()
        self.depthwise = ConvNorm(hidden, hidden, 3, stride=stride, groups=hidden, norm_eps=inner_eps)
        self.act2 = config.activation()
        self.project = ConvNorm(hidden, out_dim, norm_eps=eps)


class FusedMBConv(nn.Sequential):
    """Inverted bottleneck with one full 3x3 convolution: (B, C, H, W) to (B, C', H/stride, W/stride)."""

    def __init__(
        self, in_dim: int, out_dim: int, config: EfficientViTConfig, *, stride: int = 1, expand_ratio: int = 4
    ) -> None:
        super().__init__()
        hidden, eps = in_dim * expand_ratio, config.norm_eps
        self.spatial = ConvNorm(in_dim, hidden, 3, stride=stride, norm_eps=eps)
        self.act = config.activation()
        self.project = ConvNorm(hidden, out_dim, norm_eps=eps)


class EfficientViTBlock(nn.Sequential):
    """Global context by linear attention, then local information by a depthwise convolution (3.2)."""

    def __init__(
        self, dim: int, config: EfficientViTConfig, drop_path: float, *, expand_ratio: int = 4
    ) -> None:
        super().__init__()
        ffn = MBConv(dim, dim, config, expand_ratio=expand_ratio, fewer_norm=True)
        self.attention = Residual(MultiScaleLinearAttention(dim, config), drop_path)
        self.ffn = Residual(ffn, drop_path)


class Head(nn.Module):
    """1x1 convolution, mean over positions, a hidden layer and the classifier: (B, C, H, W) to (B, K).

    With `distilled`, a second classifier on the hidden layer learns from a teacher; see `ClassifierHead`.
    """

    def __init__(
        self, config: EfficientViTConfig, widths: tuple[int, int], num_classes: int, distilled: bool
    ) -> None:
        super().__init__()
        width, hidden = widths
        self.conv = ConvNorm(config.embed_dim[-1], width, norm_eps=config.norm_eps)
        self.act = config.activation()
        self.fc = nn.Linear(width, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden, eps=config.norm_eps)
        self.classifier = nn.Linear(hidden, num_classes)
        self.classifier_dist = nn.Linear(hidden, num_classes) if distilled else None

    def forward(self, x_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        pooled_BC = self.act(self.conv(x_BCHW)).mean((2, 3))
        hidden_BC = self.act(self.norm(self.fc(pooled_BC)))
        distilled_BK = None if self.classifier_dist is None else self.classifier_dist(hidden_BC)
        return logits_or_pair(self.classifier(hidden_BC), distilled_BK, self.training)


class EfficientViT(StagedBackbone):
    """EfficientViT-B, -L and -XL: convolutions, then attention from stride 16 (B) or 32 (L, XL) on."""

    head_prefixes = ("head.classifier.", "head.classifier_dist.")

    def __init__(self, spec: ModelSpec, config: EfficientViTConfig) -> None:
        super().__init__()
        self.spec = spec
        self.feature_specs = tuple(
            FeatureSpec(name=f"stage{i}", channels=dim, stride=2 ** (i + 1))
            for i, dim in enumerate(config.embed_dim[1:], start=1)
        )
        self.min_image_size = self.feature_specs[-1].stride
        self.stem = _stem(spec.in_chans, config)
        self.stages = _stages(spec.drop_path_rate, config)
        self.head = (
            Head(config, config.head_widths, spec.num_classes, spec.distilled)
            if config.head_widths
            else nn.Identity()
        )
        self.apply(init_weights)
        silence_residuals(self)

    def check_channel_order(self, values: Mapping[str, Tensor], label: str) -> None:
        """See `Backbone`: all q, then all k, then all v is refused; ours is head by head."""
        filled = copy.deepcopy(self)
        filled.load_state_dict(values, strict=False)
        check_qkv_order(filled, MultiScaleLinearAttention, label)


def _stem(in_chans: int, config: EfficientViTConfig) -> nn.Sequential:
    dim = config.embed_dim[0]
    body = ResBlock if config.large else DSConv
    return nn.Sequential(
        OrderedDict(
            conv=ConvNorm(in_chans, dim, 3, stride=2, norm_eps=config.norm_eps),
            act=config.activation(),
            blocks=nn.Sequential(*(Residual(body(dim, config)) for _ in range(config.depths[0]))),
        )
    )


def _stages(drop_path_rate: float, config: EfficientViTConfig) -> nn.ModuleList:
    rates = iter(drop_path_rates(drop_path_rate, sum(config.depths[1:])))
    stage = _large_stage if config.large else _base_stage
    return nn.ModuleList(
        stage(index, config, [next(rates) for _ in range(config.depths[index])])
        for index in range(1, len(config.depths))
    )


def _base_stage(index: int, config: EfficientViTConfig, rates: list[float]) -> nn.Sequential:
    """Stage 1 to 4 of the B series: MBConv in the first two, attention in the others."""
    in_dim, dim = config.embed_dim[index - 1 : index + 1]
    attends = index >= 3
    merge = MBConv(in_dim, dim, config, stride=2, fewer_norm=attends)
    if attends:
        return nn.Sequential(merge, *(EfficientViTBlock(dim, config, rate) for rate in rates))
    return nn.Sequential(merge, *(Residual(MBConv(dim, dim, config), rate) for rate in rates[1:]))


def _large_stage(index: int, config: EfficientViTConfig, rates: list[float]) -> nn.Sequential:
    """A stage of the L series, from 1: FusedMBConv in the first few, MBConv in the third, then attention."""
    in_dim, dim = config.embed_dim[index - 1 : index + 1]
    if index <= config.num_fused:
        fused = FusedMBConv(in_dim, dim, config, stride=2, expand_ratio=16)
        return nn.Sequential(fused, *(Residual(FusedMBConv(dim, dim, config), rate) for rate in rates))
    expand_ratio = 6 if index == len(config.depths) - 1 else 4
    merge = MBConv(in_dim, dim, config, stride=2, expand_ratio=4 * expand_ratio, fewer_norm=True)
    if index == 3:
        blocks = (Residual(MBConv(dim, dim, config, fewer_norm=True), rate) for rate in rates)
        return nn.Sequential(merge, *blocks)
    return nn.Sequential(
        merge, *(EfficientViTBlock(dim, config, rate, expand_ratio=expand_ratio) for rate in rates)
    )


def init_weights(module: nn.Module) -> None:
    """Weights as the paper's models begin with, for `nn.Module.apply`."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def silence_residuals(model: nn.Module) -> None:
    """Every residual branch starts at zero: its last norm has gain 0."""
    for module in model.modules():
        if isinstance(module, Residual):
            *_, last_norm = (m for m in module.branch.modules() if isinstance(m, nn.BatchNorm2d))
            nn.init.zeros_(last_norm.weight)


@register(*(name for name, config in CONFIGS.items() if config.head_widths))
def build(spec: ModelSpec) -> EfficientViT:
    """The EfficientViT-B or -L that `spec.name` names."""
    return EfficientViT(spec, CONFIGS[spec.name])
