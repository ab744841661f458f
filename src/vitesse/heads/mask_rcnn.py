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
from vitesse.heads.detection import (
    Detections,
    Losses,
    Target,
    best_pairs,
    check_targets,
    decode,
    gather,
    suppress,
)
from vitesse.layers import upcast

ANCHOR_SCALE = 8
POOLED_LEVELS = 4
FINEST_SCALE = 56
"""Geometric mean side in pixels from twice which on a region is taken from the second level, and so on."""
BOX_SIZE, MASK_SIZE = 7, 14
HIDDEN = 1024
PROPOSALS = 1000
PROPOSAL_OVERLAP = 0.7
CANDIDATES = 5000
"""Pairs of region and class that compete; torchvision takes all above the lowest score."""
MAX_DETECTIONS = 100
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
MIN_SCORE = 0.05
MAX_OVERLAP = 0.5


class RoIAlign(nn.Module):
    """Regions cut out of the level that fits their size, aligned to half pixels: (R, C, side, side)."""

    def __init__(self, strides: Sequence[int], side: int) -> None:
        super().__init__()
        self.strides, self.side = tuple(strides), side

    def forward(
        self, levels: Mapping[str, Tensor], boxes: Sequence[Tensor], image_sizes: Sequence[object] = ()
    ) -> Tensor:
        regions_R5 = torch.cat([F.pad(boxes_R4, (1, 0), value=i) for i, boxes_R4 in enumerate(boxes)])
        level_R = level_of(regions_R5[:, 1:], len(self.strides))
        cuts = []
        for index, (level, stride) in enumerate(zip(levels.values(), self.strides, strict=False)):
            here_R1 = (level_R == index).unsqueeze(1)
            # Regions of other levels become points, which cost next to nothing: their number must not vary.
            regions = regions_R5.where(here_R1, F.pad(regions_R5[:, :1], (0, 4)))
            cut_RCss = roi_align(upcast(level), regions, self.side, 1 / stride, aligned=True)
            cuts.append(cut_RCss.where(here_R1[:, :, None, None], 0))
        return torch.stack(cuts).sum(0)


def level_of(boxes_R4: Tensor, num_levels: int) -> Tensor:
    """Index of the level (R,) int64 that a region is taken from: one more for every doubling of its sides."""
    sides_R2 = boxes_R4[:, 2:] - boxes_R4[:, :2]
    scale_R = sides_R2.prod(1).sqrt() / FINEST_SCALE
    return (scale_R + 1e-6).log2().floor().clamp(0, num_levels - 1).long()


class BoxPredictor(nn.Module):
    """Region features (R, C) to class logits (R, 1 + K) and box deltas (R, 4 + 4 * K), background first."""

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

    classifiers = ("regions.box_predictor.", "regions.mask_predictor.classifier.")
    any_batch = False

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
            nms_thresh=PROPOSAL_OVERLAP,
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
        if not self.training:
            return self.detections(levels, images.shape[2:])
        targets = check_targets(targets, images, self.num_classes, masks=True)
        named, sizes = by_name(levels), [(images.shape[2], images.shape[3])] * len(images)
        shifted = [_background_first(target) for target in targets]
        proposals, proposal_losses = self.propose(ImageList(images, sizes), named, shifted)
        _, region_losses = self.regions(named, proposals, sizes, shifted)
        return {**proposal_losses, **region_losses}

    def detections(self, levels: Sequence[Tensor], image_size: Sequence[int]) -> Detections:
        """As torchvision's parts find them, in the same number for every image."""
        regions = self.regions
        proposals_BR4, known_BR = self._proposals(levels, image_size)
        features = regions.box_head(self._cut(regions.box_roi_pool, levels, proposals_BR4))
        logits, deltas = regions.box_predictor(features)
        scores_BRK = torch.unflatten(logits.softmax(1)[:, 1:], 0, known_BR.shape) * known_BR.unsqueeze(2)
        scores_BM, region_BM, labels_BM = best_pairs(scores_BRK, CANDIDATES)
        deltas_BP4 = deltas[:, 4:].reshape(len(known_BR), -1, 4)
        deltas_BM4 = gather(deltas_BP4, region_BM * self.num_classes + labels_BM)
        boxes_BM4 = decode(regions.box_coder, deltas_BM4, gather(proposals_BR4, region_BM), image_size)
        found = suppress(
            [(scores_BM, boxes_BM4, labels_BM)],
            image_size,
            max_overlap=MAX_OVERLAP,
            min_score=MIN_SCORE,
            count=MAX_DETECTIONS,
        )
        return (*found, self._masks(levels, *found))

    def _proposals(self, levels: Sequence[Tensor], image_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Boxes (B, R, 4), the most likely objects first, and which of the R there are (B, R)."""
        parts = []
        anchors = self.propose.anchor_generator.by_level(levels)
        for index, found in enumerate(zip(*self.propose.head(list(levels)), anchors, strict=True)):
            objectness_BAHW, deltas_BDHW, anchors_P4 = found
            scores_BP = upcast(objectness_BAHW).sigmoid().permute(0, 2, 3, 1).flatten(1)
            deltas_BP4 = torch.unflatten(upcast(deltas_BDHW).permute(0, 2, 3, 1), 3, (-1, 4)).flatten(1, 3)
            scores_BM, chosen_BM, level_BM = best_pairs(scores_BP.unsqueeze(2), PROPOSALS)
            boxes_BM4 = decode(
                self.propose.box_coder, gather(deltas_BP4, chosen_BM), anchors_P4[chosen_BM], image_size
            )
            parts.append((scores_BM, boxes_BM4, level_BM + index))
        boxes_BR4, scores_BR, _ = suppress(
            parts, image_size, max_overlap=PROPOSAL_OVERLAP, min_score=0, count=PROPOSALS
        )
        return boxes_BR4, scores_BR > 0

    def _masks(
        self, levels: Sequence[Tensor], boxes_BN4: Tensor, scores_BN: Tensor, labels_BN: Tensor
    ) -> Tensor:
        """Probabilities (B, N, 28, 28) of the class of each box."""
        regions = self.regions
        features = regions.mask_head(self._cut(regions.mask_roi_pool, levels, boxes_BN4))
        logits_RKhw = regions.mask_predictor(features)[:, 1:]
        logits_Rhw = gather(logits_RKhw, labels_BN.flatten().unsqueeze(1)).squeeze(1)
        masks_BNhw = torch.unflatten(logits_Rhw.sigmoid(), 0, labels_BN.shape)
        return masks_BNhw * (scores_BN > 0)[:, :, None, None]

    def _cut(self, pool: nn.Module, levels: Sequence[Tensor], boxes_BR4: Tensor) -> Tensor:
        cut_RCss: Tensor = pool(by_name(levels), boxes_BR4.unbind())
        return cut_RCss


def by_name(levels: Sequence[Tensor]) -> dict[str, Tensor]:
    """Levels as torchvision's parts want them."""
    return {str(index): level for index, level in enumerate(levels)}


def _background_first(target: Target) -> dict[str, Tensor]:
    return {**target, "boxes": target["boxes"].float(), "labels": target["labels"] + 1}
