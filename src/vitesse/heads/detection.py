"""What detection heads share: targets, and a fixed number of detections for every image.

A head takes the levels of a pyramid, the images they come from and, to train, targets. Training gives named
losses, evaluation `Detections`. Its `classifiers` are how the names of parameters begin that depend on the
classes; `any_batch` is whether a graph of it takes any number of images, which `suppress` does not.

Boxes are left, top, right and bottom in pixels of the input. Shape suffixes: B images, G objects of an image,
N detections, P positions (or anchors), K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vitesse.errors import ConfigError, DataError

Target = Mapping[str, Tensor]
"""Of one image: `boxes` (G, 4) float, `labels` (G,) int64 from 0, if asked `masks` (G, H, W) of 0 and 1."""
Losses = dict[str, Tensor]
"""Each a scalar and ready weighted: their sum is what to minimise."""
Detections = tuple[Tensor, ...]
"""`boxes` (B, N, 4), `scores` (B, N) in 0..1 with the highest first, `labels` (B, N) int64; of instance
segmentation also `masks` (B, N, 28, 28), probabilities over each box. What is left of the N is all zero."""
MIN_SIDE = 1e-3
"""Pixels that a box must have in both directions."""


def check_targets(
    targets: Sequence[Target] | None, images: Tensor, num_classes: int, *, masks: bool = False
) -> Sequence[Target]:
    """The targets, as they are.

    Args:
        targets: one for each image.
        images: the batch (B, C, H, W) that they belong to.
        masks: whether they must have masks.

    Raises:
        ConfigError: there are none, or of another number than images.
        DataError: a shape, box or label that cannot be; the message says of which image.
    """
    batch, size = len(images), tuple(images.shape[2:])
    if targets is None or len(targets) != batch:
        got = "none" if targets is None else str(len(targets))
        raise ConfigError(f"targets: expected one for each of the {batch} images to train on, got {got}")
    for index, target in enumerate(targets):
        _check_shapes(index, target, size if masks else None)
    if any(len(target["boxes"]) for target in targets):
        _check_values(targets, num_classes)
    return targets


def _check_shapes(index: int, target: Target, mask_size: tuple[int, ...] | None) -> None:
    keys = ("boxes", "labels", *(("masks",) if mask_size else ()))
    absent = [key for key in keys if key not in target]
    if absent:
        raise DataError(f"targets of image {index}: expected {', '.join(keys)}, {absent[0]} is missing")
    count = len(target["boxes"])
    wanted = {"boxes": (count, 4), "labels": (count,), "masks": (count, *(mask_size or ()))}
    for key in keys:
        if (shape := tuple(target[key].shape)) != wanted[key]:
            raise DataError(f"targets of image {index}: expected {key} of shape {wanted[key]}, got {shape}")


def _check_values(targets: Sequence[Target], num_classes: int) -> None:
    boxes = torch.cat([target["boxes"] for target in targets])
    labels = torch.cat([target["labels"] for target in targets])
    bad_box = ~(torch.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    bad_label = (labels < 0) | (labels >= num_classes)
    if not (bad_box | bad_label).any():
        return
    first = int((bad_box | bad_label).nonzero()[0])
    image, index = 0, first
    while index >= len(targets[image]["boxes"]):
        index -= len(targets[image]["boxes"])
        image += 1
    what = f"a label in 0..{num_classes - 1}, got {labels[first].item()}"
    if bad_box[first]:
        what = f"finite left < right and top < bottom, got {boxes[first].tolist()}"
    raise DataError(f"targets of image {image}: object {index}: expected {what}")


def clip_boxes(boxes_BN4: Tensor, image_size: Sequence[int]) -> Tensor:
    """Boxes cut off at the border of images of (height, width) pixels."""
    height, width = image_size
    left, top, right, bottom = boxes_BN4.unbind(-1)
    return torch.stack(
        (left.clamp(0, width), top.clamp(0, height), right.clamp(0, width), bottom.clamp(0, height)), -1
    )


def decode(coder: Any, deltas_BN4: Tensor, anchors_BN4: Tensor, image_size: Sequence[int]) -> Tensor:
    """The boxes that a `BoxCoder` of torchvision makes of deltas and anchors, clipped: (B, N, 4)."""
    boxes = coder.decode_single(deltas_BN4.flatten(0, 1), anchors_BN4.flatten(0, 1))
    return clip_boxes(boxes.view_as(deltas_BN4), image_size)


def gather(x_BN: Tensor, index_BM: Tensor) -> Tensor:
    """The rows of (B, N, ...) that an index (B, M) names, image by image: (B, M, ...)."""
    index = index_BM.reshape(*index_BM.shape, *[1] * (x_BN.ndim - 2)).expand(-1, -1, *x_BN.shape[2:])
    return x_BN.gather(1, index)


def best_pairs(scores_BPK: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of position and class with the highest scores: scores, positions, labels, each (B, N).

    N is `count`, or all pairs where those are fewer. Positions are preselected by their best class, which
    leaves out no pair: each of the first N positions has a pair that is no worse than any left out.
    """
    num_classes = scores_BPK.shape[2]
    kept_BM = scores_BPK.amax(2).topk(min(count, scores_BPK.shape[1]), dim=1).indices
    pairs = gather(scores_BPK, kept_BM).flatten(1)
    scores_BN, pair_BN = pairs.topk(min(count, pairs.shape[1]), dim=1)
    positions_BN = kept_BM.gather(1, torch.div(pair_BN, num_classes, rounding_mode="floor"))
    return scores_BN, positions_BN, pair_BN % num_classes


def suppress(
    candidates: Sequence[tuple[Tensor, Tensor, Tensor]],
    image_size: Sequence[int],
    *,
    max_overlap: float,
    min_score: float,
    count: int,
) -> Detections:
    """The `count` best candidates that overlap no better one of their class by more than `max_overlap`.

    Boxes without area are none. What is left of the count is all zero.

    Args:
        candidates: scores (B, M), boxes (B, M, 4) and labels (B, M) of each level.
    """
    # Takes seconds to import, and not all heads need it.
    from torchvision.ops import nms

    scores_BM, boxes_BM4, labels_BM = (torch.cat(parts, dim=1) for parts in zip(*candidates, strict=True))
    apart_BM4 = boxes_BM4 + (labels_BM * (max(image_size) + 1)).unsqueeze(-1)  # classes never overlap
    kept_BM = torch.stack(
        [
            torch.zeros_like(scores_M).index_fill(0, nms(apart_M4, scores_M, max_overlap), 1)
            for apart_M4, scores_M in zip(apart_BM4.unbind(), scores_BM.unbind(), strict=True)
        ]
    )
    has_area_BM = (boxes_BM4[..., 2:] - boxes_BM4[..., :2]).amin(2) > MIN_SIDE
    kept_BM = kept_BM * (scores_BM > min_score) * has_area_BM
    scores_BN, index_BN = (scores_BM * kept_BM).topk(min(count, scores_BM.shape[1]), dim=1)
    found_BN = scores_BN > 0
    boxes_BN4 = gather(boxes_BM4, index_BN) * found_BN.unsqueeze(-1)
    return boxes_BN4, scores_BN, labels_BM.gather(1, index_BN) * found_BN
