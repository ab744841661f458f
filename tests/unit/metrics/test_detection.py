"""Average precision against pycocotools, for detectors that are right, wrong in every way, or blind."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitesse.data.annotated import open_boxes
from vitesse.data.boxes import BoxFiles, Drawn
from vitesse.data.dense import Boxes, BoxSource
from vitesse.data.masks import decode_masks, encode_masks
from vitesse.data.subset import part_of
from vitesse.errors import DataError, MissingExtraError
from vitesse.metrics.dense import find_boxes
from vitesse.metrics.detection import BoxScorer, BoxScores
from vitesse.metrics.run import Showing
from vitesse.runtime.imaging import place
from vitesse.spec import PreprocessSpec

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


def by_pycocotools(truth: dict[str, Any], source: BoxSource, found: dict[int, Found], kind: str) -> COCOeval:
    """The same detections as results for the original annotations; a source is in the order of ids."""
    numbers = sorted(image["id"] for image in truth["images"])
    results = [{"id": number, **one} for number, one in enumerate(_results(source, found, numbers, kind), 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(_indexed(truth), _indexed({**truth, "annotations": results}), IOU_TYPES[kind])
        evaluator.params.imgIds = [numbers[index] for index in found]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _indexed(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


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


BCCD, DET, INST = (
    "bccd/annotations/instances_test.json",
    "coco128_val/annotations/det_val2017.json",
    "coco128_val/annotations/inst_val2017.json",
)


@pytest.mark.parametrize(
    ("place", "kind", "detector"),
    [
        (BCCD, "boxes", perfect),
        (BCCD, "boxes", perturbed),
        (DET, "boxes", perfect),
        (DET, "boxes", perturbed),
        (INST, "boxes", perturbed),
        (INST, "masks", perfect),
        (INST, "masks", perturbed),
    ],
)
def test_figures_are_those_of_pycocotools(data_dir: Path, place: str, kind: str, detector: Any) -> None:
    source, rng = open_boxes(data_dir / place, masks=kind == "masks"), np.random.default_rng(3)
    truth = json.loads((data_dir / place).read_bytes())
    found = {
        index: detector(source.boxes(index), rng, len(source.class_names)) for index in range(len(source))
    }
    ours = scored(source, found, kind)
    assert_equal(ours, by_pycocotools(truth, source, found, kind))
    assert ours.images == len(source)
    assert ours.ap == pytest.approx(1) if detector is perfect else 0.1 < ours.ap < 0.9


class Told:
    """An engine that says of one picture after the other what it was told to."""

    name = "told"

    def __init__(self, rows: list[tuple[np.ndarray, ...]]) -> None:
        self.rows = iter(rows)

    def run(self, batch_BCHW: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(map(np.stack, zip(*(next(self.rows) for _ in batch_BCHW), strict=True)))


def coarse(mask_HW: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """What of a mask lies in a box, 28x28, as probabilities that are never near one half."""
    left, top, right, bottom = corners.tolist()
    shares = (np.arange(28) + 0.5) / 28
    rows = (top + shares * (bottom - top)).astype(int).clip(0, mask_HW.shape[0] - 1)
    columns = (left + shares * (right - left)).astype(int).clip(0, mask_HW.shape[1] - 1)
    return (0.93 * mask_HW[rows[:, None], columns] + 0.03).astype(np.float32)


def filled(array: np.ndarray, count: int = 100) -> np.ndarray:
    """With rows of zeros up to so many."""
    return np.concatenate([array, np.zeros((count - len(array), *array.shape[1:]), array.dtype)])


@pytest.mark.parametrize("resize", ["fit", "squash"])
def test_masks_over_boxes_are_scored_as_by_pycocotools(data_dir: Path, laid_over: Any, resize: Any) -> None:
    whole, rng = open_boxes(data_dir / INST), np.random.default_rng(5)
    source = part_of(whole, np.arange(12))
    showing = Showing(preprocess=PreprocessSpec(image_size=(96, 128), resize=resize), batch_size=5)
    rows, expected = [], {}
    for index in range(len(source)):
        boxes = source.boxes(index)
        found, placement = (
            perturbed(boxes, rng, len(source.class_names)),
            place(boxes.size, showing.preprocess),
        )
        pairs = zip(decode_masks(found.masks, boxes.size), found.boxes_N4, strict=True)
        masks_Nhw = np.stack([np.zeros((28, 28), np.float32), *(coarse(*pair) for pair in pairs)])[1:]
        scale_y, scale_x = placement.scales
        boxes_N4 = (found.boxes_N4 / [scale_x, scale_y, scale_x, scale_y]).astype(np.float32)
        rows.append(tuple(map(filled, (boxes_N4, found.scores_N, found.labels_N, masks_Nhw))))
        kept = found.scores_N > 0
        corners_N4 = boxes_N4[kept] * np.array([scale_x, scale_y, scale_x, scale_y])
        masks = [
            coco_mask.encode(np.asfortranarray(laid_over(*pair, boxes.size) >= 0.5, np.uint8))
            for pair in zip(masks_Nhw[kept], corners_N4, strict=True)
        ]
        clipped_N4 = placement.box_in_picture(boxes_N4[kept])
        expected[index] = Found(clipped_N4, found.scores_N[kept], found.labels_N[kept], masks)
    ours = find_boxes(Told(rows), source, showing).scores(source)
    assert ours.masks is not None
    truth = json.loads((data_dir / INST).read_bytes())
    for kind, scores in (("boxes", ours), ("masks", ours.masks)):
        assert_equal(scores, by_pycocotools(truth, whole, expected, kind))
    assert 0.1 < ours.masks.ap < 0.9
    assert ours.masks.ap != ours.ap
    record = ours.to_dict()
    assert (record["ap"], record["mask_ap"]) == (ours.ap, ours.masks.ap)
    assert record["mask_class_ap50"] == list(ours.masks.class_ap50)
    assert "masks" not in record
    assert f"mask AP {ours.masks.ap:.2%}" in ours.explain()


def test_masks_are_scored_only_where_model_and_pictures_have_some(data_dir: Path) -> None:
    with_masks, boxes_alone = (
        part_of(open_boxes(data_dir / INST, masks=masks), np.arange(3)) for masks in (True, False)
    )
    showing = Showing(preprocess=PreprocessSpec(image_size=(64, 64), resize="fit"))
    row = (np.array([[1.0, 2, 30, 40]]), np.array([0.5]), np.array([0]), np.ones((1, 28, 28)))
    for source, outputs in ((boxes_alone, 4), (with_masks, 3)):
        scores = find_boxes(Told([row[:outputs]] * 3), source, showing).scores(source)
        assert scores.masks is None
        assert not any("mask" in key for key in [*scores.to_dict(), *scores.brief(), scores.explain()])
    both = find_boxes(Told([row] * 3), with_masks, showing).scores(with_masks)
    assert both.brief().keys() == {"ap", "ap50", "mask_ap"}


SIZE = (120, 160)
CLASSES = ("cat", "dog", "fox")


def scenery(seed: int, pictures: int) -> tuple[BoxFiles, dict[str, Any]]:
    """Random objects of all sizes with masks, some of them crowds, as a source and as a json."""
    rng = np.random.default_rng(seed)
    drawn: list[list[Drawn]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(pictures):
        drawn.append([])
        for _ in range(rng.integers(0, 6)):
            left, top = rng.integers(0, 100, 2).tolist()
            right, bottom = left + int(rng.integers(2, 60)), top + int(rng.integers(2, 20))
            label, crowd = int(rng.integers(0, 3)), bool(rng.random() < 0.15)
            segment = [[left, top, right, top, right, bottom, left, bottom]]
            area, corners = (
                (right - left) * (bottom - top) * int(rng.integers(1, 12)),
                (left, top, right, bottom),
            )
            drawn[-1].append(Drawn(corners=corners, label=label, crowd=crowd, area=area, segment=segment))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 * number,
                    "category_id": label + 5,
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": int(crowd),
                    "area": area,
                    "segmentation": segment,
                }
            )
    files = [Path(f"{number}.jpg") for number in range(pictures)]
    source = BoxFiles(files, drawn, CLASSES, category_ids=(5, 6, 7), sizes=[SIZE] * pictures)
    images = [{"id": 10 * number, "height": SIZE[0], "width": SIZE[1]} for number in range(pictures)]
    categories = [{"id": 5 + label, "name": name} for label, name in enumerate(CLASSES)]
    return source, {"images": images, "annotations": annotations, "categories": categories}


@given(seed=st.integers(0, 10_000), pictures=st.integers(1, 6), kind=st.sampled_from(["boxes", "masks"]))
@settings(max_examples=40, deadline=None)
def test_figures_of_any_scenery_are_those_of_pycocotools(seed: int, pictures: int, kind: str) -> None:
    source, truth = scenery(seed, pictures)
    rng = np.random.default_rng(seed)
    found = {index: perturbed(source.boxes(index), rng, 3) for index in range(pictures)}
    asked = [one for one in truth["annotations"] if not one["iscrowd"]]
    kind = kind if source.has_masks else "boxes"
    if not asked:
        with pytest.raises(DataError, match="none has an object to find"):
            scored(source, found, kind)
        return
    ours = scored(source, found, kind)
    assert_equal(ours, by_pycocotools(truth, source, found, kind))
    assert ours.objects == len(asked)
    backwards = dict(reversed(found.items()))
    again = scored(source, backwards, kind)
    assert again == ours


NOTHING = Found(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def test_a_detector_that_finds_nothing_scores_nothing() -> None:
    source, truth = scenery(1, 5)
    for kind in ("boxes", "masks"):
        ours = scored(source, dict.fromkeys(range(5), NOTHING), kind)
        assert_equal(ours, by_pycocotools(truth, source, dict.fromkeys(range(5), NOTHING), kind))
        assert (ours.ap, ours.ap50, ours.ar_100) == (0, 0, 0)


def one_box(label: int = 0, pictures: int = 1, **more: Any) -> BoxFiles:
    drawn = [[Drawn(corners=(10, 10, 50, 50), label=label, **more)]] + [[]] * (pictures - 1)
    return BoxFiles([Path("a.jpg")] * pictures, drawn, CLASSES, sizes=[SIZE] * pictures)


def at(*corners: float, score: float = 0.9, label: int = 0) -> Found:
    return Found(np.array([corners], np.float32), np.array([score], np.float32), np.array([label]))


def test_figures_by_hand() -> None:
    """One object of 40 x 40, found with three quarters of its width: an overlap of 0.75."""
    ours = scored(one_box(), {0: at(10, 10, 40, 50)})
    assert (ours.ap50, ours.ap75, ours.ap) == pytest.approx((1, 1, 0.6))
    assert (ours.ap_small, ours.ap_medium, ours.ap_large) == (None, pytest.approx(0.6), None)
    assert ours.class_ap == (pytest.approx(0.6), None, None)
    assert ours.class_ap50 == (1, None, None)
    assert ours.ar_100 == pytest.approx(0.6)


def test_pictures_without_objects_make_false_alarms_count() -> None:
    alarms = {0: at(10, 10, 50, 50), 1: at(10, 10, 50, 50, score=0.95)}
    assert scored(one_box(pictures=2), alarms).ap == pytest.approx(0.5)
    assert scored(one_box(pictures=2), {**alarms, 1: NOTHING}).ap == pytest.approx(1)
    assert scored(one_box(pictures=2), {**alarms, 1: at(10, 10, 50, 50, score=0.95, label=2)}).ap == 1


def test_what_overlaps_a_crowd_is_not_wrong() -> None:
    crowd = Drawn(corners=(60, 60, 120, 120), label=0, crowd=True)
    single = Drawn(corners=(10, 10, 50, 50), label=0)
    source = BoxFiles([Path("a.jpg")], [[single, crowd]], CLASSES, sizes=[SIZE])
    boxes_N4 = np.array([[10, 10, 50, 50], [65, 65, 80, 80], [90, 90, 110, 110]], np.float32)
    found = Found(boxes_N4, np.array([0.1, 0.9, 0.8]), np.zeros(3, np.int64))
    ours = scored(source, {0: found})
    assert (ours.ap, ours.objects) == (pytest.approx(1), 1)
    assert scored(one_box(), {0: found}).ap == pytest.approx(1 / 3)


def test_pictures_that_were_not_looked_at_are_refused() -> None:
    ours = scored(one_box(pictures=4), {0: at(10, 10, 50, 50), 2: NOTHING})
    assert (ours.images, ours.refused, ours.ap) == (2, 2, pytest.approx(1))
    with pytest.raises(DataError, match=r"^2 pictures were looked at, none has an object to find"):
        scored(one_box(pictures=4), {2: NOTHING, 3: NOTHING})


def test_ten_thousand_objects_and_detections() -> None:
    """At most a hundred of a class count, as COCO has it: a hundredth is found, without an error."""
    low_N2 = np.stack(np.meshgrid(np.arange(100), np.arange(100)), axis=-1).reshape(-1, 2)
    corners_N4 = np.concatenate([low_N2, low_N2 + 1], axis=1).astype(np.float32)
    drawn = [[Drawn(corners=tuple(corners), label=0) for corners in corners_N4.tolist()]]
    source = BoxFiles([Path("a.jpg")], drawn, CLASSES, sizes=[SIZE])
    scores_N = np.linspace(1, 0.5, 10_000).astype(np.float32)
    ours = scored(source, {0: Found(corners_N4, scores_N, np.zeros(10_000, np.int64))})
    assert (ours.objects, ours.ar_100) == (10_000, pytest.approx(0.01))


def test_masks_may_be_pixels() -> None:
    source, _ = scenery(3, 4)
    scorer = BoxScorer(source)
    for index in range(4):
        boxes = source.boxes(index)
        masks_NHW = decode_masks(boxes.masks or (), boxes.size).astype(bool)
        scorer.add(index, boxes.boxes_N4, np.ones(len(boxes)), boxes.labels_N, masks_NHW)
    assert scorer.scores("masks").ap == scorer.scores("boxes").ap == pytest.approx(1)


def test_masks_are_scored_only_where_both_have_some() -> None:
    with pytest.raises(DataError, match="1 of 1 objects have no mask; score boxes instead"):
        scored(one_box(), {0: NOTHING}, "masks")
    masked = one_box(segment=[[10, 10, 50, 10, 50, 50]])
    with pytest.raises(DataError, match="1 of 1 objects have no mask"):
        scored(masked, {0: at(10, 10, 50, 50)}, "masks")
    assert scored(masked, {0: NOTHING}, "masks").ap == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes_N4": np.zeros((2, 4))}, "as many boxes, labels and masks as scores, 1"),
        ({"boxes_N4": np.zeros((1, 5))}, "as many boxes"),
        ({"labels_N": np.zeros(0, int)}, "as many boxes"),
        ({"masks": ()}, "as many boxes"),
        ({"boxes_N4": np.full((1, 4), np.nan)}, "expected finite boxes and scores"),
        ({"scores_N": np.array([np.inf])}, "expected finite boxes and scores"),
        ({"labels_N": np.array([3])}, r"expected labels of 0 to 2, got \[3\]"),
        ({"labels_N": np.array([-1])}, "expected labels of 0 to 2"),
    ],
)
def test_detections_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    scorer, found = BoxScorer(one_box()), at(10, 10, 50, 50)._asdict()
    with pytest.raises(DataError, match=message) as caught:
        scorer.add(0, **{**found, **changes})
    assert str(caught.value).startswith("a.jpg: ")
    scorer.add(0, **found)
    with pytest.raises(DataError, match="each picture once"):
        scorer.add(0, **found)


def test_figures_are_json() -> None:
    record = json.loads(json.dumps(scored(one_box(pictures=2), {0: at(10, 10, 50, 50)}).to_dict()))
    assert record["ap"] == record["ap50"] == pytest.approx(1)
    assert record["class_ap"][1:] == [None, None]
    assert (record["images"], record["refused"]) == (1, 1)


def test_without_the_extra_its_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vitesse\[dense\]'"):
        scored(one_box(), {0: NOTHING})
