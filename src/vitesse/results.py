"""Results of inference: values that check themselves and turn into JSON and back.

Coordinates are pixels of the picture as it came. Shape suffixes: H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.spec import from_mapping, to_mapping

COUNTED_AT_ONCE = 2**22
"""Pixels: to be counted, each takes eight bytes."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One class with its score: `score` is a probability in 0..1, `index` the class index."""

    label: str
    index: int
    score: float

    def __post_init__(self) -> None:
        _check_share("score", self.label, self.score)


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The result for one input: predictions with the highest score first, or the error that refused it.

    Attributes:
        source: where the picture came from, as the user named it.
        model: the model's name.
        predictions: highest score first; empty when `error` is set.
        error: one line saying what was wrong with this input, or None.
    """

    source: str
    model: str
    predictions: tuple[Prediction, ...] = ()
    error: str | None = None
    task: str = "classify"

    def __post_init__(self) -> None:
        if bool(self.predictions) == (self.error is not None):
            raise ValueError(f"{self.source}: expected predictions or an error, got both or neither")
        _check_order(self.source, [p.score for p in self.predictions])

    @property
    def top(self) -> Prediction:
        """The prediction with the highest score.

        Raises:
            ValueError: the input was refused.
        """
        if self.error is not None:
            raise ValueError(f"{self.source}: no prediction, {self.error}")
        return self.predictions[0]

    def to_dict(self) -> dict[str, Any]:
        """The JSON record: source, task, model, predictions of label, index and score, error."""
        return to_mapping(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Classification:
        """Read `to_dict`'s form."""
        predictions = tuple(from_mapping(Prediction, p) for p in raw["predictions"])
        return from_mapping(cls, {**raw, "predictions": predictions})


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object.

    Attributes:
        score: 0..1.
        index: class index.
        bbox: left, top, width, height, as COCO has it.
        segmentation: its pixels as COCO's run lengths, see `run_lengths`; a hundred objects of a large
            picture take a few megabytes in this form. None of a model that gives boxes alone.
    """

    label: str
    index: int
    score: float
    bbox: tuple[float, float, float, float]
    segmentation: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_share("score", self.label, self.score)
        if not all(map(math.isfinite, self.bbox)) or min(self.bbox[2:]) < 0:
            raise ValueError(f"bbox of {self.label!r}: expected left, top, width, height, got {self.bbox}")
        if self.segmentation is not None:
            _check_run_lengths(self.segmentation)

    def mask(self) -> NDArray[np.bool_] | None:
        """The pixels as bool (H, W), rows and columns of the picture as it came."""
        return None if self.segmentation is None else from_run_lengths(self.segmentation)

    def to_dict(self) -> dict[str, Any]:
        """Label, index, score and bbox; where there is a mask also `segmentation`."""
        record = to_mapping(self)
        if self.segmentation is None:
            del record["segmentation"]
        return record

    def moved(self, top: int, left: int, size: tuple[int, int]) -> Detection:
        """The same object in a picture of `size` (height, width), of which this one begins at a row and a
        column."""
        x, y, width, height = self.bbox
        placed = replace(self, bbox=(x + left, y + top, width, height))
        if self.segmentation is None or tuple(self.segmentation["size"]) == size:
            return placed
        mask_HW = from_run_lengths(self.segmentation)
        return replace(placed, segmentation=run_lengths(mask_HW, size, (top, left)))


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The result for one picture: its objects with the highest score first, which may be none, or an error.

    Attributes:
        size: (height, width) of the picture; None when `error` is set.
    """

    source: str
    model: str
    size: tuple[int, int] | None = None
    predictions: tuple[Detection, ...] = ()
    error: str | None = None
    task: str = "detect"

    def __post_init__(self) -> None:
        _check_size_or_error(self.source, self.size, self.error)
        _check_order(self.source, [p.score for p in self.predictions])
        for found in self.predictions:
            if found.segmentation is not None and tuple(found.segmentation["size"]) != self.size:
                raise ValueError(
                    f"{self.source}: expected masks of {self.size}, got {found.segmentation['size']}"
                )

    def to_dict(self) -> dict[str, Any]:
        """The JSON record: source, task, model, size, predictions as `Detection.to_dict` gives, error."""
        return to_mapping(self) | {"predictions": [found.to_dict() for found in self.predictions]}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Detections:
        """Read `to_dict`'s form."""
        predictions = tuple(from_mapping(Detection, p) for p in raw["predictions"])
        return from_mapping(cls, {**raw, "predictions": predictions})


@dataclass(frozen=True, kw_only=True)
class Region:
    """The pixels of one class: `share` is their part of the picture, 0..1."""

    label: str
    index: int
    share: float

    def __post_init__(self) -> None:
        _check_share("share", self.label, self.share)


@dataclass(frozen=True, kw_only=True, eq=False)
class SemanticMap:
    """The result for one picture: a class for every pixel, or an error.

    Attributes:
        classes_HW: class indices, unsigned whole numbers; None when `error` is set.
        predictions: the classes that the map holds, the largest first.
    """

    source: str
    model: str
    classes_HW: NDArray[Any] | None = None
    predictions: tuple[Region, ...] = ()
    error: str | None = None
    task: str = "segment"

    def __post_init__(self) -> None:
        _check_size_or_error(self.source, self.size, self.error)
        _check_order(self.source, [p.share for p in self.predictions])

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the picture."""
        return None if self.classes_HW is None else (self.classes_HW.shape[0], self.classes_HW.shape[1])

    def to_dict(self) -> dict[str, Any]:
        """The JSON record: source, task, model, size, error, and of each class label, index, share and its
        pixels as COCO's run lengths (`run_lengths`)."""
        classes_HW = np.empty(0) if self.classes_HW is None else self.classes_HW
        found = [
            {**to_mapping(region), "segmentation": run_lengths(classes_HW == region.index)}
            for region in self.predictions
        ]
        rest = {key: getattr(self, key) for key in ("source", "task", "model")}
        return {**rest, "size": self.size and list(self.size), "predictions": found, "error": self.error}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> SemanticMap:
        """Read `to_dict`'s form."""
        known = {key: raw[key] for key in ("source", "model", "error")}
        if raw["size"] is None:
            return cls(**known)
        classes_HW = np.zeros(raw["size"], np.min_scalar_type(max(p["index"] for p in raw["predictions"])))
        for region in raw["predictions"]:
            classes_HW[from_run_lengths(region["segmentation"])] = region["index"]
        found = ({key: p[key] for key in ("label", "index", "share")} for p in raw["predictions"])
        predictions = tuple(from_mapping(Region, region) for region in found)
        return cls(classes_HW=classes_HW, predictions=predictions, **known)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """The pixels of one object.

    Attributes:
        mask_HW: bool, rows and columns of the picture as it came.
        score: the IoU that the mask is expected to have with the object, 0..1.
    """

    mask_HW: NDArray[np.bool_]
    score: float

    def __post_init__(self) -> None:
        if self.mask_HW.dtype != np.bool_ or self.mask_HW.ndim != 2:
            raise ValueError(f"mask: expected bool (H, W), got {self.mask_HW.dtype} {self.mask_HW.shape}")
        _check_share("score", "mask", self.score)

    @property
    def area(self) -> int:
        """Pixels inside."""
        return int(np.count_nonzero(self.mask_HW))

    @property
    def bbox(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the pixels inside, as COCO has it; zeros for an empty mask."""
        rows, columns = (np.flatnonzero(self.mask_HW.any(axis)) for axis in (1, 0))
        if not rows.size:
            return 0, 0, 0, 0
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top

    def to_dict(self) -> dict[str, Any]:
        """Score, bbox, area and the pixels as `segmentation`, see `run_lengths`."""
        known = {"score": self.score, "bbox": list(self.bbox), "area": self.area}
        return known | {"segmentation": run_lengths(self.mask_HW)}


@dataclass(frozen=True, kw_only=True)
class Masks:
    """The result for one picture: one mask for each object that was asked for, in that order.

    Attributes:
        size: (height, width) of the picture in pixels.
    """

    source: str
    model: str
    size: tuple[int, int]
    predictions: tuple[Mask, ...]
    task: str = "promptable"

    def __post_init__(self) -> None:
        for mask in self.predictions:
            if mask.mask_HW.shape != self.size:
                raise ValueError(f"{self.source}: expected masks of {self.size}, got {mask.mask_HW.shape}")

    def to_dict(self) -> dict[str, Any]:
        """The JSON record: source, task, model, size, and of each mask what `Mask.to_dict` gives."""
        known = {"source": self.source, "task": self.task, "model": self.model, "size": list(self.size)}
        return known | {"predictions": [mask.to_dict() for mask in self.predictions]}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Masks:
        """Read `to_dict`'s form."""
        masks = tuple(
            Mask(mask_HW=from_run_lengths(mask["segmentation"]), score=mask["score"])
            for mask in raw["predictions"]
        )
        return from_mapping(cls, {**raw, "predictions": masks})


Record = Classification | Detections | SemanticMap


def regions(classes_HW: NDArray[Any], class_names: Sequence[str]) -> tuple[Region, ...]:
    """The classes that a map of class indices holds, the largest first."""
    counts_K = np.zeros(len(class_names), np.int64)
    for rows_HW in np.array_split(classes_HW, 1 + classes_HW.size // COUNTED_AT_ONCE):
        counts_K += np.bincount(rows_HW.ravel(), minlength=len(class_names))
    shares_K = counts_K / classes_HW.size
    order = np.argsort(-counts_K, kind="stable")[: np.count_nonzero(counts_K)]
    return tuple(
        Region(label=class_names[index], index=index, share=float(shares_K[index]))
        for index in order.tolist()
    )


def run_lengths(
    mask_HW: NDArray[np.bool_], size: tuple[int, int] | None = None, offset: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    """A mask as COCO has it: `size`, and `counts` of pixels outside and inside in turn, column by column.

    Args:
        mask_HW: of a whole picture, or of the part of it that starts at `offset` (row, column).
        size: (height, width) of the picture; by default the mask's.
    """
    (rows, _), (height, width), (top, left) = mask_HW.shape, size or mask_HW.shape, offset
    columns_WH = np.pad(mask_HW.T, ((0, 0), (1, 1)))
    changes = np.flatnonzero(columns_WH[:, 1:] != columns_WH[:, :-1])
    column, row = np.divmod(changes, rows + 1)
    edges = (left + column) * height + top + row
    # what reaches from the bottom of one column to the top of the next is one run
    joined = np.flatnonzero(edges[1:] == edges[:-1])
    edges = np.delete(edges, np.concatenate([joined, joined + 1]))
    ends = [0, *edges.tolist(), height * width]
    counts = [last - first for first, last in pairwise(ends)]
    return {"size": [height, width], "counts": counts if counts[-1] or not edges.size else counts[:-1]}


def from_run_lengths(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The mask (H, W) of `run_lengths`.

    Raises:
        ValueError: the counts are not those of its size.
    """
    _check_run_lengths(rle)
    inside = np.arange(len(rle["counts"])) % 2 == 1
    return np.repeat(inside, rle["counts"]).reshape(tuple(rle["size"]), order="F")


def _check_run_lengths(rle: Mapping[str, Any]) -> None:
    (height, width), counts = rle["size"], rle["counts"]
    if sum(counts) != height * width:
        raise ValueError(f"expected counts of {height * width} pixels, got {sum(counts)}")
    if min(counts, default=0) < 0:
        raise ValueError(f"expected counts of {height * width} pixels, none below 0, got {min(counts)}")


def _check_share(what: str, label: str, value: float) -> None:
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"{what} of {label!r}: expected 0..1, got {value}")


def _check_order(source: str, values: list[float]) -> None:
    if values != sorted(values, reverse=True):
        raise ValueError(f"{source}: expected the highest first, got {values}")


def _check_size_or_error(source: str, size: tuple[int, int] | None, error: str | None) -> None:
    if (size is None) == (error is None):
        raise ValueError(f"{source}: expected a result or an error, got both or neither")
