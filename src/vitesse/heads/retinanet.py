"""RetinaNet (Lin et al., ICCV 2017, arXiv 1708.02002) as the papers of our backbones configured it.

torchvision's head, losses and matching; nine anchors a position on strides 8 to 128.

Shape suffixes: B images, P anchors of all levels, M candidates, N detections, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

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

SCALES = tuple(4 * 2 ** (octave / 3) for octave in range(3))
CANDIDATES_PER_LEVEL = 1000
MIN_SCORE = 0.05
MAX_OVERLAP = 0.5
MAX_DETECTIONS = 100


class RetinaHead(nn.Module):
    """Levels of a pyramid to losses or detections."""

    classifiers = ("predict.classification_head.cls_logits.",)
    any_batch = False

    def __init__(self, strides: Sequence[int], channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.anchors = GridAnchors(strides, SCALES)
        self.predict = RetinaNetHead(channels, self.anchors.num_anchors_per_location()[0], num_classes)
        self.matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def forward(
        self, levels: Sequence[Tensor], images: Tensor, targets: Sequence[Target] | None = None
    ) -> Losses | Detections:
        if self.training:
            return self.losses(levels, check_targets(targets, images, self.num_classes))
        size = images.shape[2:]
        candidates = self._candidates(levels, size)
        return suppress(candidates, size, max_overlap=MAX_OVERLAP, min_score=MIN_SCORE, count=MAX_DETECTIONS)

    def outputs(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Class logits (B, P, K) and box deltas (B, P, 4) of all anchors."""
        return {name: upcast(values) for name, values in self.predict(list(levels)).items()}

    def losses(self, levels: Sequence[Tensor], targets: Sequence[Target]) -> Losses:
        """Focal loss of classes and L1 of boxes, each over an image's matched anchors, then their mean."""
        anchors_P4 = torch.cat(self.anchors.by_level(levels))
        matched = [self._match(anchors_P4, target["boxes"]) for target in targets]
        anchors = [anchors_P4] * len(targets)
        losses: Losses = self.predict.compute_loss(targets, self.outputs(levels), anchors, matched)
        return losses

    def _match(self, anchors_P4: Tensor, boxes_G4: Tensor) -> Tensor:
        """The object of every anchor (P,): -1 for none, -2 for neither yes nor no."""
        if not len(boxes_G4):
            return torch.full_like(anchors_P4[:, 0], -1, dtype=torch.int64)
        matched_P: Tensor = self.matcher(box_iou(boxes_G4, anchors_P4))
        return matched_P

    def _candidates(
        self, levels: Sequence[Tensor], image_size: Sequence[int]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The best pairs of anchor and class of each level: scores (B, M), boxes (B, M, 4), labels (B, M)."""
        parts = []
        anchors = self.anchors.by_level(levels)
        counts = [len(anchors_P4) for anchors_P4 in anchors]
        outputs = (torch.split(values, counts, dim=1) for values in self.outputs(levels).values())
        for anchors_P4, logits_BPK, deltas_BP4 in zip(anchors, *outputs, strict=True):
            scores_BM, chosen_BM, labels_BM = best_pairs(logits_BPK.sigmoid(), CANDIDATES_PER_LEVEL)
            boxes_BM4 = decode(self.coder, gather(deltas_BP4, chosen_BM), anchors_P4[chosen_BM], image_size)
            parts.append((scores_BM, boxes_BM4, labels_BM))
        return parts
