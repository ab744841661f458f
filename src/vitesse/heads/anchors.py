"""Anchors as the papers' detection code lays them: on exact strides, sides not rounded.

Shape suffixes: P anchors of all levels, A anchors of a position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

RATIOS = (0.5, 1.0, 2.0)


class GridAnchors(nn.Module):
    """Anchors centred on the upper left corner of every cell, as torchvision's `AnchorGenerator`.

    That one takes the strides from the sizes of the maps, which is wrong where a map's last cells hang over
    the image's border, and rounds the sides.

    Args:
        strides: of the levels.
        scales: of the anchors, in strides.
    """

    def __init__(self, strides: Sequence[int], scales: Sequence[float]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        scale_A, ratio_A = torch.tensor(scales).repeat(len(RATIOS)), torch.tensor(RATIOS)
        height_A = scale_A * ratio_A.repeat_interleave(len(scales)).sqrt()
        width_A = scale_A**2 / height_A
        unit_A4 = torch.stack((-width_A, -height_A, width_A, height_A), dim=1) / 2
        self.register_buffer("unit_A4", unit_A4, persistent=False)

    unit_A4: Tensor

    def num_anchors_per_location(self) -> list[int]:
        """Anchors of a position, by level."""
        return [len(self.unit_A4)] * len(self.strides)

    def by_level(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The anchors (P, 4) of each level, row by row of its map."""
        return [self._of_level(level, stride) for level, stride in zip(levels, self.strides, strict=True)]

    def forward(self, images: ImageList, levels: Sequence[Tensor]) -> list[Tensor]:
        """The anchors (P, 4) of all levels, for each image, as torchvision's parts want them."""
        return [torch.cat(self.by_level(levels))] * len(images.image_sizes)

    def _of_level(self, level_BCHW: Tensor, stride: int) -> Tensor:
        height, width = level_BCHW.shape[2:]
        y_H1, x_W = (torch.arange(count, device=level_BCHW.device) * stride for count in (height, width))
        x_HW, y_HW = x_W.expand(height, width), y_H1[:, None].expand(height, width)
        corner_HW4 = torch.stack((x_HW, y_HW, x_HW, y_HW), dim=-1)
        return (corner_HW4[:, :, None] + self.unit_A4 * stride).flatten(0, 2)
