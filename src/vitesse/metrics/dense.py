"""What an engine finds in pictures with boxes or label maps, in pixels of the pictures themselves.

Shape suffixes: B pictures, N detections, H rows, W columns, K classes, h and w those of a mask over its box.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitesse.data.masks import Rle, compressed
from vitesse.errors import DataError, ImageError
from vitesse.metrics.detection import BoxScorer, BoxScores
from vitesse.metrics.run import Showing, shown
from vitesse.metrics.segmentation import MapScores, confusion, scores_of
from vitesse.runtime.imaging import Placement, place
from vitesse.runtime.postprocess import in_picture, pasted

if TYPE_CHECKING:
    from vitesse.data.dense import BoxSource, MapSource
    from vitesse.results import Detection, Detections, SemanticMap
    from vitesse.runtime.engines import Engine

WORST = 6
"""Pictures that are kept to be looked at."""


class Objects(NamedTuple):
    """What was found in a picture, in its pixels; masks where model and pictures have some."""

    boxes_N4: NDArray[np.float64]
    scores_N: NDArray[np.float32]
    labels_N: NDArray[np.int64]
    masks: tuple[Rle, ...] | None = None


@dataclass(frozen=True)
class BoxesFound:
    """What was found in each readable picture, by its index."""

    by_picture: dict[int, Objects]

    def of_pictures(self, indices: NDArray[np.int64]) -> BoxesFound:
        """The same, where the pictures were those of `indices` in a larger source."""
        return BoxesFound({int(indices[index]): found for index, found in self.by_picture.items()})

    @classmethod
    def joined(cls, parts: Sequence[BoxesFound]) -> BoxesFound:
        """Those of several parts of a source."""
        return cls({index: found for part in parts for index, found in part.by_picture.items()})

    def scores(self, source: BoxSource) -> BoxScores:
        """The figures."""
        scorer = BoxScorer(source)
        for index, found in sorted(self.by_picture.items()):
            scorer.add(index, *found)
        if any(found.masks is None for found in self.by_picture.values()):
            return scorer.scores()
        return dataclasses.replace(scorer.scores(), masks=scorer.scores("masks"))


def find_boxes(engine: Engine, source: BoxSource, showing: Showing) -> BoxesFound:
    """The objects that a detector finds, however low they score; their masks where the pictures have some.

    Raises:
        DataError: no picture could be read.
    """
    found = {}
    for outputs, pictures_B, sizes in shown(engine, source, showing):
        rows = zip(zip(*outputs, strict=True), pictures_B.tolist(), sizes, strict=True)
        for (boxes_N4, scores_N, labels_N, *masks), picture, size in rows:
            kept, placement = scores_N > 0, place(size, showing.preprocess)
            found[picture] = Objects(
                placement.box_in_picture(boxes_N4[kept]),
                scores_N[kept],
                labels_N[kept].astype(np.int64),
                _masks(masks[0][kept], boxes_N4[kept], placement) if masks and source.has_masks else None,
            )
    return _some_found(found)


def recorded_boxes(records: Iterable[Detections], source: BoxSource) -> BoxesFound:
    """The objects of records, one a picture of the source.

    Raises:
        DataError: no picture could be read.
    """
    found = {
        picture: _recorded(record.predictions, source)
        for picture, record in enumerate(records)
        if record.error is None
    }
    return _some_found(found)


def _recorded(detections: Sequence[Detection], source: BoxSource) -> Objects:
    boxes_N4 = np.array([one.bbox for one in detections], np.float64).reshape(-1, 4)
    boxes_N4[:, 2:] += boxes_N4[:, :2]
    masks = tuple(compressed(one.segmentation) for one in detections if one.segmentation is not None)
    return Objects(
        boxes_N4,
        np.array([one.score for one in detections], np.float32),
        np.array([one.index for one in detections], np.int64),
        masks if source.has_masks and len(masks) == len(detections) else None,
    )


def _some_found(by_picture: dict[int, Objects]) -> BoxesFound:
    if not by_picture:
        raise DataError("no picture could be read, so there is nothing to score")
    return BoxesFound(by_picture)


def _masks(masks_Nhw: NDArray[Any], boxes_N4: NDArray[Any], placement: Placement) -> tuple[Rle, ...]:
    """Masks over boxes of the input, as those of the picture."""
    whole_N4 = placement.box_in_picture(boxes_N4, clip=False)
    pairs = zip(masks_Nhw, whole_N4, strict=True)
    return tuple(compressed(pasted(mask_hw, corners, placement.full)) for mask_hw, corners in pairs)


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
