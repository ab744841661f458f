"""Calibration against torchmetrics and the definition; other label sets, and files that are none."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from vitesse.data.sources import FileSource, Subset
from vitesse.errors import DataError
from vitesse.metrics import Outcomes, calibration_error, read_label_sets, score_label_sets

EDGES = np.linspace(0, 1, 16).tolist()


def said(logits_BK: np.ndarray, labels_B: np.ndarray) -> Outcomes:
    return Outcomes.of(logits_BK, labels_B=labels_B, pictures_B=np.arange(len(labels_B)))


@given(
    seed=st.integers(0, 10_000),
    images=st.integers(1, 60),
    classes=st.integers(2, 12),
    spread=st.sampled_from([0.1, 1.0, 2.0]),
)
@settings(max_examples=40, deadline=None)
def test_calibration_is_that_of_torchmetrics(seed: int, images: int, classes: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    logits_BK = (rng.normal(size=(images, classes)) * spread).astype(np.float32)
    labels_B = rng.integers(0, classes, images)
    logits, labels = torch.from_numpy(logits_BK), torch.from_numpy(labels_B)
    # given probabilities: logits that all lie within 0 and 1 would be taken for some
    expected = multiclass_calibration_error(logits.softmax(1), labels, classes, n_bins=15, norm="l1")
    scores = said(logits_BK, labels_B).scores(range(images))
    assert scores.ece == pytest.approx(expected.item(), abs=1e-5)
    loss = torch.nn.functional.cross_entropy(logits.double(), labels)
    assert scores.nll == pytest.approx(loss.item(), rel=1e-12)


@given(
    confidences=st.lists(st.floats(0.01, 1) | st.sampled_from(EDGES[1:]), min_size=1),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_a_bin_holds_its_upper_edge_as_the_paper_has_it(confidences: list[float], seed: int) -> None:
    """float64, so that an edge is met; torchmetrics would give certainty a bin of its own."""
    confidences_B = np.asarray(confidences)
    hits_B = np.random.default_rng(seed).random(len(confidences)) < 0.5
    expected = 0.0
    for low, high in pairwise(EDGES):
        inside = (confidences_B > low) & (confidences_B <= high)
        if inside.any():
            expected += inside.mean() * abs(hits_B[inside].mean() - confidences_B[inside].mean())
    assert calibration_error(confidences_B, hits_B) == pytest.approx(expected, abs=1e-12)


def test_probabilities_of_the_first_class_and_of_the_label() -> None:
    logits_BK = np.array([[0, 1, 2], [5, 5, 5], [0, 1000, -1000]], np.float32)
    found = said(logits_BK, np.array([1, 2, 2]))
    expected_BK = torch.from_numpy(logits_BK).double().softmax(1).numpy()
    assert found.labels_B.tolist() == [1, 2, 2]
    assert found.confidences_B == pytest.approx(expected_BK.max(1))
    assert found.label_probs_B == pytest.approx(expected_BK[range(3), [1, 2, 2]])
    assert (found.confidences_B.dtype, found.label_probs_B.dtype) == (np.float32, np.float32)
    assert found.losses_B[2] == 2000, "where the probability itself vanishes"


def test_batches_are_joined_in_their_order() -> None:
    rng = np.random.default_rng(0)
    logits_BK, labels_B = rng.normal(size=(7, 4)).astype(np.float32), rng.integers(0, 4, 7)
    parts = [
        Outcomes.of(logits_BK[part], labels_B=labels_B[part], pictures_B=np.arange(7)[part], mux_width=2)
        for part in (slice(0, 4), slice(4, 7))
    ]
    joined = Outcomes.joined(parts)
    assert joined.mux_width == 2
    assert joined.slots_B.tolist() == [0, 1, 0, 1, 0, 1, 0]
    whole = said(logits_BK, labels_B)
    for name in ("pictures_B", "labels_B", "ranks_B", "firsts_B", "confidences_B", "losses_B"):
        assert getattr(joined, name).tolist() == getattr(whole, name).tolist()


def pictures(*names: str) -> FileSource:
    return FileSource(Path("val"), names, [0] * len(names), ["a", "b", "c"])


VALIDATION = [f"ILSVRC2012_val_{number:08}.JPEG" for number in (3, 1, 4)]


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("names", "content", "expected"),
    [
        (VALIDATION, [[1], [9], [0, 2], []], [{0, 2}, {1}, set()]),  # ImageNet-ReaL: by number
        (["ILSVRC2012_val_00000002_n01440764.png"], [[1], [2]], [{2}]),
        (["x.png", "y.png"], [[1], [2]], [{1}, {2}]),  # by order
        (["x.png", "y.png"], {"y.png": [2], "x.png": [1], "z.png": "whatever"}, [{1}, {2}]),
        (["cat/1.png", "dog/1.png"], {"dog/1.png": [2], "cat/1.png": []}, [set(), {2}]),
    ],
)
def test_label_sets_are_matched_by_number_order_or_name(
    tmp_path: Path, names: list[str], content: Any, expected: list[set[int]]
) -> None:
    source = pictures(*names)
    sets = read_label_sets(write(tmp_path / "sets.json", content), source, 3)
    assert [sets[source.name(index)] for index in range(len(source))] == expected


@pytest.mark.parametrize(
    ("names", "content", "message"),
    [
        (VALIDATION, [[1], [2], [0]], r"has 3 lists, the pictures are ILSVRC2012_val_00000001 to 00000004"),
        (["ILSVRC2012_val_00000000.JPEG"], [[1]], "the pictures are ILSVRC2012_val_00000000"),
        (["x.png"], [[1], [2]], "expected 1 lists, one a picture, .* got 2 lists and 0 such pictures"),
        ([VALIDATION[0], "x.png"], [[1], [2]], "got 2 lists and 1 such pictures"),
        (["x.png", "y.png"], {"x.png": [1]}, r"nothing for 1 of 2 pictures, val/y\.png for one; an empty"),
        (["cat/1.png", "dog/1.png"], {"1.png": [2]}, "'1.png' is the name of 2 pictures; write it behind"),
        (["x.png"], [[3]], r"expected a list of class indices of 0 to 2 for 0, got \[3\]"),
        (["x.png"], {"x.png": [-1]}, r"of 0 to 2 for 'x.png', got \[-1\]"),
        (["x.png"], [2], "got 2"),
        (["x.png"], [[True]], r"got \[true\]"),
        (["x.png"], [["cat"]], r'got \["cat"\]'),
        (["x.png"], "labels", "expected JSON: Expecting value"),
        (["x.png"], "[" * 100_000, "expected JSON: "),
        (["x.png"], 7, "expected a list of lists of class indices, or lists by file name, got int"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(
    tmp_path: Path, names: list[str], content: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        read_label_sets(write(tmp_path / "sets.json", content), pictures(*names), 3)
    assert "\n" not in str(refusal.value)
    assert str(tmp_path / "sets.json") in str(refusal.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json: cannot be read: No such file"):
        read_label_sets(tmp_path / "absent.json", pictures("x.png"), 3)


def test_any_of_several_classes_is_right_and_pictures_without_are_left_out(tmp_path: Path) -> None:
    source = pictures("a.png", "b.png", "c.png", "d.png")
    sets = read_label_sets(write(tmp_path / "sets.json", [[0, 1], [2], [], [1]]), source, 3)
    logits_BK = np.eye(3, dtype=np.float32)[[1, 1, 0, 1]]
    shown = Outcomes.of(logits_BK, labels_B=source.labels, pictures_B=np.array([0, 1, 2, 3]))
    found = score_label_sets(shown, source, sets)
    assert (found.top1, found.images, found.left_out) == (pytest.approx(2 / 3), 3, 1)
    half = Subset(source, np.array([1, 2]))
    drawn = score_label_sets(said(logits_BK[[1, 2]], half.labels), half, sets)
    assert (drawn.top1, drawn.images, drawn.left_out) == (0.0, 1, 1)


def test_pictures_without_any_label_are_an_error_not_a_zero() -> None:
    source = pictures("a.png")
    shown = said(np.zeros((1, 3), np.float32), source.labels)
    with pytest.raises(DataError, match="no picture that could be read has a label"):
        score_label_sets(shown, source, {source.name(0): frozenset()})
