"""The report page: well-formed and self-contained for any run, and its figures are right."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from vitesse.train.report import Predictions, RunRecord, write_report
from vitesse.train.report.charts import Line, Scale, line_chart, round_steps
from vitesse.train.report.findings import calibration, judge, smoothed, stage_seconds, thinned
from vitesse.train.report.markup import escape, tag
from vitesse.train.report.page import render
from vitesse.train.report.words import (
    advice_on_time,
    balance,
    duration,
    lost_steps,
    sureness,
    trend,
    verdict,
)


class Pictures:
    """A source of small pictures; the last cannot be opened and the one before is no picture."""

    def __init__(self, labels: np.ndarray, class_names: tuple[str, ...]) -> None:
        self.labels, self.class_names, self.fingerprint = labels, class_names, "0" * 16

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"photos/{index}.png"

    def read(self, index: int) -> bytes:
        if index == len(self) - 1:
            raise OSError("gone")
        if index == len(self) - 2:
            return b"no picture"
        colours = np.random.default_rng(index).integers(0, 256, (4, 3), np.uint8).reshape(2, 2, 3)
        buffer = io.BytesIO()
        Image.fromarray(colours).resize((32, 24), Image.Resampling.BICUBIC).save(buffer, "PNG")
        return buffer.getvalue()


def predictions_of(class_names: tuple[str, ...], each: int, seed: int = 0) -> Predictions:
    """Pictures of every class, about three in four of them right."""
    rng = np.random.default_rng(seed)
    number = len(class_names)
    labels_N = np.repeat(np.arange(number), each)
    near_N = (labels_N + rng.integers(1, 3, len(labels_N))) % number
    firsts_N = np.where(rng.random(len(labels_N)) < 0.75, labels_N, near_N)
    confidences_N = rng.uniform(0.3, 1.0, len(labels_N)).astype(np.float32)
    return Predictions(
        labels_N=labels_N,
        firsts_N=firsts_N,
        confidences_N=confidences_N,
        label_probs_N=np.where(firsts_N == labels_N, confidences_N, 0.1).astype(np.float32),
        pictures_N=np.arange(len(labels_N)),
        source=Pictures(labels_N, class_names),
    )


def steps_of(number: int, epochs: float = 30) -> list[dict[str, Any]]:
    noise = np.random.default_rng(0).normal(size=number)
    return [
        {
            "step": 10 * (at + 1),
            "epoch": epochs * (at + 1) / number,
            "loss": 4 * math.exp(-3 * at / number) + 0.2 * noise[at] + 1,
            "lr": 1e-3 * (1 - at / number),
            "grad_norm": abs(1 + noise[at]),
            "img_per_s": 500 + 20 * noise[at],
            "data_s": 0.05,
            "forward_s": 0.02,
            "backward_s": 0.04,
            "update_s": 0.01,
        }
        for at in range(number)
    ]


def epochs_of(top1s: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "epoch": at + 1,
            "loss": 2.0,
            "seconds": 144.0 * (at + 1),
            "skipped": 0,
            "top1": top1,
            "top5": (1 + top1) / 2,
            "nll": 1.0,
            "ece": 0.03,
        }
        for at, top1 in enumerate(top1s)
    ]


def record_of(classes: int = 10, each: int = 20, **changes: Any) -> RunRecord:
    names = tuple(f"class {index}" for index in range(classes))
    fields: dict[str, Any] = {
        "title": "efficientvit_m0 on photos",
        "model": {"name": "efficientvit_m0", "params": 2.3e6, "macs": 7.9e7, "image_size": (224, 224)}
        | {"num_classes": classes},
        "recipe": {"epochs": 30, "workers": 2, "crop_scale": (0.35, 1.0), "limit_val": None},
        "provenance": {"command": "vitesse train photos", "versions": {"torch": "2.10"}, "cores": 8},
        "status": "finished",
        "class_names": names,
        "train_counts": np.arange(classes) + 90,
        "val_counts": np.full(classes, each),
        "notes": ("2 pictures could not be read",),
        "steps": steps_of(200),
        "epochs": epochs_of([0.8 - 0.4 / (at + 1) for at in range(30)]),
        "predictions": predictions_of(names, each),
    }
    return RunRecord(**(fields | changes))


class Page(HTMLParser):
    """Reads a page and holds that every element is closed, in the order of opening."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        assert len(dict(attrs)) == len(attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def drawings(page: str) -> list[ElementTree.Element]:
    """Every drawing, read as XML."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.S)]


def check(page: str) -> Page:
    """What holds for every page."""
    assert page.startswith("<!doctype html>\n")
    read = Page(page)
    numbers = [
        value
        for svg in drawings(page)
        for element in svg.iter()
        for name, value in element.attrib.items()
        if name not in ("aria-label",)
    ]
    assert not [value for value in numbers if re.search(r"\b(nan|inf)\b", value)]
    loads = [value for name, value in read.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert all(value is not None and value.startswith("data:") for value in loads)
    assert not re.search(r"https?://|@import|url\(", page)
    assert read.names.count("script") == 1
    assert read.names.count("h1") == 1
    assert read.names.count("img") == len(
        [name for name, value in read.attributes if name == "alt" and value]
    )
    assert "http-equiv" in dict(read.attributes)
    return read


EMPTY: dict[str, Any] = {"steps": (), "epochs": (), "predictions": None}
NO_ACCURACY = [{"epoch": 1, "loss": math.nan, "seconds": 3.0, "skipped": 7}]
RUNS: dict[str, Callable[[], RunRecord]] = {
    "whole": lambda: record_of(),
    "just begun": lambda: record_of(**EMPTY, notes=(), status="running, epoch 1 of 30"),
    "no evaluation": lambda: record_of(predictions=None, epochs=NO_ACCURACY),
    "one epoch": lambda: record_of(steps=steps_of(1, 1), epochs=epochs_of([0.5])),
    "one class": lambda: record_of(1),
    "one class evaluated": lambda: record_of(
        predictions=replace(predictions_of(("class 0",), 4), firsts_N=np.array([0, 3, 0, 0]))
    ),
    "thirty-one classes": lambda: record_of(31, each=4),
    "all right": lambda: record_of(
        predictions=replace(predictions_of(("class 0",), 4), firsts_N=np.zeros(4, np.int64))
    ),
    "no pictures": lambda: record_of(
        train_counts=np.zeros(10, np.int64),
        val_counts=np.zeros(10, np.int64),
        predictions=replace(
            predictions_of(("class 0",), 1),
            **{name: np.zeros(0, np.int64) for name in ("labels_N", "firsts_N", "pictures_N")},
            **{name: np.zeros(0, np.float32) for name in ("confidences_N", "label_probs_N")},
        ),
    ),
    "confidence not a number": lambda: record_of(
        predictions=replace(
            predictions_of(("class 0", "class 1"), 2), confidences_N=np.full(4, np.nan, np.float32)
        )
    ),
    "all losses NaN": lambda: record_of(steps=[row | {"loss": math.nan} for row in steps_of(20)]),
    "rows without keys": lambda: record_of(
        steps=[{"step": 1, "epoch": 0.1}, {"step": 2, "epoch": 0.2, "loss": 3.0, "lr": None}],
        epochs=[{"epoch": 1}],
    ),
}


@pytest.mark.parametrize("run", RUNS)
def test_every_run_has_a_page(run: str) -> None:
    record = RUNS[run]()
    assert verdict(record) in check(render(record)).text


def test_the_page_shows_every_part() -> None:
    page = check(render(record_of()))
    shown = " ".join(page.text)
    for words in (
        "78.7\u00a0% of 200 held-out pictures right after 30 epochs, 1 h 12 min; the last epoch is the best.",
        "efficientvit_m0 · 2.3 M parameters · 79 M MACs · 224 by 224 pixels · 10 classes",
        *("Training loss", "Learning rate", "Gradient norm", "Pictures a second", "Time of a step"),
        *("Confusion matrix", "Most frequent mistakes", "Wrong and sure of it", "Sure and right"),
        *("Class by class, worst first", "Training pictures a class", "2 pictures could not be read"),
        *("crop_scale", "0.35, 1.0", "versions", "torch", "2.10", "vitesse train photos"),
    ):
        assert words in shown


def test_a_thousand_classes_stay_small() -> None:
    page = render(record_of(1000, each=3, steps=steps_of(5000)))
    check(page)
    assert len(page.encode()) < 3_000_000
    assert re.search("the (19|20) most confused classes of 1,000", page)


def test_thousands_of_steps_are_thinned_and_keep_their_extremes() -> None:
    steps = steps_of(9000)
    steps[4321]["loss"] = 77.0
    page = render(record_of(steps=steps))
    strips = [[e for e in svg.iter("rect") if e.get("class") == "strip"] for svg in drawings(page)]
    assert 360 < max(map(len, strips)) <= 400
    assert "step 43,220: 77" in page


def test_losses_that_are_not_finite_are_marked_and_said() -> None:
    steps = steps_of(20)
    for at, value in ((5, math.nan), (6, math.inf), (12, -math.inf)):
        steps[at]["loss"] = value
    record = record_of(steps=steps, epochs=[row | {"skipped": 1} for row in epochs_of([0.5, 0.6])])
    page = render(record)
    assert page.count('class="cross"') == 3
    assert "3 recorded losses not finite (crosses) and 2 steps skipped" in page
    loss = drawings(page)[1]
    assert [e.get("d", "").count("M") for e in loss.iter("path") if e.get("class") == "line faint"] == [3]


EVIL = '<script>alert("x")</script>&\'\x00\ud800"'


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    names = (EVIL, "class 1", "class 2")
    predictions = predictions_of(names, 8)
    predictions.source.name = lambda index: EVIL  # type: ignore[method-assign]
    record = record_of(
        3,
        title=EVIL,
        status=EVIL,
        notes=(EVIL,),
        class_names=names,
        recipe={EVIL: EVIL},
        provenance={EVIL: {EVIL: [EVIL]}},
        model={"name": EVIL, "params": 1, "macs": None, "image_size": 32, "num_classes": 3},
        train_counts=np.zeros(3, np.int64),
        predictions=predictions,
    )
    write_report(record, tmp_path / "report.html")
    page = check((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.names.count("script") == 1
    assert page.text.count('<script>alert("x")</script>&\'\ufffd\ufffd"') > 8


def test_the_script_is_the_one_that_the_policy_allows() -> None:
    page = render(record_of())
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run" / "report.html"
    write_report(record_of(), path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(record_of(title="another"), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def thumbnails(page: str) -> list[Image.Image]:
    encoded = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]


def test_the_surest_mistakes_come_first_and_unreadable_ones_are_grey() -> None:
    predictions = predictions_of(("class 0", "class 1"), 20)
    confidences_N = np.linspace(0.5, 0.9, 40, dtype=np.float32)
    wrong = replace(predictions, firsts_N=1 - predictions.labels_N, confidences_N=confidences_N)
    page = render(record_of(predictions=wrong))
    shown = re.findall(r'title="photos/(\d+).png"', page)
    assert shown == [str(index) for index in range(39, 15, -1)]
    images = thumbnails(page)
    assert all(max(image.size) <= 96 for image in images)
    spread = [int(np.ptp(np.asarray(image), axis=(0, 1)).max()) for image in images]
    assert spread[:2] == [0, 0]
    assert min(spread[2:]) > 30


def test_large_pictures_are_made_small() -> None:
    predictions = predictions_of(("class 0", "class 1"), 20)
    buffer = io.BytesIO()
    Image.effect_noise((640, 480), 90).convert("RGB").save(buffer, "JPEG")
    predictions.source.read = lambda index: buffer.getvalue()  # type: ignore[method-assign]
    assert {image.size for image in thumbnails(render(record_of(predictions=predictions)))} == {(96, 72)}


def test_the_table_has_the_figures_of_each_class() -> None:
    labels_N = np.array([0, 0, 0, 0, 0, 0, 1, 1, 3])
    firsts_N = np.array([0, 0, 0, 3, 2, 2, 0, 0, 3])
    predictions = Predictions(
        labels_N=labels_N,
        firsts_N=firsts_N,
        confidences_N=np.full(9, 0.5, np.float32),
        label_probs_N=np.full(9, 0.1, np.float32),
        pictures_N=np.arange(9),
        source=Pictures(labels_N, ("a", "b", "c", "d")),
    )
    record = record_of(
        4,
        class_names=("a", "b", "c", "d"),
        train_counts=np.array([1234, 6, 7, 8]),
        val_counts=np.array([6, 2, 0, 1]),
        predictions=predictions,
    )
    page = render(record)
    table = page[page.index('<table class="sortable">') :].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]
    plain = [[re.sub(r"<.*?>", "", cell).replace("\u00a0", " ") for cell in row] for row in rows]
    assert plain == [
        ["b", "6", "2", "0.0 %", "none", "a (2)"],
        ["a", "1,234", "6", "50.0 %", "60.0 %", "c (2)"],
        ["d", "8", "1", "100.0 %", "50.0 %", ""],
        ["c", "7", "0", "none", "0.0 %", ""],
    ]


def some_outcomes(number: int) -> st.SearchStrategy[tuple[int, list[tuple[int, int]]]]:
    """A number of classes and (true, first) of some pictures."""
    label = st.integers(0, number - 1)
    return st.tuples(st.just(number), st.lists(st.tuples(label, label), min_size=1))


@given(st.integers(2, 6).flatmap(some_outcomes))
def test_the_judgement_adds_up(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    number, pairs = drawn
    labels_N, firsts_N = (np.asarray(column, np.int64) for column in zip(*pairs, strict=True))
    ones_N = np.ones(len(pairs), np.float32)
    found = judge(
        Predictions(
            labels_N=labels_N,
            firsts_N=firsts_N,
            confidences_N=ones_N,
            label_probs_N=ones_N,
            pictures_N=labels_N,
            source=Pictures(labels_N, ()),
        ),
        number,
    )
    counts_KK = np.zeros((number, number), np.int64)
    np.add.at(counts_KK, (labels_N, firsts_N), 1)
    assert {(p.label, p.first): p.pictures for p in found.mistakes} == {
        (row, column): counts_KK[row, column] for row, column in np.argwhere(counts_KK) if row != column
    }
    np.testing.assert_array_equal(found.hits_K, np.diag(counts_KK))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(found.recall_K, np.diag(counts_KK) / counts_KK.sum(1))
        np.testing.assert_array_equal(found.precision_K, np.diag(counts_KK) / counts_KK.sum(0))


def test_the_calibration_error_is_the_gap_weighted_by_pictures() -> None:
    rng = np.random.default_rng(3)
    confidences_N = rng.beta(4, 2, 500).astype(np.float32)
    right_N = rng.random(500) < confidences_N**2
    found = calibration(np.append(confidences_N, np.float32(np.nan)), np.append(right_N, True))
    assert found is not None
    expected = 0.0
    for index in range(15):
        inside = [at for at in range(500) if index / 15 < confidences_N[at] <= (index + 1) / 15]
        expected += abs(sum(float(confidences_N[at]) - right_N[at] for at in inside)) / 500
    assert found.ece == pytest.approx(expected, abs=1e-6)
    assert found.overconfidence == pytest.approx(float(confidences_N.mean() - right_N.mean()), abs=1e-6)
    assert calibration(np.float32([np.nan]), np.array([True])) is None


VALUES = arrays(np.float64, st.integers(1, 900), elements=st.floats(width=32))


@given(VALUES, st.integers(6, 400))
def test_thinning_keeps_the_ends_and_the_extremes(y_S: np.ndarray, most: int) -> None:
    kept = thinned(y_S, most)
    assert len(kept) <= most
    assert (np.diff(kept) > 0).all()
    assert {0, len(y_S) - 1} <= set(kept.tolist())
    finite_S = y_S[np.isfinite(y_S)]
    if len(finite_S):
        assert {finite_S.min(), finite_S.max()} <= set(y_S[kept].tolist())


@given(
    arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e3, 1e3) | st.just(math.nan)),
    st.integers(0, 9),
)
def test_smoothing_is_the_mean_of_what_is_near(y_S: np.ndarray, reach: int) -> None:
    near = [y_S[max(0, at - reach) : at + reach + 1] for at in range(len(y_S))]
    expected = [part[~np.isnan(part)].mean() if not np.isnan(part).all() else math.nan for part in near]
    np.testing.assert_allclose(smoothed(y_S, reach), expected, atol=1e-9)


def test_the_mean_step_counts_steps_not_rows() -> None:
    row = {"data_s": 1.0, "forward_s": 2.0, "backward_s": 3.0, "update_s": 4.0}
    steps = [
        {"step": 10, **row},
        {"step": 11, **dict.fromkeys(row, 12.0)},
        {"step": 50, **row, "data_s": math.nan},
        {"step": 90},
    ]
    found = stage_seconds(steps)
    assert found == pytest.approx({"data": 2.0, "forward": 32 / 11, "backward": 42 / 11, "update": 52 / 11})
    assert stage_seconds([]) == stage_seconds(steps[2:]) == {}


@pytest.mark.parametrize(
    ("shares", "workers", "said"),
    [
        (
            (0.41, 0.2, 0.3, 0.09),
            2,
            "41.0\u00a0% of the time the model waits for pictures: raise workers= (now 2).",
        ),
        ((0.41, 0.2, 0.3, 0.09), 8, "all 8 cores decode already"),
        ((0.41, 0.2, 0.3, 0.09), None, "raise workers=."),
        (
            (0.0, 0.3, 0.25, 0.45),
            2,
            "45.0\u00a0% of the time goes into updating the weights: raise batch_size=",
        ),
        ((0.0, 0.3, 0.35, 0.35), 2, "100.0\u00a0% of the time the model computes"),
        ((0.01, 0.4, 0.5, 0.09), 2, "99.0\u00a0% of the time the model computes"),
    ],
)
def test_the_time_comes_with_advice(shares: tuple[float, ...], workers: int | None, said: str) -> None:
    record = record_of(recipe={"workers": workers}, steps=steps_of(200, epochs=4))
    assert said in advice_on_time(spent(*shares), record)


def spent(*shares: float) -> dict[str, float]:
    return dict(zip(("data", "forward", "backward", "update"), shares, strict=True))


def test_a_larger_batch_is_no_advice_where_an_epoch_has_few_steps() -> None:
    record = record_of(steps=steps_of(200, epochs=5))
    assert "raise" not in advice_on_time(spent(0.0, 0.3, 0.25, 0.45), record)


def test_the_start_of_a_run_says_nothing_about_its_time() -> None:
    waited = spent(0.7, 0.1, 0.1, 0.1)
    assert advice_on_time(waited, record_of(steps=steps_of(9, epochs=1))) == ""
    assert "raise workers=" in advice_on_time(waited, record_of(steps=steps_of(10, epochs=1)))


HEALTHY = {
    "many pictures": ([0.71, 0.84, 0.88, 0.895, 0.91], 5000),
    "few pictures": ([0.75, 0.867, 0.917, 0.95, 0.9], 60),
    "few pictures, the last epoch the best": ([0.7, 0.75, 0.817, 0.833, 0.883], 60),
    "level": ([0.968, 0.97, 0.969, 0.971, 0.966], 50_000),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_of_five_epochs_gets_no_advice(name: str) -> None:
    """In half precision, whose scaler drops two steps at first, with a small model that is updated often."""
    top1s, pictures = HEALTHY[name]
    rng = np.random.default_rng(2)
    right_N = rng.permutation(pictures) < top1s[-1] * pictures
    bins = calibration(np.clip(rng.normal(top1s[-1], 0.04, pictures), 0, 1).astype(np.float32), right_N)
    record = record_of(
        2,
        steps=steps_of(40, epochs=5),
        epochs=[row | {"skipped": 2 * (row["epoch"] == 1)} for row in epochs_of(top1s)],
        predictions=predictions_of(("class 0", "class 1"), pictures // 2),
    )
    assert trend(record) == ""
    assert lost_steps(record) == "2 steps skipped."
    assert "raise" not in advice_on_time(spent(0.05, 0.2, 0.3, 0.45), record)
    assert bins is not None
    assert sureness(bins).endswith("On average it is as sure as it may be.")


def test_a_run_that_goes_on_is_not_judged_by_its_course() -> None:
    rows = epochs_of([0.1, 0.4, 0.8, 0.5])
    assert trend(record_of(epochs=rows, status="running, epoch 5 of 9")) == ""
    assert trend(record_of(epochs=rows)) != ""


@pytest.mark.parametrize(("number", "advised"), [(50, False), (5000, True)])
def test_confidence_is_believed_unless_many_pictures_speak_against_it(number: int, advised: bool) -> None:
    found = calibration(np.full(number, 0.76, np.float32), np.arange(number) % 10 < 7)
    assert found is not None
    assert found.overconfidence == pytest.approx(0.06, abs=1e-6)
    assert ("surer than it is right, by 6.0 points" in sureness(found)) == advised


@pytest.mark.parametrize(("skipped", "advised"), [(20, False), (21, True)])
def test_many_lost_steps_come_with_advice(skipped: int, advised: bool) -> None:
    said = lost_steps(record_of(epochs=[row | {"skipped": skipped} for row in epochs_of([0.5])]))
    assert said.startswith(f"{skipped} steps skipped")
    assert ("a lower lr=" in said) == advised


@pytest.mark.parametrize(
    ("top1s", "said", "advised"),
    [
        ([], "No held-out picture has been judged yet; 2,000 steps done.", ""),
        ([0.5], "50.0\u00a0% of 200 held-out pictures right after 1 epoch, 2 min 24 s.", ""),
        ([0.1, 0.4, 0.5, 0.62, 0.7], "the last epoch is the best.", "Still rising"),
        (
            [0.1, 0.4, 0.8, 0.7],
            "after 4 epochs, 9 min 36 s; best epoch 3 (80.0\u00a0%).",
            "10.0 points below epoch 3",
        ),
        ([0.1, 0.6, 0.61, 0.605], "best epoch 3 (61.0\u00a0%).", ""),
    ],
)
def test_the_verdict_and_the_trend(top1s: list[float], said: str, advised: str) -> None:
    record = record_of(epochs=epochs_of(top1s))
    assert verdict(record).endswith(said)
    assert trend(record).startswith(advised)
    assert bool(trend(record)) == bool(advised)


def test_how_even_the_classes_are() -> None:
    def said(*counts: int) -> str:
        return balance(record_of(len(counts), train_counts=np.asarray(counts)))

    assert said(5, 5) == "Every class has 5 training pictures."
    assert said(4, 10) == "class 1 has 2.5 times the pictures of class 0 (10 and 4)."
    assert said(0, 3, 0) == "2 classes without any training picture: class 0, class 2."


def test_lost_steps_are_silent_where_there_are_none() -> None:
    assert lost_steps(record_of()) == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (59.6, "1 min"), (80, "1 min 20 s"), (3600, "1 h"), (4320, "1 h 12 min"), (7199, "2 h")],
)
def test_durations_read_well(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6))
def test_axis_steps_are_few_and_inside(low: float, width: float) -> None:
    ticks = round_steps(low, low + width)
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in ticks)


def test_a_logarithmic_axis_has_whole_powers() -> None:
    scale = Scale(low=0.05, high=2000.0, start=0.0, end=1.0, log=True)
    assert scale.ticks() == [0.1, 1.0, 10.0, 100.0, 1000.0]
    assert scale(10.0) == pytest.approx(math.log(10 / 0.05) / math.log(2000 / 0.05))


def test_a_curve_is_drawn_where_its_values_are() -> None:
    line = Line(x_S=np.array([0.0, 1.0, 2.0]), y_S=np.array([0.0, 1.0, 0.5]))
    svg = ElementTree.fromstring(line_chart([line], label="a", limits=(0.0, 1.0)) or "")
    (path,) = [e.get("d", "") for e in svg.iter("path")]
    assert path == "M48.0 196.0h0L229.0 14.0L410.0 105.0"


def test_markup_is_escaped_once() -> None:
    inner = tag("b", "1 < 2")
    assert tag("p", inner, " & ", title='"', class_="x", data_value=1.25, hidden=None) == (
        '<p title="&quot;" class="x" data-value="1.2"><b>1 &lt; 2</b> &amp; </p>'
    )
    assert escape(escape("<")) == "&lt;"
    assert tag("line", x1=3.0) == '<line x1="3"/>'
