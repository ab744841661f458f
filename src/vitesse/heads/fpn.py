"""Feature pyramid: maps of one width at several strides, with the meaning of coarse ones added to fine ones.

Lin et al., CVPR 2017, arXiv 1612.03144, on any strides. Backbones that begin at stride 16 get finer levels by
transposed convolutions, as EfficientViT-M and SHViT do for detection.

Shape suffixes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from vitesse.spec import FeatureSpec


def plain_conv(in_chans: int, out_chans: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A bare convolution with bias: (B, in_chans, H, W) to (B, out_chans, H/stride, W/stride)."""
    conv = nn.Conv2d(in_chans, out_chans, kernel, stride, kernel // 2)
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class FeaturePyramid(nn.Module):
    """Feature maps by name to one map (B, channels, H/stride, W/stride) a stride, finest first.

    Every map that takes part goes through a 1x1 convolution and gets the coarser ones added, enlarged by
    repetition; a 3x3 convolution smooths the sum. Levels finer than the backbone's come from 2x2 transposed
    convolutions of the finest sum, coarser ones from 3x3 convolutions of stride 2 on the backbone's last map.
    A level covers the whole image, and may hang over its border.

    Args:
        features: the backbone's maps, finest first; those finer than the first stride are left out.
        strides: of the levels, each twice the one before.
        channels: of all levels.
        conv: makes the layers from channels in, channels out and kernel.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        strides: Sequence[int],
        channels: int,
        conv: Callable[[int, int, int], nn.Module] = plain_conv,
    ) -> None:
        super().__init__()
        used = [feature for feature in features if feature.stride >= strides[0]]
        finer = [stride for stride in strides if stride < used[0].stride]
        smoothed = [stride for stride in strides if stride <= used[-1].stride]
        self.strides = tuple(strides)
        self.names = tuple(feature.name for feature in used)
        self.laterals = nn.ModuleList(conv(feature.channels, channels, 1) for feature in used)
        self.upsamples = nn.ModuleList(nn.ConvTranspose2d(channels, channels, 2, stride=2) for _ in finer)
        self.outputs = nn.ModuleList(conv(channels, channels, 3) for _ in smoothed)
        widths = [used[-1].channels, *[channels] * (len(strides) - len(smoothed))]
        self.coarser = nn.ModuleList(
            plain_conv(narrow, wide, 3, stride=2) for narrow, wide in pairwise(widths)
        )

    def forward(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        sums = [lateral(features[name]) for name, lateral in zip(self.names, self.laterals, strict=True)]
        for i in range(len(sums) - 1, 0, -1):
            size = sums[i - 1].shape[2:]
            sums[i - 1] = sums[i - 1] + F.interpolate(sums[i], size=size, mode="nearest")
        for upsample in self.upsamples:
            sums.insert(0, upsample(sums[0]))
        levels = [output(x_BCHW) for output, x_BCHW in zip(self.outputs, sums, strict=False)]
        coarsest_BCHW = features[self.names[-1]]
        for conv in self.coarser:
            coarsest_BCHW = conv(coarsest_BCHW)
            levels.append(coarsest_BCHW)
        return levels
