"""Real-time detection without anchors and without suppression of duplicates.

Every position of every level predicts class scores and the distances to the four sides of a box (FCOS,
arXiv 1904.01355). Two predictors learn together (arXiv 2405.14458): `one_to_many`, in training only, finds
several positions for each object and so teaches the levels; `one_to_one` finds one, so that its best
predictions are the result as they are.

Shape suffixes: B images, C channels, H rows, W columns, P positions of all levels, N detections, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.heads.assignment import assign
from vitesse.heads.detection import Detections, Losses, Target, best_pairs, check_targets, clip_boxes, gather
from vitesse.layers import ConvNorm, upcast

MAX_DETECTIONS = 300
TOWER_DEPTH = 2
PRIOR_OBJECTS = 5.0
"""All scores of an untrained predictor together, on each level of a picture of 640x640 pixels."""
PRIOR_DISTANCE = 2.0
"""Strides from a position to each side of the box that an untrained predictor draws around it."""
BOX_WEIGHT, SIDE_WEIGHT = 2.5, 1.0


class SeparableConv(nn.Sequential):
    """Depthwise 3x3, then 1x1 convolution, ReLU: (B, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            ConvNorm(channels, channels, 3, groups=channels),
            ConvNorm(channels, channels),
            nn.ReLU(inplace=True),
        )


class ConvNormAct(nn.Sequential):
    """Convolution, BatchNorm, ReLU: what a pyramid for this head is made of."""

    def __init__(self, in_chans: int, out_chans: int, kernel: int) -> None:
        super().__init__(ConvNorm(in_chans, out_chans, kernel), nn.ReLU(inplace=True))


class LevelPredictor(nn.Module):
    """One level (B, C, H, W) to logits (B, H*W, K) and distances (B, H*W, 4) in strides, none negative."""

    def __init__(self, stride: int, channels: int, num_classes: int) -> None:
        super().__init__()
        prior_score = PRIOR_OBJECTS * (stride / 640) ** 2 / num_classes
        self.classify = _tower(channels, num_classes, math.log(prior_score / (1 - prior_score)))
        self.locate = _tower(channels, 4, math.log(math.expm1(PRIOR_DISTANCE)))

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        logits, distances = (upcast(tower(x_BCHW)).flatten(2).mT for tower in (self.classify, self.locate))
        return logits, F.softplus(distances)


def _tower(channels: int, outputs: int, bias: float) -> nn.Sequential:
    last = nn.Conv2d(channels, outputs, 1)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.constant_(last.bias, bias)  # type: ignore[arg-type]
    return nn.Sequential(*(SeparableConv(channels) for _ in range(TOWER_DEPTH)), last)


class PointPredictor(nn.Module):
    """All levels to logits (B, P, K) and boxes (B, P, 4)."""

    def __init__(self, strides: Sequence[int], channels: int, num_classes: int) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.levels = nn.ModuleList(LevelPredictor(stride, channels, num_classes) for stride in strides)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        predicted = [predict(x_BCHW) for predict, x_BCHW in zip(self.levels, levels, strict=True)]
        logits_BPK, distances_BP4 = (torch.cat(parts, dim=1) for parts in zip(*predicted, strict=True))
        points_P2, strides_P = positions(levels, self.strides)
        return logits_BPK, boxes_around(points_P2, distances_BP4 * strides_P[:, None])


def positions(levels: Sequence[Tensor], strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Centres (P, 2) as (x, y) in pixels and strides (P,) of the positions of all levels, float32."""
    points, steps = [], []
    for level_BCHW, stride in zip(levels, strides, strict=True):
        height, width = level_BCHW.shape[2:]
        y_H, x_W = (
            (torch.arange(count, device=level_BCHW.device) + 0.5) * stride for count in (height, width)
        )
        x_HW, y_HW = x_W.expand(height, width), y_H[:, None].expand(height, width)
        points.append(torch.stack((x_HW, y_HW), -1).flatten(0, 1))
        steps.append(torch.full_like(x_HW, stride).flatten())
    return torch.cat(points), torch.cat(steps)


def boxes_around(points_P2: Tensor, distances_BP4: Tensor) -> Tensor:
    """Boxes whose left, top, right and bottom are so many pixels away from the points: (B, P, 4)."""
    return torch.cat((points_P2 - distances_BP4[..., :2], points_P2 + distances_BP4[..., 2:]), dim=-1)


class EndToEndHead(nn.Module):
    """Levels to detections: the N best of all positions and classes.

    Attributes:
        one_to_one: predicts what is returned.
        one_to_many: helps in training; None in a folded model.
    """

    one_to_many: PointPredictor | None

    def __init__(self, strides: Sequence[int], channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.one_to_one = PointPredictor(strides, channels, num_classes)
        self.one_to_many = PointPredictor(strides, channels, num_classes)
        self.any_batch = True
        self.classifiers = tuple(
            f"{predictor}.levels.{level}.classify.{TOWER_DEPTH}."
            for predictor in ("one_to_one", "one_to_many")
            for level in range(len(strides))
        )

    def forward(
        self, levels: Sequence[Tensor], images: Tensor, targets: Sequence[Target] | None = None
    ) -> Losses | Detections:
        if self.training:
            return self.losses(levels, check_targets(targets, images, self.num_classes))
        logits_BPK, boxes_BP4 = self.one_to_one(levels)
        scores_BN, positions_BN, labels_BN = best_pairs(logits_BPK.sigmoid(), MAX_DETECTIONS)
        return clip_boxes(gather(boxes_BP4, positions_BN), images.shape[2:]), scores_BN, labels_BN

    def losses(self, levels: Sequence[Tensor], targets: Sequence[Target]) -> Losses:
        """Losses of both predictors. The levels learn from `one_to_many` alone."""
        assert self.one_to_many is not None
        points_P2, strides_P = positions(levels, self.one_to_one.strides)
        found: Losses = {}
        for name, predictor, unique in (
            ("one_to_many", self.one_to_many, False),
            ("one_to_one", self.one_to_one, True),
        ):
            logits_BPK, boxes_BP4 = predictor([x.detach() for x in levels] if unique else levels)
            classify, locate = dense_losses(
                logits_BPK, boxes_BP4, points_P2, strides_P, targets, unique=unique
            )
            found |= {f"{name}_class": classify, f"{name}_box": locate}
        return found


def dense_losses(
    logits_BPK: Tensor,
    boxes_BP4: Tensor,
    points_P2: Tensor,
    strides_P: Tensor,
    targets: Sequence[Target],
    *,
    unique: bool,
) -> tuple[Tensor, Tensor]:
    """Of the classes, binary cross-entropy with the wanted scores; of the boxes, GIoU and distance.

    Classes are summed and divided by the sum of all wanted scores, boxes averaged by the shares of their
    positions in their objects, so that each object counts as much, however badly it is found yet. GIoU is
    joined by the mean distance of the sides in strides, which still pulls where boxes hardly overlap.
    """
    # Takes seconds to import, and only training needs it.
    from torchvision.ops import generalized_box_iou_loss

    scores_BPK, wanted_BPK = logits_BPK.detach().sigmoid(), torch.zeros_like(logits_BPK)
    predicted, actual, strides, shares = [], [], [], []
    for i, target in enumerate(targets):
        found = assign(scores_BPK[i], boxes_BP4[i].detach(), points_P2, strides_P, target, unique=unique)
        (hits,) = torch.where(found.owner_P >= 0)
        owner = found.owner_P[hits]
        wanted_BPK[i, hits, target["labels"][owner]] = found.score_P[hits]
        predicted.append(boxes_BP4[i, hits])
        actual.append(target["boxes"][owner].to(boxes_BP4.dtype))
        strides.append(strides_P[hits])
        shares.append(found.share_P[hits])
    classify = F.binary_cross_entropy_with_logits(logits_BPK, wanted_BPK, reduction="sum")
    predicted_M4, actual_M4, share_M = torch.cat(predicted), torch.cat(actual), torch.cat(shares)
    apart_M = (predicted_M4 - actual_M4).abs().mean(1) / torch.cat(strides)
    locate_M = BOX_WEIGHT * generalized_box_iou_loss(predicted_M4, actual_M4) + SIDE_WEIGHT * apart_M
    return classify / wanted_BPK.sum().clamp(min=1), (locate_M * share_M).sum() / share_M.sum().clamp(min=1)
