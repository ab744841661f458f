"""Accuracy: counted as torchmetrics counts it, whatever cannot be read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy

from vitesse.cli import run
from vitesse.data.sources import HELD_OUT_SHARE, FileSource, Relabelled, hold_out, open_source, take
from vitesse.errors import DataError
from vitesse.evaluate import evaluate
from vitesse.metrics import (
    Showing,
    label_ranks,
    open_for,
    outcomes,
    outcomes_in_groups,
    score,
    with_classes,
)
from vitesse.metrics.dense import recorded_boxes
from vitesse.predictors import load
from vitesse.runtime.postprocess import top_k
from vitesse.spec import PreprocessSpec

SHOWING = Showing(preprocess=PreprocessSpec(image_size=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))


class MeanColour:
    """Logits are the mean blue, green and red of a picture."""

    name = "mean"

    def run(self, batch_BCHW: np.ndarray) -> tuple[np.ndarray, ...]:
        return (batch_BCHW.mean(axis=(2, 3))[:, ::-1],)


@given(seed=st.integers(0, 10_000), images=st.integers(1, 30), classes=st.integers(5, 12))
@settings(max_examples=40, deadline=None)
def test_hits_are_those_of_torchmetrics(seed: int, images: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits_BK = rng.normal(size=(images, classes)).astype(np.float32)
    labels_B = rng.integers(0, classes, images)
    for k in (1, 5):
        expected = multiclass_accuracy(
            torch.from_numpy(logits_BK), torch.from_numpy(labels_B), classes, top_k=k, average="micro"
        )
        assert (label_ranks(logits_BK, labels_B) < k).sum() / images == pytest.approx(expected.item())


@given(seed=st.integers(0, 10_000), levels=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_ties_are_broken_as_predictions_are(seed: int, levels: int) -> None:
    """int8 models give few different logits; one that gives all alike knows nothing."""
    rng = np.random.default_rng(seed)
    logits_BK = rng.integers(0, levels, (20, 9)).astype(np.float32)
    labels_B = rng.integers(0, 9, 20)
    names = tuple(map(str, range(9)))
    for k in (1, 5):
        shown = [{p.index for p in row} for row in top_k(logits_BK, names, k)]
        expected = sum(label in row for label, row in zip(labels_B.tolist(), shown, strict=True))
        assert (label_ranks(logits_BK, labels_B) < k).sum() == expected


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_every_readable_picture_counts_once(
    tmp_path: Path, paint_classes: Callable[..., Path], batch_size: int
) -> None:
    root = paint_classes(tmp_path, per_class=9)
    (root / "blue" / "000.png").write_bytes(b"")
    (root / "red" / "008.png").unlink()
    (root / "red" / "008.png").mkdir()
    source = open_source(root)
    wrong = Relabelled(source, (source.labels + 1) % 3, ("a", "b", "c"))
    good, bad = (score(MeanColour(), s, replace(SHOWING, batch_size=batch_size)) for s in (source, wrong))
    assert (good.top1, good.images, good.refused) == (1.0, 25, 2)
    assert bad.top1 == 0.0


def test_labels_beyond_the_models_classes_are_named(
    tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    root = paint_classes(tmp_path, per_class=1)
    files = [str(path) for path in sorted(root.rglob("*.png"))]
    source = FileSource(root, files, [0, 1, 7], [str(i) for i in range(8)])
    with pytest.raises(DataError, match="the model has 3 classes, the data has label 7"):
        score(MeanColour(), source, SHOWING)


def test_nothing_readable_is_an_error_not_a_zero(tmp_path: Path) -> None:
    source = FileSource(tmp_path, ["absent.png"], [0], ["a"])
    with pytest.raises(DataError, match="no picture could be read"):
        score(MeanColour(), source, SHOWING)


class Memory:
    """A source of labels and names alone."""

    blocks = ()

    def __init__(self, labels: list[int], class_names: tuple[str, ...]) -> None:
        self.labels, self.class_names, self.fingerprint = np.asarray(labels), class_names, "memory"

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> bytes:
        return bytes([index])


NAMES = ("blue", "dark green", "red")


@pytest.mark.parametrize(
    ("data_names", "labels", "expected"),
    [
        (("red", "blue"), [0, 1, 0], [2, 0, 2]),  # a folder that lacks a class
        (("red", "dark green", "blue"), [0, 1, 2], [2, 1, 0]),
        (("blue", "Dark_Green", "red"), [2, 1, 0], [2, 1, 0]),
        (("0", "1", "2", "3"), [1, 0], [1, 0]),  # numbers for names
        (("0", "2"), [1, 0], [2, 0]),  # ImageNet-V2 that lacks a folder
        (("1", "10", "2"), [2, 0, 2], [2, 1, 2]),  # its folders in the order of words
        (("00", "02"), [1, 0], [2, 0]),
        (("n01", "n02", "n03"), [1, 0], [1, 0]),  # as many, under other names
        (("blue", "1", "2", "3"), [0, 0], [0, 0]),  # a list that names only some
        (("x", "blue"), [1, 1], [0, 0]),  # names of no picture do not matter
    ],
)
def test_classes_are_matched_by_name_where_the_model_knows_them(
    data_names: tuple[str, ...], labels: list[int], expected: list[int]
) -> None:
    source = Memory(labels, data_names)
    found = with_classes(source, NAMES)
    assert found.labels.tolist() == expected
    assert [found.read(i) for i in range(len(found))] == [source.read(i) for i in range(len(source))]


@pytest.mark.parametrize(
    ("data_names", "labels", "message"),
    [
        (("cat", "dog"), [0, 1], "2 of the data's 2 classes are none of the model's 3, 'cat' for one"),
        (("red", "cat"), [0, 1], "1 of the data's 2 classes"),
        (("0", "1", "2", "3"), [3], "the model has 3 classes, the data has label 3"),
        (("0", "²"), [0, 1], "2 of the data's 2 classes are none of the model's 3, '0' for one"),
        (("1", "999"), [1, 0], "the model has 3 classes, the data has label 999"),
    ],
)
def test_other_classes_are_refused(data_names: tuple[str, ...], labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_classes(Memory(labels, data_names), NAMES)


@pytest.mark.parametrize(
    ("data_names", "labels", "expected"),
    [
        (("2", "10"), [0, 1], [2, 1]),  # a model of numbered folders: the name tells, as with words
        (("cat", "dog", "fish", "newt"), [1, 2], [1, 2]),
        (("01", "02", "03"), [2, 0], [2, 0]),
    ],
)
def test_numbers_are_names_to_a_model_that_has_them(
    data_names: tuple[str, ...], labels: list[int], expected: list[int]
) -> None:
    assert with_classes(Memory(labels, data_names), ("1", "10", "2")).labels.tolist() == expected


def test_numbers_that_a_numbered_model_lacks_are_refused() -> None:
    with pytest.raises(DataError, match="2 of the data's 2 classes are none of the model's 3, '7' for one"):
        with_classes(Memory([0, 1], ("7", "8")), ("1", "10", "2"))


@pytest.mark.parametrize("folders", [("blue", "green", "red"), ("0", "1", "2")])
def test_a_folder_that_lacks_classes_is_scored_as_one_that_has_them(
    tmp_path: Path, paint_classes: Callable[..., Path], folders: tuple[str, ...]
) -> None:
    root = paint_classes(tmp_path, per_class=4)
    shutil.rmtree(root / "blue")
    for name, folder in zip(("green", "red"), folders[1:], strict=True):
        (root / name).rename(root / folder)
    source = with_classes(open_source(root), ("blue", "green", "red"))
    assert score(MeanColour(), source, SHOWING).top1 == 1.0


class Neighbours:
    """Says the class of the picture's colour, in slot 1 that of the picture beside it if that is red."""

    name = "neighbours"

    def run(self, batch_BCHW: np.ndarray) -> tuple[np.ndarray, ...]:
        (logits_BK,) = MeanColour().run(batch_BCHW)
        for slot in range(1, len(logits_BK), 2):
            if logits_BK[slot - 1].argmax() == 2:
                logits_BK[slot] = logits_BK[slot - 1]
        return (logits_BK,)


def test_pictures_that_share_a_pass_are_drawn_and_scored_by_slot(
    tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    source = open_source(paint_classes(tmp_path, per_class=40))
    alone, in_pairs = replace(SHOWING, batch_size=8), replace(SHOWING, batch_size=8, mux_width=2)
    in_order = score(Neighbours(), source, alone)
    assert in_order.top1 == 1.0, "side by side, pictures of one class hide it"
    assert in_order.slots == ()
    drawn = outcomes(Neighbours(), source, in_pairs)
    scores = drawn.scores(source)
    assert scores.slots[0] == 1.0
    assert scores.slots[1] == pytest.approx(2 * scores.top1 - 1)
    assert 0.6 < scores.slots[1] < 0.95
    again = outcomes(Neighbours(), source, in_pairs)
    assert drawn.agreement(again) == 1.0
    other = outcomes(Neighbours(), source, replace(in_pairs, mates=1))
    slots = dict(zip(drawn.pictures_B, drawn.slots_B, strict=True))
    assert all(slots[p] == slot for p, slot in zip(other.pictures_B, other.slots_B, strict=True))
    same = dict(zip(drawn.pictures_B, drawn.firsts_B, strict=True))
    expected = np.mean([same[p] == first for p, first in zip(other.pictures_B, other.firsts_B, strict=True)])
    assert drawn.agreement(other) == pytest.approx(expected)
    assert 0.7 < expected < 1.0


def test_what_depends_on_its_slot_alone_agrees_beside_all_pictures(
    tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    class Slots(MeanColour):
        """Blind in slot 1."""

        def run(self, batch_BCHW: np.ndarray) -> tuple[np.ndarray, ...]:
            (logits_BK,) = super().run(batch_BCHW)
            logits_BK[1::2] = 0
            return (logits_BK,)

    source = open_source(paint_classes(tmp_path, per_class=20))
    found, agreement = outcomes_in_groups(Slots(), source, replace(SHOWING, mux_width=2))
    scores = found.scores(source)
    assert agreement == 1.0
    assert scores.slots[0] == 1.0
    assert scores.slots[1] < 0.6


def test_a_slot_without_pictures_has_no_score(tmp_path: Path, paint_classes: Callable[..., Path]) -> None:
    source = take(open_source(paint_classes(tmp_path, per_class=2)), 1)
    found, agreement = outcomes_in_groups(MeanColour(), source, replace(SHOWING, mux_width=4))
    scores = found.scores(source)
    assert (scores.slots, scores.images, agreement) == ((1.0,), 1, 1.0)
    plain = score(MeanColour(), source, SHOWING).to_dict()
    assert plain.keys() == {"top1", "top5", "ece", "nll", "images", "refused"}


COLOURS = ["blue", "green", "red", *(f"other {index}" for index in range(7))]
KEYS = {"model", "engine", "precision", "images", "refused", "top1", "top5", "ece", "nll"}
KEYS |= {"img_per_s", "engine_img_per_s"}
LABELS = {"labels_top1", "labels_images", "labels_left_out"}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_artefact_is_scored_by_other_labels_too(
    tmp_path: Path, paint_classes: Callable[..., Path], make_artefact: Callable[..., Path], engine: str
) -> None:
    data, model = paint_classes(tmp_path / "data", per_class=5), make_artefact({"class_names": COLOURS})
    (data / "green" / "004.png").write_bytes(b"")
    source = open_source(data)
    own = {
        f"{COLOURS[label]}/{Path(source.name(index)).name}": [label]
        for index, label in enumerate(source.labels.tolist())
    }
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own))
    found = evaluate(data, model=model, engine=engine, labels=path)
    assert found.to_dict().keys() == KEYS | LABELS
    assert 0 <= found.top1 < 1
    assert (found.labels_top1, found.labels_images, found.labels_left_out) == (found.top1, 14, 0)
    assert found.refused == 1
    path.write_text(json.dumps({name: classes and list(range(10)) for name, classes in own.items()}))
    assert evaluate(data, model=model, engine=engine, labels=path).labels_top1 == 1.0
    path.write_text(json.dumps([*[[]] * 5, *[[label] for label in source.labels.tolist()[5:]]]))
    some = evaluate(data, model=model, engine=engine, labels=path, limit=12)
    assert (some.labels_images or 0) + (some.labels_left_out or 0) == some.images
    assert some.labels_left_out in (3, 4, 5)
    path.write_text("[]")
    with pytest.raises(DataError, match="expected 15 lists"):
        evaluate(data, model=model, engine=engine, labels=path)


@pytest.mark.parametrize(
    ("mux_width", "img_per_s", "engine_img_per_s"), [(1, 12 / 7, 12 / 3), (2, 24 / 9, 24 / 4)]
)
def test_speed_counts_every_picture_shown(
    tmp_path: Path,
    paint_classes: Callable[..., Path],
    make_artefact: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    mux_width: int,
    img_per_s: float,
    engine_img_per_s: float,
) -> None:
    """By a clock that goes on one second whenever it is read; groups are shown twice."""
    model = make_artefact({"class_names": COLOURS, "mux_width": mux_width})
    data = paint_classes(tmp_path, per_class=4)
    monkeypatch.setattr("vitesse.evaluate.time", SimpleNamespace(perf_counter=count().__next__))
    found = evaluate(data, model=model, engine="onnxruntime", batch_size=5 if mux_width == 1 else 6)
    assert found.img_per_s == pytest.approx(img_per_s)
    assert found.engine_img_per_s == pytest.approx(engine_img_per_s)
    of_groups = {"mux_width", "slots", "agreement"} if mux_width == 2 else set()
    assert found.to_dict().keys() == KEYS | of_groups


def test_people_read_all_figures_in_a_few_lines(
    tmp_path: Path,
    paint_classes: Callable[..., Path],
    make_artefact: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, model = paint_classes(tmp_path / "data", per_class=4), make_artefact({"class_names": COLOURS})
    path = tmp_path / "sets.json"
    path.write_text(json.dumps([[], *[list(range(10))] * 11]))
    arguments = [
        "evaluate",
        str(data),
        "--model",
        str(model),
        "--engine",
        "onnxruntime",
        "--labels",
        str(path),
    ]
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert run(arguments) == 0
    first, *lines, speed = capsys.readouterr().out.splitlines()
    assert first.endswith(f"top-1 {found['top1']:.2%}, top-5 {found['top5']:.2%} on 12 pictures")
    assert lines == [
        f"  calibration error {found['ece']:.2%}, negative log-likelihood {found['nll']:.3f}",
        "  by the other labels: top-1 100.00% on 11 pictures, 1 more without labels",
    ]
    assert re.fullmatch(r"  [\d.]+ pictures a second from file to label, [\d.]+ in the engine alone", speed)
    path.write_text("[[")
    assert run(arguments) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: expected JSON")


def test_of_data_without_splits_the_part_that_was_trained_on_is_left_out(
    tmp_path: Path,
    make_artefact: Callable[..., Path],
    paint_classes: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = paint_classes(tmp_path / "data", per_class=10)
    names = ["blue", "green", "red", *(f"class {index}" for index in range(3, 10))]
    kept, _ = hold_out(open_source(data), HELD_OUT_SHARE, 3)
    for seed, limit, images in ((3, None, 3), (3, 20, 3), (4, None, 30)):  # of the run's seed, and of another
        seen = take(kept, limit, 3)
        provenance = {"data": seen.fingerprint, "recipe": {"seed": seed, "limit_train": limit}}
        path = make_artefact({"provenance": provenance, "class_names": names})
        assert evaluate(data, model=path, engine="onnxruntime").images == images
    assert capsys.readouterr().err.count("scored on the 3 held out") == 2


def test_tiles_are_scored_as_they_are_predicted(data_dir: Path) -> None:
    data, engine = data_dir / "bccd", "onnxruntime"
    in_one_piece, as_one_tile, by_tiles = (
        evaluate(data, model="bccd", engine=engine, limit=2, tile=tile) for tile in (None, 640, 400)
    )
    assert as_one_tile.scores == in_one_piece.scores != by_tiles.scores
    pictures = take(open_for("detect", data, "test"), 2)
    predictor = load("bccd", engine=engine, tile=400, min_score=0)
    records = predictor.predict([pictures.read(index) for index in range(2)])
    assert by_tiles.scores == recorded_boxes(records, pictures).scores(pictures)
    assert by_tiles.scores.images == 2
