"""Blocks that several families share; none knows a model.

Shape suffixes: B images, C channels, H rows, W columns, N tokens, K classes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Sequential):
    """Convolution without bias, then BatchNorm: (B, in_chans, H, W) to (B, out_chans, H/stride, W/stride).

    Args:
        norm_init: initial BatchNorm gain; 0 makes a residual branch start as the identity.
        norm_eps: added to the variance; None leaves the BatchNorm out and gives the convolution a bias.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm_init: float = 1.0,
        norm_eps: float | None = 1e-5,
    ) -> None:
        super().__init__()
        bias = norm_eps is None
        self.conv = nn.Conv2d(in_chans, out_chans, kernel, stride, kernel // 2, groups=groups, bias=bias)
        if norm_eps is not None:
            self.bn: nn.Module = nn.BatchNorm2d(out_chans, eps=norm_eps)
            nn.init.constant_(self.bn.weight, norm_init)


class LayerNorm2d(nn.LayerNorm):
    """Normalisation over the channels of each position: (B, C, H, W) to the same shape.

    `torch` takes mean and variance in float32 whatever the dtype, and so do exported graphs.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NormLinear(nn.Sequential):
    """BatchNorm, then a linear layer: (B, C) to logits (B, num_classes)."""

    def __init__(self, in_chans: int, num_classes: int) -> None:
        super().__init__()
        self.bn: nn.Module = nn.BatchNorm1d(in_chans)
        self.linear = nn.Linear(in_chans, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)


class Residual(nn.Module):
    """`x + branch(x)`; while training the branch is dropped for a whole image with probability `drop_path`.

    Dropped branches are compensated by scaling the kept ones (stochastic depth, arXiv 1603.09382).
    """

    def __init__(self, branch: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.branch = branch
        self.drop_path = drop_path

    def forward(self, x: Tensor, *context: Tensor | None) -> Tensor:
        """Images (B, C, H, W) or tokens (B, N, C) to the same shape; the branch is given `context` too."""
        return self.add(x, self.branch(x, *context))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """`x` and what the branch made of it, `y`."""
        if self.training and self.drop_path > 0:
            keep = 1 - self.drop_path
            y = y * y.new_empty(len(y), *[1] * (y.ndim - 1)).bernoulli_(keep).div_(keep)
        return x + y

    def extra_repr(self) -> str:
        return f"drop_path={self.drop_path}"


class FeedForward(nn.Sequential):
    """Two 1x1 convolutions with ReLU between: C to `hidden` to C, the last gain initialised to 0."""

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or 2 * dim
        self.expand = ConvNorm(dim, hidden)
        self.act = nn.ReLU(inplace=True)
        self.project = ConvNorm(hidden, dim, norm_init=0)


class SqueezeExcite(nn.Module):
    """Channel gate from the mean over positions (arXiv 1709.01507): (B, C, H, W) to the same shape."""

    def __init__(self, dim: int, squeezed_dim: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, squeezed_dim, 1)
        self.act = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(squeezed_dim, dim, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        gate_BC11 = x_BCHW.mean((2, 3), keepdim=True)
        return x_BCHW * torch.sigmoid(self.expand(self.act(self.reduce(gate_BC11))))


class PatchEmbed(nn.Sequential):
    """Overlapping patch embedding: stride-2 convolutions, ReLU between them, to `stride`, a power of 2."""

    def __init__(self, in_chans: int, dim: int, stride: int = 16) -> None:
        layers: list[nn.Module] = []
        widths = [dim >> halvings for halvings in reversed(range(stride.bit_length() - 1))]
        for narrow, wide in pairwise((in_chans, *widths)):
            layers += [ConvNorm(narrow, wide, 3, stride=2), nn.ReLU(inplace=True)]
        super().__init__(*layers[:-1])


class PatchMerging(nn.Sequential):
    """Inverted residual block with squeeze-excite that halves the map: (B, C, H, W) to (B, C', H/2, W/2).

    The squeezed width is a quarter of the hidden one, rounded to a multiple of 8.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        hidden = 4 * in_dim
        self.expand = ConvNorm(in_dim, hidden)
        self.act1 = nn.ReLU(inplace=True)
        self.depthwise = ConvNorm(hidden, hidden, 3, stride=2, groups=hidden)
        self.act2 = nn.ReLU(inplace=True)
        self.se = SqueezeExcite(hidden, (hidden // 4 + 4) // 8 * 8)
        self.project = ConvNorm(hidden, out_dim)


class Subsample(nn.Sequential):
    """Patch merging between two stages, itself sandwiched between local mixing layers.

    The hidden widths of its two feed-forwards are the next of `ffn_dims`; without any, twice theirs.
    """

    def __init__(self, in_dim: int, out_dim: int, ffn_dims: Iterator[int]) -> None:
        super().__init__()
        self.dw0 = Residual(ConvNorm(in_dim, in_dim, 3, groups=in_dim))
        self.ffn0 = Residual(FeedForward(in_dim, next(ffn_dims, None)))
        self.merge = PatchMerging(in_dim, out_dim)
        self.dw1 = Residual(ConvNorm(out_dim, out_dim, 3, groups=out_dim))
        self.ffn1 = Residual(FeedForward(out_dim, next(ffn_dims, None)))


class SubsampledStage(nn.Sequential):
    """Blocks at one resolution, after a subsampling in all stages but the first."""

    def __init__(self, subsample: Subsample | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        if subsample is not None:
            self.subsample = subsample
        self.blocks = nn.Sequential(*blocks)


class ClassifierHead(nn.Module):
    """Mean over positions, BatchNorm, linear: (B, C, H, W) to logits (B, num_classes).

    With `distilled`, a second classifier learns from a teacher: training returns the pair
    (logits, distillation logits), evaluation their mean.
    """

    def __init__(self, in_chans: int, num_classes: int, distilled: bool = False) -> None:
        super().__init__()
        self.classifier = NormLinear(in_chans, num_classes)
        self.classifier_dist = NormLinear(in_chans, num_classes) if distilled else None

    def forward(self, x_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        pooled_BC = x_BCHW.mean((2, 3))
        distilled_BK = None if self.classifier_dist is None else self.classifier_dist(pooled_BC)
        return logits_or_pair(self.classifier(pooled_BC), distilled_BK, self.training)


def replace_modules(root: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    """Put `make` of each module of a kind in its place, everywhere below `root`."""
    for name, child in root.named_children():
        if isinstance(child, kind):
            setattr(root, name, make(child))
        else:
            replace_modules(child, kind, make)


def layer_norm_like(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.LayerNorm:
    """A normalisation over channels in place of one over the batch, with its initial gain."""
    kind = LayerNorm2d if isinstance(norm, nn.BatchNorm2d) else nn.LayerNorm
    made = kind(norm.num_features, eps=norm.eps)
    made.weight.data.copy_(norm.weight.data)
    return made


def to_tokens(x_BCHW: Tensor) -> Tensor:
    """Positions as tokens, (B, H*W, C): a view where channels lie last, which engines keep them in."""
    return x_BCHW.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(x_BNC: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens as a map of `size` rows and columns, (B, C, H, W), channels last in memory."""
    return torch.unflatten(x_BNC, 1, size).permute(0, 3, 1, 2)


HALF = (torch.float16, torch.bfloat16)
UNCHANGED = contextlib.nullcontext()


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """A region without autocast on the device of `x`, for attention weights, which rounding ruins."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return UNCHANGED


def upcast(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in HALF else x


def drop_path_rates(last: float, num_blocks: int) -> list[float]:
    """Stochastic depth of each block: rising linearly from 0 at the first to `last`."""
    return [last * i / max(num_blocks - 1, 1) for i in range(num_blocks)]


def logits_or_pair(
    logits_BK: Tensor, distilled_BK: Tensor | None, training: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """What a head returns: logits, or of a distilled one the pair in training and its mean in evaluation."""
    if distilled_BK is None:
        return logits_BK
    return (logits_BK, distilled_BK) if training else (logits_BK + distilled_BK) / 2


def resample_position_table(
    table_1NC: Tensor, num_prefix: int, grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """A learned position table for another grid (rows, columns) of patches, bicubic with antialiasing.

    The first `num_prefix` rows of the table belong to tokens that are no patches and stay.
    """
    if grid == new_grid:
        return table_1NC
    prefix_1PC, patches_1NC = table_1NC[:, :num_prefix], upcast(table_1NC[:, num_prefix:])
    patches_1CHW = torch.unflatten(patches_1NC.mT, 2, grid)
    resampled_1CHW = F.interpolate(
        patches_1CHW, size=new_grid, mode="bicubic", align_corners=False, antialias=True
    )
    return torch.cat((prefix_1PC, resampled_1CHW.flatten(2).mT.to(table_1NC.dtype)), dim=1)


def fit_position_table(
    table_1NC: Tensor, num_prefix: int, grid: tuple[int, int], source_grid: tuple[int, int] | None
) -> Tensor:
    """A loaded position table for this `grid`; dtype kept.

    Args:
        table_1NC: of another model.
        num_prefix: rows of the table for tokens that are no patches.
        grid: rows and columns of patches.
        source_grid: of the table; where it is not known or does not fit, a square one if the number of
            patches is a square, else the table is given back as it is.
    """
    num_patches = table_1NC.shape[1] - num_prefix
    if source_grid is None or math.prod(source_grid) != num_patches:
        side = math.isqrt(max(num_patches, 0))
        if side == 0 or side * side != num_patches:
            return table_1NC
        source_grid = (side, side)
    return resample_position_table(table_1NC, num_prefix, source_grid, grid)
