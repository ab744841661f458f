"""Average precision against pycocotools, for detectors that are right, wrong in every way, or blind."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitesse.data.annotated import open_boxes
from vitesse.data.dense import Boxes, BoxSource
from vitesse.data.masks import decode_masks, encode_masks
from vitesse.metrics.detection import BoxScorer, BoxScores

TOLERANCE = 1e-6
IOU_TYPES = {"boxes": "bbox", "masks": "segm"}


class Found(NamedTuple):
    boxes_N4: np.ndarray
    scores_N: np.ndarray
    labels_N: np.ndarray
    masks: Any = None


def perfect(boxes: Boxes, rng: np.random.Generator, classes: int) -> Found:
    scores_N = rng.uniform(0.5, 1, len(boxes)).astype(np.float32)
    return Found(boxes.boxes_N4, scores_N, boxes.labels_N, boxes.masks)


def perturbed(boxes: Boxes, rng: np.random.Generator, classes: int) -> Found:
    """Jittered, dropped, doubled, misnamed, with scores of which some are equal; now and then nothing."""
    if rng.random() < 0.1:
        return Found(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ())
    kept = np.flatnonzero(rng.random(len(boxes)) < 0.85)
    kept = np.concatenate([kept, kept[rng.random(len(kept)) < 0.3]])
    sides_N2 = np.tile(boxes.boxes_N4[kept, 2:] - boxes.boxes_N4[kept, :2], 2)
    moved_N4 = boxes.boxes_N4[kept] + rng.normal(0, 0.08, (len(kept), 4)) * sides_N2
    moved_N4 = np.sort(moved_N4.reshape(-1, 2, 2), axis=1).reshape(-1, 4).astype(np.float32)
    labels_N = np.where(
        rng.random(len(kept)) < 0.15, rng.integers(0, classes, len(kept)), boxes.labels_N[kept]
    )
    scores_N = rng.uniform(0, 1, len(kept)).round(1).astype(np.float32)
    if boxes.masks is None:
        return Found(moved_N4, scores_N, labels_N)
    masks_NHW = decode_masks([boxes.masks[at] for at in kept], boxes.size)
    shifted = [np.roll(mask, rng.integers(-6, 7, 2), (0, 1)) for mask in masks_NHW]
    return Found(moved_N4, scores_N, labels_N, encode_masks(np.stack(shifted)) if shifted else ())


def scored(source: BoxSource, found: dict[int, Found], kind: str = "boxes") -> BoxScores:
    scorer = BoxScorer(source)
    for index, (boxes_N4, scores_N, labels_N, masks) in found.items():
        scorer.add(index, boxes_N4, scores_N, labels_N, masks)
    return scorer.scores(kind)  # type: ignore[arg-type]


def by_pycocotools(file: Path, source: BoxSource, found: dict[int, Found], kind: str) -> COCOeval:
    """The same detections as results for the original file; the order of its pictures is the source's."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        numbers = [image["id"] for image in json.loads(file.read_bytes())["images"]]
        results = COCO()
        results.dataset = {name: truth.dataset[name] for name in ("images", "categories")}
        results.dataset["annotations"] = [
            {"id": number, **entry} for number, entry in enumerate(_results(source, found, numbers, kind), 1)
        ]
        results.createIndex()
        evaluator = COCOeval(truth, results, IOU_TYPES[kind])
        evaluator.params.imgIds = [numbers[index] for index in found]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _results(
    source: BoxSource, found: dict[int, Found], numbers: list[int], kind: str
) -> Iterator[dict[str, Any]]:
    for index, (boxes_N4, scores_N, labels_N, masks) in found.items():
        for at in range(len(scores_N)):
            left, top, right, bottom = boxes_N4[at].astype(float).tolist()
            entry = {
                "image_id": numbers[index],
                "category_id": source.category_ids[labels_N[at]],
                "score": float(scores_N[at]),
                "iscrowd": 0,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
            }
            if kind == "masks":
                entry |= {"segmentation": masks[at], "area": float(coco_mask.area(masks[at]))}
            yield entry


def assert_equal(ours: BoxScores, theirs: COCOeval) -> None:
    def same(mine: float | None, other: float) -> None:
        assert (math.isnan(other) or other == -1) if mine is None else abs(mine - other) <= TOLERANCE

    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    for name, other in zip(names, theirs.stats[:6], strict=True):
        same(getattr(ours, name), other)
    same(ours.ar_100, theirs.stats[8])
    precision = theirs.eval["precision"][..., 0, -1]
    for label in range(precision.shape[2]):
        same(ours.class_ap[label], precision[:, :, label].mean())
        same(ours.class_ap50[label], precision[0, :, label].mean())


@pytest.mark.parametrize("detector", [perfect, perturbed])
@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("bccd/annotations/instances_test.json", "boxes"),
        ("coco128_val/annotations/det_val2017.json", "boxes"),
        ("coco128_val/annotations/inst_val2017.json", "boxes"),
        ("coco128_val/annotations/inst_val2017.json", "masks"),
    ],
)
def test_figures_are_those_of_pycocotools(data_dir: Path, place: str, kind: str, detector: Any) -> None:
    source, rng = open_boxes(data_dir / place), np.random.default_rng(3)
    found = {
        index: detector(source.boxes(index), rng, len(source.class_names)) for index in range(len(source))
    }
    ours, theirs = scored(source, found, kind), by_pycocotools(data_dir / place, source, found, kind)
    assert_equal(ours, theirs)
    assert ours.images == len(source)
    assert ours.ap == pytest.approx(1) if detector is perfect else 0.1 < ours.ap < 0.9
