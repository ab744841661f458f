"""Outputs of a model to results in pixels of the picture, the same for every engine.

Shape suffixes: B pictures, K classes, N detections, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import ConfigError, EngineError
from vitesse.results import Classification, Detection, Detections, Prediction, Record, SemanticMap
from vitesse.runtime.imaging import Placement
from vitesse.spec import Task

RECORDS: Mapping[Task, type[Record]] = {
    "classify": Classification,
    "detect": Detections,
    "segment": SemanticMap,
}
"""What a task's result is."""

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
) -> tuple[Detection, ...]:
    """The objects of a picture that score at least `min_score`, highest first; boxes of no area are left out.

    Args:
        boxes_N4: left, top, right, bottom in pixels of the input.

    Raises:
        EngineError: a label of such an object is no class.
    """
    kept = np.flatnonzero(scores_N >= max(min_score, np.finfo(np.float32).tiny))
    order = kept[np.argsort(-scores_N[kept], kind="stable")]
    boxes = placement.box_in_picture(boxes_N4[order])
    found = []
    for box, score, label in zip(
        boxes.tolist(), scores_N[order].tolist(), labels_N[order].tolist(), strict=True
    ):
        if not 0 <= label < len(class_names):
            raise EngineError(f"expected labels of 0 to {len(class_names) - 1}, got {label}")
        left, top, right, bottom = box
        if right > left and bottom > top:
            bbox = (left, top, right - left, bottom - top)
            name = class_names[int(label)]
            found.append(Detection(label=name, index=int(label), score=min(1.0, score), bbox=bbox))
    return tuple(found)


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
