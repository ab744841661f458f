"""Blocks that several families share; none knows a model.

Shape suffixes: B images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """Convolution without bias, then BatchNorm: (B, in_chans, H, W) to (B, out_chans, H/stride, W/stride).

    Args:
        norm_init: initial BatchNorm gain; 0 makes a residual branch start as the identity.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm_init: float = 1.0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_chans)
        nn.init.constant_(self.bn.weight, norm_init)


class NormLinear(nn.Sequential):
    """BatchNorm, then a linear layer: (B, C) to logits (B, num_classes)."""

    def __init__(self, in_chans: int, num_classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(in_chans)
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

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.branch(x_BCHW)
        if self.training and self.drop_path > 0:
            keep = 1 - self.drop_path
            y_BCHW = y_BCHW * y_BCHW.new_empty(len(y_BCHW), 1, 1, 1).bernoulli_(keep).div_(keep)
        return x_BCHW + y_BCHW

    def extra_repr(self) -> str:
        return f"drop_path={self.drop_path}"


class FeedForward(nn.Sequential):
    """Two 1x1 convolutions with ReLU between: C to `ratio`*C to C, the last gain initialised to 0."""

    def __init__(self, dim: int, ratio: int = 2) -> None:
        super().__init__()
        self.expand = ConvNorm(dim, dim * ratio)
        self.act = nn.ReLU()
        self.project = ConvNorm(dim * ratio, dim, norm_init=0)


class SqueezeExcite(nn.Module):
    """Channel gate from the mean over positions (arXiv 1709.01507): (B, C, H, W) to the same shape."""

    def __init__(self, dim: int, squeezed_dim: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, squeezed_dim, 1)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(squeezed_dim, dim, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        gate_BC11 = x_BCHW.mean((2, 3), keepdim=True)
        return x_BCHW * torch.sigmoid(self.expand(self.act(self.reduce(gate_BC11))))


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
        logits_BK: Tensor = self.classifier(pooled_BC)
        if self.classifier_dist is None:
            return logits_BK
        distilled_BK: Tensor = self.classifier_dist(pooled_BC)
        return (logits_BK, distilled_BK) if self.training else (logits_BK + distilled_BK) / 2
