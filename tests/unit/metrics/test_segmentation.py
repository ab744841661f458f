"""Mean IoU against torchmetrics and by hand; maps that do not fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

from vitesse.data.annotated import open_maps
from vitesse.data.dense import IGNORE
from vitesse.errors import DataError, ImageError
from vitesse.metrics.segmentation import MapScorer, MapScores, confusion


class Maps:
    """A source of label maps in memory."""

    blocks: tuple[int, ...] = ()
    notes = ()
    colours = None
    fingerprint = ""

    def __init__(self, maps: Sequence[np.ndarray], classes: int) -> None:
        self.maps, self.class_names = maps, tuple(map(str, range(classes)))

    def __len__(self) -> int:
        return len(self.maps)

    def name(self, index: int) -> str:
        return f"{index}.png"

    def read(self, index: int) -> bytes:
        raise OSError

    def faults(self, index: int) -> tuple[()]:
        return ()

    def label_map(self, index: int) -> np.ndarray:
        return self.maps[index]


def scored(labels: Sequence[np.ndarray], predicted: Sequence[np.ndarray], classes: int) -> MapScores:
    scorer = MapScorer(Maps(labels, classes))
    for index, predicted_HW in enumerate(predicted):
        scorer.add(index, predicted_HW)
    return scorer.scores()


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 12), pictures=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_figures_are_those_of_torchmetrics(seed: int, classes: int, pictures: int) -> None:
    rng = np.random.default_rng(seed)
    used = rng.integers(1, classes + 1)  # classes from here on are absent
    sizes = [tuple(rng.integers(2, 12, 2)) for _ in range(pictures)]
    labels = [rng.choice([*range(used), IGNORE], size).astype(np.uint8) for size in sizes]
    labels[0][0, 0] = 0
    predicted = [rng.integers(0, used, size) for size in sizes]
    ours = scored(labels, predicted, classes)
    flat = [
        torch.from_numpy(np.concatenate([m.ravel() for m in maps]).astype(np.int64))
        for maps in (predicted, labels)
    ]
    each = multiclass_jaccard_index(*flat, classes, average="none", ignore_index=IGNORE)
    mean = multiclass_jaccard_index(*flat, classes, average="macro", ignore_index=IGNORE)
    assert ours.miou == pytest.approx(mean.item(), abs=1e-6)
    assert [iou or 0 for iou in ours.class_iou] == pytest.approx(each.tolist(), abs=1e-6)
    labelled = flat[1] != IGNORE
    assert ours.accuracy == pytest.approx((flat[0] == flat[1])[labelled].float().mean().item(), abs=1e-6)
    assert ours.images == pictures


def test_counts_are_those_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    predicted, labels = rng.integers(0, 5, (2, 9, 9))
    expected = multiclass_confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(labels), 5)
    np.testing.assert_array_equal(confusion(predicted, labels, 5), expected)


def test_a_class_that_is_nowhere_is_left_out_and_one_that_is_only_found_is_not() -> None:
    labels, predicted = np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 0, 1, 3]])
    ours = scored([labels], [predicted], 4)
    assert ours.class_iou == (1, 0.5, None, 0)
    assert ours.miou == pytest.approx(0.5)
    assert ours.accuracy == 0.75


def test_unlabelled_pixels_do_not_count_whatever_is_found_there() -> None:
    labels = np.array([[0, IGNORE, 1, IGNORE]], np.uint8)
    assert scored([labels], [np.array([[0, 1, 1, IGNORE]])], 2).miou == 1


def test_maps_of_another_size_are_refused_and_the_others_scored() -> None:
    scorer = MapScorer(Maps([np.zeros((4, 5), np.uint8)] * 3, 2))
    with pytest.raises(ImageError, match="expected a label map of 4x5 pixels as its picture, got 5x4"):
        scorer.add(0, np.zeros((5, 4), np.int64))
    scorer.add(1, np.zeros((4, 5), np.int64))
    scores = scorer.scores()
    assert (scores.images, scores.refused, scores.miou) == (1, 2, 1)
    assert json.loads(json.dumps(scores.to_dict())) == {
        "miou": 1,
        "class_iou": [1, None],
        "accuracy": 1,
        "images": 1,
        "refused": 2,
    }


@pytest.mark.parametrize("wrong", [-1, 2, 300])
def test_a_prediction_that_is_no_class_is_refused(wrong: int) -> None:
    scorer = MapScorer(Maps([np.zeros((1, 2), np.uint8)], 2))
    with pytest.raises(DataError, match="expected class indices of 0 to 1, got"):
        scorer.add(0, np.array([[0, wrong]]))
    scorer.add(0, np.array([[0, 1]]))
    with pytest.raises(DataError, match=r"0\.png: expected each picture once"):
        scorer.add(0, np.array([[0, 1]]))


def test_nothing_labelled_is_nothing_to_score() -> None:
    with pytest.raises(DataError, match=r"^1 pictures were looked at, none has a labelled pixel"):
        scored([np.full((2, 2), IGNORE, np.uint8)], [np.zeros((2, 2), np.int64)], 2)


def test_camvid_against_itself_and_against_road(data_dir: Path) -> None:
    source = open_maps(data_dir / "camvid", "val")
    perfect, road = MapScorer(source), MapScorer(source)
    for index in range(8):
        labels_HW = source.label_map(index)
        perfect.add(index, np.where(labels_HW == IGNORE, 0, labels_HW))
        road.add(index, np.full(labels_HW.shape, 3))
    assert perfect.scores().miou == perfect.scores().accuracy == 1
    scores = road.scores()
    assert scores.class_iou[3] == pytest.approx(scores.accuracy)
    assert scores.miou == pytest.approx(scores.accuracy / sum(iou is not None for iou in scores.class_iou))
