"""How much of each class is found by its pixels.

Shape suffixes: H rows, W columns, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.dense import IGNORE
from vitesse.errors import DataError, ImageError
from vitesse.spec import to_mapping

if TYPE_CHECKING:
    from vitesse.data.dense import MapSource


@dataclass(frozen=True, kw_only=True)
class MapScores:
    """Shares of labelled pixels, 0 to 1, of all pictures together; `refused` ones could not be read.

    Attributes:
        miou: mean of `class_iou`.
        class_iou: of each class, the pixels that are both found and labelled of those that are either; None
            of a class that is neither anywhere, which the mean leaves out.
        accuracy: pixels whose class is found.
    """

    miou: float
    class_iou: tuple[float | None, ...]
    accuracy: float
    images: int
    refused: int = 0

    @property
    def best_by(self) -> float:
        """What makes weights the best ones."""
        return self.miou

    def brief(self) -> dict[str, float]:
        """The two figures to know, by their keys."""
        return {"miou": self.miou, "accuracy": self.accuracy}

    def explain(self) -> str:
        """In a few words."""
        return f"mean IoU {self.miou:.2%}, pixels right {self.accuracy:.2%}"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return to_mapping(self)


class MapScorer:
    """The label maps that a model gives for pictures of a source, counted and scored.

    Pictures that are never added count as refused.
    """

    def __init__(self, source: MapSource) -> None:
        self.source = source
        classes = len(source.class_names)
        self.confusion_KK = np.zeros((classes, classes), np.int64)
        self._added: set[int] = set()

    def add(self, index: int, predicted_HW: NDArray[np.integer[Any]]) -> None:
        """Class indices of a picture at its original size; those at unlabelled pixels do not count.

        Raises:
            ImageError, OSError: the right label map cannot be read, or is of another size.
            DataError: the picture was added before, or an index is no class.
        """
        if index in self._added:
            raise DataError(f"{self.source.name(index)}: expected each picture once, it was added before")
        labels_HW = self.source.label_map(index)
        if labels_HW.shape != predicted_HW.shape:
            raise ImageError(
                f"expected a label map of {_size(predicted_HW)} pixels as its picture, got {_size(labels_HW)}"
            )
        self.confusion_KK += confusion(predicted_HW, labels_HW, len(self.confusion_KK))
        self._added.add(index)

    def scores(self) -> MapScores:
        """The figures of all that was added.

        Raises:
            DataError: no pixel of it is labelled.
        """
        images = len(self._added)
        return scores_of(self.confusion_KK, images=images, refused=len(self.source) - images)


def scores_of(confusion_KK: NDArray[np.int64], *, images: int, refused: int = 0) -> MapScores:
    """The figures of a confusion matrix of `confusion`.

    Raises:
        DataError: no pixel is labelled.
    """
    labelled = confusion_KK.sum()
    if not labelled:
        raise DataError(f"{images} pictures were looked at, none has a labelled pixel")
    both_K = confusion_KK.diagonal()
    either_K = confusion_KK.sum(axis=0) + confusion_KK.sum(axis=1) - both_K
    class_iou = [b / e if e else None for b, e in zip(both_K.tolist(), either_K.tolist(), strict=True)]
    return MapScores(
        miou=float(np.mean([iou for iou in class_iou if iou is not None])),
        class_iou=tuple(class_iou),
        accuracy=float(both_K.sum() / labelled),
        images=images,
        refused=refused,
    )


def confusion(
    predicted: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]], classes: int
) -> NDArray[np.int64]:
    """How many pixels of each label were given each class, (K, K); those labelled `IGNORE` are left out.

    Raises:
        DataError: a prediction at a labelled pixel is no class.
    """
    labelled = labels != IGNORE
    found, right = predicted[labelled].astype(np.int64), labels[labelled].astype(np.int64)
    if found.size and not 0 <= found.min() <= found.max() < classes:
        raise DataError(f"expected class indices of 0 to {classes - 1}, got {found.min()} to {found.max()}")
    return np.bincount(right * classes + found, minlength=classes**2).reshape(classes, classes)


def _size(map_HW: NDArray[Any]) -> str:
    return "x".join(map(str, map_HW.shape[::-1]))
