"""Outputs of a model to results in pixels of the picture, the same for every engine.

Shape suffixes: B pictures, K classes, N detections, H rows, W columns, h and w those of a mask over its box.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import ConfigError, EngineError
from vitesse.results import (
    Classification,
    Detection,
    Detections,
    Prediction,
    Record,
    SemanticMap,
    run_lengths,
)
from vitesse.runtime.imaging import Placement
from vitesse.spec import Task

RECORDS: Mapping[Task, type[Record]] = {
    "classify": Classification,
    "detect": Detections,
    "segment": SemanticMap,
}
"""What a task's result is."""

Segmentation = Mapping[str, Any]
"""A mask as run lengths, see `run_lengths`."""

INSIDE = 0.5
"""Probability from which on a pixel belongs to an object."""

STRIP = 512
"""Rows of an object whose probabilities are worked out at once: few beside those of a huge picture."""

TINY = float(np.finfo(np.float32).tiny)
Outcome = Mapping[str, Any] | str
"""What came of a picture: what its record says beside source and model, or why there is nothing."""


def softmax(logits_BK: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities (B, K) float64 that sum to 1 a row, for logits of any finite size."""
    x_BK = logits_BK.astype(np.float64)
    x_BK -= x_BK.max(axis=1, keepdims=True)
    np.exp(x_BK, out=x_BK)
    x_BK /= x_BK.sum(axis=1, keepdims=True)
    return x_BK


def top_k(logits_BK: NDArray[Any], class_names: Sequence[str], k: int) -> list[tuple[Prediction, ...]]:
    """The k likeliest classes of each row, highest score first; of equal scores the lower index first.

    Args:
        logits_BK: finite logits.
        class_names: K names.
        k: how many; all K when it is larger.

    Raises:
        ConfigError: k is less than 1.
        EngineError: the logits are not (B, K) for K class names.
    """
    if k < 1:
        raise ConfigError(f"top_k: expected at least 1, got {k}")
    if logits_BK.ndim != 2 or logits_BK.shape[1] != len(class_names):
        raise EngineError(f"expected logits (B, {len(class_names)}), one a class name, got {logits_BK.shape}")
    scores_BK = softmax(logits_BK)
    order_BK = np.argsort(-scores_BK, axis=1, kind="stable")[:, :k]
    return [
        tuple(
            Prediction(label=class_names[index], index=index, score=min(1.0, float(scores_K[index])))
            for index in order_K.tolist()
        )
        for scores_K, order_K in zip(scores_BK, order_BK, strict=True)
    ]


def found_objects(
    boxes_N4: NDArray[Any],
    scores_N: NDArray[Any],
    labels_N: NDArray[Any],
    placement: Placement,
    class_names: Sequence[str],
    min_score: float,
    masks_Nhw: NDArray[Any] | None = None,
) -> tuple[Detection, ...]:
    """The objects of a picture that score at least `min_score`, highest first; boxes of no area are left out.

    Args:
        boxes_N4: left, top, right, bottom in pixels of the input.
        masks_Nhw: of instance segmentation, probabilities over each box.

    Raises:
        EngineError: a label of such an object is no class.
    """
    whole_N4 = placement.box_in_picture(boxes_N4, clip=False)

    def segmentation(at: int) -> Segmentation | None:
        return None if masks_Nhw is None else pasted(masks_Nhw[at], whole_N4[at], placement.full)

    boxes_N4 = placement.box_in_picture(boxes_N4)
    return as_detections(boxes_N4, scores_N, labels_N, class_names, min_score, segmentation)


def as_detections(
    boxes_N4: NDArray[Any],
    scores_N: NDArray[Any],
    labels_N: NDArray[Any],
    class_names: Sequence[str],
    min_score: float,
    segmentation: Callable[[int], Segmentation | None],
) -> tuple[Detection, ...]:
    """As `found_objects`, of boxes in pixels of the picture; `segmentation` gives the mask of one of them."""
    kept = np.flatnonzero(scores_N >= max(min_score, TINY))
    found = []
    for at in kept[np.argsort(-scores_N[kept], kind="stable")].tolist():
        label, (left, top, right, bottom) = int(labels_N[at]), boxes_N4[at].tolist()
        if not 0 <= label < len(class_names):
            raise EngineError(f"expected labels of 0 to {len(class_names) - 1}, got {label}")
        if right > left and bottom > top:
            found.append(
                Detection(
                    label=class_names[label],
                    index=label,
                    score=min(1.0, float(scores_N[at])),
                    bbox=(left, top, right - left, bottom - top),
                    segmentation=segmentation(at),
                )
            )
    return tuple(found)


def pasted(mask_hw: NDArray[Any], corners: NDArray[Any], size: tuple[int, int]) -> dict[str, Any]:
    """The pixels of an object as COCO's run lengths: where its mask, laid over its box, is at least `INSIDE`.

    Bilinear at the centres of pixels, with zeros around the mask (Mask R-CNN, arXiv 1703.06870, section 3.1):
    for rows and columns alike a product of matrices. Only the box is looked at.

    Args:
        mask_hw: probabilities, evenly spread over the box.
        corners: left, top, right, bottom in pixels of the picture; what reaches outside is left out.
        size: (height, width) of the picture.
    """
    left, top, right, bottom = corners.tolist()
    first_row, rows = _weights(top, bottom, size[0], mask_hw.shape[0])
    first_column, columns = _weights(left, right, size[1], mask_hw.shape[1])
    across = mask_hw @ columns.T
    strips = [rows[i : i + STRIP] @ across >= INSIDE for i in range(0, max(len(rows), 1), STRIP)]
    return run_lengths(np.concatenate(strips), size, (first_row, first_column))


def _weights(start: float, end: float, length: int, of: int) -> tuple[int, NDArray[np.float32]]:
    """The first pixel of a side of `length` that a box reaches, and how that and the others up to its end are
    made of the `of` values that lie evenly over it: (pixels, of)."""
    first, last = max(0, math.floor(start)), min(length, math.ceil(end))
    centres = (np.arange(first, last) + 0.5 - start) * (of / max(end - start, TINY)) - 0.5
    return first, np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(of))).astype(np.float32)


def in_picture(classes_HW: NDArray[Any], placement: Placement, num_classes: int) -> NDArray[Any]:
    """A map of class indices in the input as one of the picture: nearest neighbour, smallest unsigned type.

    Raises:
        EngineError: an index is no class.
    """
    height, width = placement.shown
    shown_HW = classes_HW[:height, :width]
    if shown_HW.min() < 0 or shown_HW.max() >= num_classes:
        raise EngineError(
            f"expected classes of 0 to {num_classes - 1}, got {shown_HW.min()} to {shown_HW.max()}"
        )
    kind = np.min_scalar_type(num_classes - 1)
    rows, columns = nearest(placement)
    return shown_HW.astype(kind)[rows[:, None], columns]


def nearest(placement: Placement) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the input that show the rows and columns of the picture."""
    rows, columns = (
        np.minimum((np.arange(full) + 0.5) * shown / full, shown - 1).astype(np.intp)
        for full, shown in zip(placement.full, placement.shown, strict=True)
    )
    return rows, columns
