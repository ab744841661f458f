"""What an engine finds in pictures with boxes or label maps, in pixels of the pictures themselves.

Shape suffixes: B pictures, N detections, H rows, W columns, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import DataError, ImageError
from vitesse.metrics.detection import BoxScorer, BoxScores
from vitesse.metrics.run import Showing, shown
from vitesse.metrics.segmentation import MapScores, confusion, scores_of
from vitesse.runtime.imaging import place
from vitesse.runtime.postprocess import in_picture

if TYPE_CHECKING:
    from vitesse.data.dense import BoxSource, MapSource
    from vitesse.results import Detections, SemanticMap
    from vitesse.runtime.engines import Engine

ObjectsFound = tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.int64]]
"""Boxes (N, 4), scores (N,) and labels (N,)."""

WORST = 6
"""Pictures that are kept to be looked at."""


@dataclass(frozen=True)
class BoxesFound:
    """The objects of each readable picture, by its index."""

    by_picture: dict[int, ObjectsFound]

    def of_pictures(self, indices: NDArray[np.int64]) -> BoxesFound:
        """The same, where the pictures were those of `indices` in a larger source."""
        return BoxesFound({int(indices[index]): found for index, found in self.by_picture.items()})

    @classmethod
    def joined(cls, parts: Sequence[BoxesFound]) -> BoxesFound:
        """Those of several parts of a source."""
        return cls({index: found for part in parts for index, found in part.by_picture.items()})

    def scores(self, source: BoxSource) -> BoxScores:
        """The figures; of instance segmentation those of its boxes."""
        scorer = BoxScorer(source)
        for index, found in sorted(self.by_picture.items()):
            scorer.add(index, *found)
        return scorer.scores()


def find_boxes(engine: Engine, source: BoxSource, showing: Showing) -> BoxesFound:
    """The objects that a detector finds, however low they score.

    Raises:
        DataError: no picture could be read.
    """
    found = {}
    for outputs, pictures_B, sizes in shown(engine, source, showing):
        rows = zip(*outputs[:3], pictures_B.tolist(), sizes, strict=True)
        for boxes_N4, scores_N, labels_N, picture, size in rows:
            boxes_N4, kept = place(size, showing.preprocess).box_in_picture(boxes_N4), scores_N > 0
            found[picture] = boxes_N4[kept], scores_N[kept], labels_N[kept].astype(np.int64)
    return _some_found(found)


def recorded_boxes(records: Iterable[Detections], source: BoxSource) -> BoxesFound:
    """The objects of records, one a picture of the source.

    Raises:
        DataError: no picture could be read.
    """
    found = {}
    for picture, record in enumerate(records):
        if record.error is None:
            boxes_N4 = np.array([one.bbox for one in record.predictions], np.float64).reshape(-1, 4)
            boxes_N4[:, 2:] += boxes_N4[:, :2]
            scores_N = np.array([one.score for one in record.predictions], np.float32)
            found[picture] = boxes_N4, scores_N, np.array([one.index for one in record.predictions], np.int64)
    return _some_found(found)


def _some_found(by_picture: dict[int, ObjectsFound]) -> BoxesFound:
    if not by_picture:
        raise DataError("no picture could be read, so there is nothing to score")
    return BoxesFound(by_picture)


@dataclass(frozen=True)
class MapsCounted:
    """How many pixels of each label were given each class, over so many pictures.

    Attributes:
        worst: of the pictures with the smallest share of right pixels: that share, the picture's index, and
            the classes (H, W) it was given; smallest first.
    """

    confusion_KK: NDArray[np.int64]
    images: int
    worst: tuple[tuple[float, int, NDArray[Any]], ...] = ()

    def of_pictures(self, indices: NDArray[np.int64]) -> MapsCounted:
        """The same, where the pictures were those of `indices` in a larger source."""
        worst = tuple((share, int(indices[index]), map_HW) for share, index, map_HW in self.worst)
        return dataclasses.replace(self, worst=worst)

    @classmethod
    def joined(cls, parts: Sequence[MapsCounted]) -> MapsCounted:
        """Those of several parts of a source."""
        confusion_KK = np.sum([part.confusion_KK for part in parts], axis=0)
        worst = _worst([one for part in parts for one in part.worst])
        return cls(confusion_KK, sum(part.images for part in parts), worst)

    def scores(self, source: MapSource) -> MapScores:
        """The figures."""
        return scores_of(self.confusion_KK, images=self.images, refused=len(source) - self.images)


def count_maps(engine: Engine, source: MapSource, showing: Showing) -> MapsCounted:
    """The classes that a segmenter gives to labelled pixels, at the pictures' own size.

    Raises:
        DataError: no picture and its label map could be read.
    """
    classes = len(source.class_names)
    maps = (
        (picture, in_picture(classes_HW, place(size, showing.preprocess), classes))
        for (maps_BHW, *_), pictures_B, sizes in shown(engine, source, showing)
        for classes_HW, picture, size in zip(maps_BHW, pictures_B.tolist(), sizes, strict=True)
    )
    return _counted(maps, source)


def recorded_maps(records: Iterable[SemanticMap], source: MapSource) -> MapsCounted:
    """As `count_maps`, of records, one a picture of the source."""
    given = ((picture, record.classes_HW) for picture, record in enumerate(records))
    return _counted(((picture, map_HW) for picture, map_HW in given if map_HW is not None), source)


def _counted(maps: Iterable[tuple[int, NDArray[Any]]], source: MapSource) -> MapsCounted:
    """Of pictures by their index, the classes (H, W) that they were given."""
    classes, images = len(source.class_names), 0
    confusion_KK = np.zeros((classes, classes), np.int64)
    worst: tuple[tuple[float, int, NDArray[Any]], ...] = ()
    for picture, predicted_HW in maps:
        labels_HW = _labels(source, picture, predicted_HW.shape)
        if labels_HW is not None:
            counts_KK = confusion(predicted_HW, labels_HW, classes)
            confusion_KK += counts_KK
            images += 1
            right = float(counts_KK.trace() / max(counts_KK.sum(), 1))
            worst = _worst([*worst, (right, picture, predicted_HW)])
    if not images:
        raise DataError("no picture and its label map could be read, so there is nothing to score")
    return MapsCounted(confusion_KK, images, worst)


def _worst(seen: Sequence[tuple[float, int, NDArray[Any]]]) -> tuple[tuple[float, int, NDArray[Any]], ...]:
    return tuple(sorted(seen, key=lambda one: one[:2])[:WORST])


def _labels(source: MapSource, picture: int, size: tuple[int, ...]) -> NDArray[Any] | None:
    try:
        labels_HW = source.label_map(picture)
    except (ImageError, OSError):
        return None
    return labels_HW if labels_HW.shape == size else None
