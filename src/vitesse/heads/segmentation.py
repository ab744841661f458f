"""From feature maps to a class for every pixel.

Shape suffixes: B images, C channels, K classes, H and W rows and columns of the input, h and w of the finest
feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.heads.upsample import Upsample, cubic_weights, with_margin
from vitesse.layers import ConvNorm, Residual, upcast, without_autocast

if TYPE_CHECKING:
    from vitesse.spec import FeatureSpec


class SegHead(nn.Module):
    """Feature maps by name to logits (B, K, h, w).

    A 1x1 convolution brings every map to one width; all are enlarged to the finest, summed and refined.

    Args:
        features: the maps that take part, coarsest first; their strides are multiples of the last one's.
        width: channels of the sum.
        blocks: what refines the sum, each around a skip: (B, width, h, w) to the same shape.
        hidden: channels of one more 1x1 convolution before the classifier; None for none.
        activation: makes what follows that convolution.
        norm_eps: of the normalisations.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        num_classes: int,
        *,
        width: int,
        blocks: Sequence[nn.Module],
        hidden: int | None,
        activation: Callable[[], nn.Module],
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.names = tuple(feature.name for feature in features)
        self.inputs = nn.ModuleList(ConvNorm(f.channels, width, norm_eps=norm_eps) for f in features)
        self.enlarge = nn.ModuleList(Upsample(f.stride // features[-1].stride) for f in features[:-1])
        self.blocks = nn.Sequential(*map(Residual, blocks))
        self.expand = nn.Sequential()
        if hidden is not None:
            self.expand = nn.Sequential(ConvNorm(width, hidden, norm_eps=norm_eps), activation())
        self.classifier = nn.Conv2d(hidden or width, num_classes, 1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        maps = [conv(features[name]) for conv, name in zip(self.inputs, self.names, strict=True)]
        total_BChw = self._sum(maps).to(maps[-1].dtype)
        logits_BKhw: Tensor = self.classifier(self.expand(self.blocks(total_BChw)))
        return logits_BKhw

    def _sum(self, maps: Sequence[Tensor]) -> Tensor:
        """All maps at the size of the last, float32 at least.

        Where the input is no multiple of the coarsest stride, enlarged maps reach beyond it and are cut.
        """
        height, width = maps[-1].shape[2:]
        with without_autocast(maps[-1]):
            total_BChw = upcast(maps[-1])
            for enlarge, map_BCHW in zip(self.enlarge, maps[:-1], strict=True):
                total_BChw = total_BChw + enlarge(upcast(map_BCHW))[:, :, :height, :width]
        return total_BChw


class PixelClasses(nn.Module):
    """Logits (B, K, h, w) to the class of every pixel, (B, H, W) int32: enlarged bicubically, the largest.

    Made for inference engines. A convolution along each axis computes all positions inside each cell; these
    lie as channels until their classes are known, so that what is put in order is one number a pixel, not K.
    """

    def __init__(self, num_classes: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        kernels_P5 = cubic_weights(1, factor).mT
        vertical, horizontal = kernels_P5[:, None, :, None], kernels_P5[:, None, None]
        self.register_buffer("vertical", vertical.repeat(num_classes, 1, 1, 1), persistent=False)
        self.register_buffer("horizontal", horizontal.repeat(num_classes * factor, 1, 1, 1), persistent=False)

    def forward(self, logits_BKhw: Tensor, size: tuple[int, int]) -> Tensor:
        batch, num_classes, rows, columns = logits_BKhw.shape
        vertical, horizontal = self.get_buffer("vertical"), self.get_buffer("horizontal")
        # The largest is sought across planes. Those of even sides lie powers of two apart in memory, where
        # caches hold few of them: of 150 classes of 512x512 pixels it took six times as long without `extra`.
        planes = F.conv2d(with_margin(logits_BKhw, extra=1), vertical, groups=num_classes)
        planes = F.conv2d(planes, horizontal, groups=num_classes * self.factor)
        classes = torch.unflatten(planes, 1, (num_classes, self.factor**2)).argmax(1).to(torch.int32)
        cells = torch.unflatten(classes, 1, (self.factor, self.factor)).permute(0, 3, 1, 4, 2)
        image_BHW = cells.reshape(batch, (rows + 1) * self.factor, (columns + 1) * self.factor)
        return image_BHW[:, : size[0], : size[1]]


class Segmenter(nn.Module):
    """What an artefact of a segmentation model computes: images to classes (B, H, W) and logits (B, K, h, w).

    Args:
        model: images to logits.
        stride: pixels of the input a cell of the logits.
    """

    def __init__(self, model: nn.Module, num_classes: int, stride: int) -> None:
        super().__init__()
        self.model = model
        self.classes = PixelClasses(num_classes, stride)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        logits_BKhw = self.model(x_BCHW)
        height, width = x_BCHW.shape[2:]
        return self.classes(logits_BKhw, (height, width)), logits_BKhw
