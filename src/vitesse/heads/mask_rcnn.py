"""Mask R-CNN (He et al., ICCV 2017, arXiv 1703.06870) as the papers of our backbones configured it.

torchvision's region proposals, sampling and losses. Its class 0 is the background, which in the layers here
comes last for classes and boxes, or is absent for masks, as in the checkpoints.

Shape suffixes: B images, C channels, R regions, N detections, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import roi_align

from vitesse.heads.anchors import GridAnchors
from vitesse.heads.detection import Detections, Losses, Target, check_targets
from vitesse.layers import upcast

ANCHOR_SCALE = 8
POOLED_LEVELS = 4
FINEST_SCALE = 56
"""Geometric mean side in pixels from twice which on a region is taken from the second level, and so on."""
BOX_SIZE, MASK_SIZE = 7, 14
HIDDEN = 1024
PROPOSALS = 1000
MAX_DETECTIONS = 100
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
MIN_SCORE = 0.05
MAX_OVERLAP = 0.5


class RoIAlign(nn.Module):
    """Regions cut out of the level that fits their size, (R, C, side, side), positions aligned to half pixels."""

    def __init__(self, strides: Sequence[int], side: int) -> None:
        super().__init__()
        self.strides, self.side = tuple(strides), side

    def forward(
        self, levels: Mapping[str, Tensor], boxes: Sequence[Tensor], image_sizes: Sequence[object]
    ) -> Tensor:
        maps = [upcast(level) for level in levels.values()]
        regions_R5 = torch.cat([F.pad(boxes_R4, (1, 0), value=i) for i, boxes_R4 in enumerate(boxes)])
        level_R = level_of(regions_R5[:, 1:], len(self.strides))
        pooled_RCss = maps[0].new_zeros(len(regions_R5), maps[0].shape[1], self.side, self.side)
        for index, stride in enumerate(self.strides):
            (chosen,) = torch.where(level_R == index)
            cut = roi_align(maps[index], regions_R5[chosen], self.side, 1 / stride, aligned=True)
            pooled_RCss = pooled_RCss.index_copy(0, chosen, cut)
        return pooled_RCss


def level_of(boxes_R4: Tensor, num_levels: int) -> Tensor:
    """Index of the level (R,) int64 that a region is taken from: one more for every doubling of its sides."""
    sides_R2 = boxes_R4[:, 2:] - boxes_R4[:, :2]
    scale_R = sides_R2.prod(1).sqrt() / FINEST_SCALE
    return (scale_R + 1e-6).log2().floor().clamp(0, num_levels - 1).long()


class BoxPredictor(nn.Module):
    """Hidden features of regions to class logits (R, 1 + K) and box deltas (R, 4 + 4 * K), background first."""

    def __init__(self, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(hidden, num_classes + 1)
        self.regressor = nn.Linear(hidden, num_classes * 4)
        for layer, deviation in ((self.classifier, 0.01), (self.regressor, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x_RC: Tensor) -> tuple[Tensor, Tensor]:
        return upcast(self.classifier(x_RC)).roll(1, dims=1), F.pad(upcast(self.regressor(x_RC)), (4, 0))


class MaskPredictor(nn.Module):
    """Region features (R, C, 14, 14) to mask logits (R, 1 + K, 28, 28), background first."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        for layer in (self.upsample, self.classifier):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x_RCss: Tensor) -> Tensor:
        return F.pad(upcast(self.classifier(F.relu(self.upsample(x_RCss)))), (0, 0, 0, 0, 1, 0))


class MaskRCNNHead(nn.Module):
    """Levels of a pyramid to losses or detections with masks."""

    def __init__(self, strides: Sequence[int], channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        anchors = GridAnchors(strides, (ANCHOR_SCALE,))
        self.propose = RegionProposalNetwork(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2 * PROPOSALS, "testing": PROPOSALS},
            post_nms_top_n={"training": PROPOSALS, "testing": PROPOSALS},
            nms_thresh=0.7,
        )
        pooled = strides[:POOLED_LEVELS]
        self.regions = RoIHeads(
            RoIAlign(pooled, BOX_SIZE),
            TwoMLPHead(channels * BOX_SIZE**2, HIDDEN),
            BoxPredictor(HIDDEN, num_classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=BOX_WEIGHTS,
            score_thresh=MIN_SCORE,
            nms_thresh=MAX_OVERLAP,
            detections_per_img=MAX_DETECTIONS,
            mask_roi_pool=RoIAlign(pooled, MASK_SIZE),
            mask_head=MaskRCNNHeads(channels, [channels] * 4, dilation=1),
            mask_predictor=MaskPredictor(channels, num_classes),
        )

    def forward(
        self, levels: Sequence[Tensor], images: Tensor, targets: Sequence[Target] | None = None
    ) -> Losses | Detections:
        if self.training:
            check_targets(targets, images, self.num_classes, masks=True)
        named = {str(index): level for index, level in enumerate(levels)}
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        shifted = [_background_first(target) for target in targets] if self.training and targets else None
        proposals, proposal_losses = self.propose(ImageList(images, sizes), named, shifted)
        found, region_losses = self.regions(named, proposals, sizes, shifted)
        if self.training:
            return {**proposal_losses, **region_losses}
        return _stacked(found)


def _background_first(target: Target) -> dict[str, Tensor]:
    return {**target, "boxes": target["boxes"].float(), "labels": target["labels"] + 1}


def _stacked(found: Sequence[Mapping[str, Tensor]]) -> Detections:
    """Detections of torchvision's form, filled up to the same number for every image."""
    rows = []
    for image in found:
        missing = MAX_DETECTIONS - len(image["scores"])
        rows.append(
            (
                F.pad(image["boxes"], (0, 0, 0, missing)),
                F.pad(image["scores"], (0, missing)),
                F.pad(image["labels"] - 1, (0, missing)),
                F.pad(image["masks"][:, 0], (0, 0, 0, 0, 0, missing)),
            )
        )
    return tuple(torch.stack(values) for values in zip(*rows, strict=True))
