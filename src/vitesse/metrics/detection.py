"""Average precision as COCO defines it, of boxes and of masks.

Shape suffixes: N detections of a picture, H rows, W columns, T overlaps, R recalls, K classes, A ranges of
area.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitesse.data.masks import Rle, encode_masks, mask_areas
from vitesse.errors import DataError, require
from vitesse.spec import to_mapping

if TYPE_CHECKING:
    from vitesse.data.dense import Boxes, BoxSource

Kind = Literal["boxes", "masks"]
Entry = dict[str, Any]
IOU_TYPES = {"boxes": "bbox", "masks": "segm"}
COUNTS = ("objects", "images", "refused")
"""What is the same of boxes and of masks."""
ALL, SMALL, MEDIUM, LARGE = range(4)
AT_50, AT_75 = 0, 5
"""Overlaps of 0.5 and 0.75 among 0.5, 0.55 … 0.95."""


@dataclass(frozen=True, kw_only=True)
class BoxScores:
    """Average precision and recall, 0 to 1; `refused` pictures could not be read.

    Precision is the mean over overlaps of 0.5 to 0.95, or at the overlap named; at most 100 detections of a
    class in a picture count. What has no object to find, a class or a range of sizes, is None and left out of
    means.

    Attributes:
        ap, ap50, ap75: average precision.
        ap_small, ap_medium, ap_large: of objects below 32 x 32, below 96 x 96, and larger.
        ar_100: average recall.
        class_ap, class_ap50: of each class.
        objects: that were to be found, crowds left out.
        masks: the same figures of masks, where the model and the pictures have some.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar_100: float
    class_ap: tuple[float | None, ...]
    class_ap50: tuple[float | None, ...]
    objects: int
    images: int
    refused: int = 0
    masks: BoxScores | None = None

    @property
    def best_by(self) -> float:
        """What makes weights the best ones."""
        return self.ap

    def brief(self) -> dict[str, float]:
        """The figures to know, by their keys."""
        return {"ap": self.ap, "ap50": self.ap50} | ({"mask_ap": self.masks.ap} if self.masks else {})

    def explain(self) -> str:
        """In a few words."""
        masks = f", mask AP {self.masks.ap:.2%}" if self.masks else ""
        return f"AP {self.ap:.2%}, AP50 {self.ap50:.2%}{masks}"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; figures of masks as `mask_ap` and so on."""
        record = {key: value for key, value in to_mapping(self).items() if key != "masks"}
        of_masks = self.masks.to_dict() if self.masks else {}
        return record | {f"mask_{key}": value for key, value in of_masks.items() if key not in COUNTS}


class BoxScorer:
    """What a model finds in the pictures of a source, collected and scored.

    Pictures that are never added count as refused.
    """

    def __init__(self, source: BoxSource) -> None:
        self.source = source
        self._found: dict[int, list[Entry]] = {}

    def add(
        self,
        index: int,
        boxes_N4: NDArray[np.floating[Any]],
        scores_N: NDArray[np.floating[Any]],
        labels_N: NDArray[np.integer[Any]],
        masks: NDArray[np.bool_] | NDArray[np.uint8] | Sequence[Rle] | None = None,
    ) -> None:
        """What was found in one picture: nothing is a result, too.

        Args:
            index: of the picture in the source.
            boxes_N4: left, top, right, bottom in pixels of the original picture.
            scores_N: higher is surer.
            labels_N: class indices.
            masks: of the original picture's size, as pixels (N, H, W) or run lengths.

        Raises:
            DataError: the picture was added before, numbers of detections differ, a value is not finite, or
                a label is no class.
        """
        where, count = self.source.name(index), len(scores_N)
        if index in self._found:
            raise DataError(f"{where}: expected each picture once, its detections were added before")
        if isinstance(masks, np.ndarray):
            masks = encode_masks(masks)
        if boxes_N4.shape != (count, 4) or len(labels_N) != count or len(_each(masks, count)) != count:
            raise DataError(f"{where}: expected as many boxes, labels and masks as scores, {count}")
        if not (np.isfinite(boxes_N4).all() and np.isfinite(scores_N).all()):
            raise DataError(f"{where}: expected finite boxes and scores, the model gave others")
        classes = len(self.source.class_names)
        if count and not 0 <= labels_N.min() <= labels_N.max() < classes:
            raise DataError(f"{where}: expected labels of 0 to {classes - 1}, got {labels_N.tolist()}")
        self._found[index] = [
            {"category_id": label, "score": score, "iscrowd": 0, **_box(corners), "mask": mask}
            for corners, score, label, mask in zip(
                boxes_N4.tolist(), scores_N.tolist(), labels_N.tolist(), _each(masks, count), strict=True
            )
        ]

    def scores(self, kind: Kind = "boxes") -> BoxScores:
        """The figures of all that was added.

        Raises:
            DataError: there is no object to find; or masks are asked for, and an object or a detection has
                none.
            MissingExtraError: faster-coco-eval is not installed.
        """
        drawn = {index: self.source.boxes(index) for index in self._found}
        wanted = {index: _wanted(boxes) for index, boxes in drawn.items()}
        objects = sum(int((~boxes.crowd_N).sum()) for boxes in drawn.values())
        if not objects:
            raise DataError(f"{len(drawn)} pictures were looked at, none has an object to find")
        sizes = {index: boxes.size for index, boxes in drawn.items()}
        classes = len(self.source.class_names)
        precision_TRKA, recall_TKA = _evaluated(
            _as_coco(wanted, sizes, classes, kind), _as_coco(self._found, sizes, classes, kind), kind
        )
        ap = [_mean(precision_TRKA[..., area]) for area in range(4)]
        by_class_KTR = np.moveaxis(precision_TRKA[..., ALL], 2, 0)
        return BoxScores(
            ap=ap[ALL] or 0.0,
            ap50=_mean(precision_TRKA[AT_50, ..., ALL]) or 0.0,
            ap75=_mean(precision_TRKA[AT_75, ..., ALL]) or 0.0,
            ap_small=ap[SMALL],
            ap_medium=ap[MEDIUM],
            ap_large=ap[LARGE],
            ar_100=_mean(recall_TKA[..., ALL]) or 0.0,
            class_ap=tuple(map(_mean, by_class_KTR)),
            class_ap50=tuple(map(_mean, by_class_KTR[:, AT_50])),
            objects=objects,
            images=len(drawn),
            refused=len(self.source) - len(drawn),
        )


def _wanted(boxes: Boxes) -> list[Entry]:
    """The objects of a picture; their areas are those of the annotations."""
    masks = _each(boxes.masks, len(boxes))
    columns = (boxes.boxes_N4, boxes.labels_N, boxes.crowd_N, boxes.area_N)
    return [
        {"category_id": label, "iscrowd": int(crowd), **_box(corners), "area": area, "mask": mask}
        for corners, label, crowd, area, mask in zip(*(c.tolist() for c in columns), masks, strict=True)
    ]


def _each(masks: Sequence[Rle] | None, count: int) -> Sequence[Rle | None]:
    return [None] * count if masks is None else masks


def _box(corners: Sequence[float]) -> Entry:
    left, top, right, bottom = corners
    return {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}


def _as_coco(
    entries: Mapping[int, Sequence[Entry]], sizes: Mapping[int, tuple[int, int]], classes: int, kind: Kind
) -> Any:
    """Entries by picture as the evaluator takes them; each is numbered from 1, since it takes 0 for none."""
    numbers = itertools.count(1)
    listed = [{**one, "image_id": index, "id": next(numbers)} for index in entries for one in entries[index]]
    if kind == "masks":
        without = sum(one["mask"] is None for one in listed)
        if without:
            raise DataError(f"{without} of {len(listed)} objects have no mask; score boxes instead")
        for one, area in zip(listed, mask_areas([one["mask"] for one in listed]).tolist(), strict=True):
            one["segmentation"] = one.pop("mask")
            if "score" in one:  # a detection has the area of its mask, not of its box
                one["area"] = area
    return require("faster_coco_eval", "dense").COCO(
        {
            "images": [{"id": index, "height": h, "width": w} for index, (h, w) in sizes.items()],
            "categories": [{"id": label, "name": str(label)} for label in range(classes)],
            "annotations": listed,
        }
    )


def _evaluated(wanted: Any, found: Any, kind: Kind) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall by ranges of area, of 100 detections; -1 where there is nothing to find."""
    evaluator = require("faster_coco_eval.core.faster_eval_api", "dense").COCOeval_faster(
        wanted, found, IOU_TYPES[kind]
    )
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["precision"][..., -1], evaluator.eval["recall"][..., -1]


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None
