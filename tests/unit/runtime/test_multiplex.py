"""Multiplexed artefacts in the runtime: groups, ensembles, and what the user is told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitesse.cli import run as command
from vitesse.errors import ArtefactError, ConfigError
from vitesse.runtime.artefact import read_artefact
from vitesse.runtime.multiplex import EnsembledEngine, dependence, orders
from vitesse.runtime.predictor import Predictor


class Groups:
    """An engine whose logits tell the slot of every picture and the sum of its group."""

    name = "groups"

    def __init__(self, width):
        self.width, self.batches = width, []

    def run(self, batch_BCHW):
        self.batches.append(len(batch_BCHW))
        value_B = batch_BCHW[:, 0, 0, 0]
        slot_B = np.arange(len(value_B)) % self.width
        group_B = np.arange(len(value_B)) // self.width
        sums = np.bincount(group_B, value_B)
        logits_BK = np.zeros((len(value_B), 10), np.float32)
        logits_BK[:, 0], logits_BK[:, 1], logits_BK[:, 2] = value_B, slot_B, sums[group_B]
        return (logits_BK,)


@pytest.fixture
def artefact(make_artefact):
    return read_artefact(make_artefact({"mux_width": 4}))


@given(groups=st.integers(1, 9), width=st.integers(2, 5))
def test_every_order_holds_all_pictures_and_each_is_in_every_slot_once(groups, width):
    count = groups * width
    found = list(orders(count, width))
    assert len(found) == width
    for order_B in found:
        assert sorted(order_B.tolist()) == list(range(count))
    for picture in range(count):
        slots = [order_B.tolist().index(picture) % width for order_B in found]
        assert sorted(slots) == list(range(width))


def test_pictures_meet_others_in_every_order():
    mates = []
    for order_B in orders(16, 4):
        (group,) = [group for group in order_B.reshape(-1, 4).tolist() if 5 in group]
        mates.append(frozenset(group) - {5})
    assert len(frozenset.union(*mates)) >= 9, "three in each of four orders, few of them twice"


@given(count=st.integers(1, 13), width=st.integers(2, 5))
def test_an_ensemble_is_the_mean_over_all_slots_in_the_pictures_order(count, width):
    batch_BCHW = np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 2, 2), np.float32)
    engine = Groups(width)
    (logits_BK,) = EnsembledEngine(engine, width).run(batch_BCHW)
    np.testing.assert_allclose(logits_BK[:, 0], np.arange(count), rtol=1e-6)
    np.testing.assert_allclose(
        logits_BK[:, 1], (width - 1) / 2, rtol=1e-6
    )  # the mean of slots 0 to width - 1
    assert engine.batches == [-(-count // width) * width] * width


def test_an_ensemble_needs_a_multiplexed_model():
    with pytest.raises(ConfigError, match="expected a multiplexed model"):
        EnsembledEngine(Groups(1), 1)


@pytest.mark.parametrize(("asked", "used"), [(1, 4), (4, 4), (6, 8), (8, 8)])
def test_batches_are_whole_groups(artefact, photo, asked, used):
    engine = Groups(4)
    records = Predictor(artefact, engine=engine, batch_size=asked).predict([photo(seed=i) for i in range(19)])
    assert engine.batches == [used] * (19 // used) + [19 % used] * bool(19 % used)
    assert [record.error for record in records] == [None] * 19


def test_one_unreadable_picture_of_a_group_spoils_no_other(artefact, photo, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"nothing")
    sources = [photo(seed=0), bad, photo(seed=2), photo(seed=3), photo(seed=4)]
    engine = Groups(4)
    records = Predictor(artefact, engine=engine, batch_size=4).predict(sources)
    assert [record.error is None for record in records] == [True, False, True, True, True]
    assert engine.batches == [3, 1]


def test_pictures_of_mixed_sizes_share_a_group(artefact, photo):
    sources = [photo(64, 48), photo(10, 200), photo(300, 20), photo(24, 24)]
    assert all(record.error is None for record in Predictor(artefact, engine="onnxruntime").predict(sources))


def test_the_user_is_told_that_labels_depend_on_the_group(make_artefact, photo, tmp_path, capsys):
    photo().save(tmp_path / "a.png")
    silent = {"mux_width": 2}
    measured = silent | {"accuracy": {"top1": 0.5, "top5": 0.9, "images": 200, "agreement": 0.935}}
    for manifest, told in (
        (silent, "`vitesse evaluate` measures"),
        (measured, "93.5% of 200 kept their label"),
    ):
        path = str(make_artefact(manifest))
        assert command(["predict", str(tmp_path / "a.png"), "--model", path, "--engine", "onnxruntime"]) == 0
        error = capsys.readouterr().err
        assert "tiny reads pictures in groups of 2" in error
        assert told in error
    assert command(["predict", str(tmp_path / "a.png"), "--model", str(make_artefact())]) == 0
    assert "groups of" not in capsys.readouterr().err


def test_an_ensemble_of_a_plain_model_is_refused(tiny_artefact, photo, tmp_path, capsys):
    photo().save(tmp_path / "a.png")
    arguments = ["predict", str(tmp_path / "a.png"), "--model", str(tiny_artefact.path), "--ensemble"]
    assert command(arguments) == 2
    assert "ensemble: expected a multiplexed model" in capsys.readouterr().err


@pytest.mark.parametrize("width", [0, -2, 1.5, "2"])
def test_an_impossible_width_is_refused(make_artefact, width):
    with pytest.raises(ArtefactError):
        read_artefact(make_artefact({"mux_width": width}))


def test_dependence_names_the_number_of_pictures(tiny_artefact):
    accuracy = {"agreement": 1.0, "images": 7}
    manifest = dataclasses.replace(tiny_artefact.manifest, mux_width=3, accuracy=accuracy)
    assert dependence(manifest).endswith("beside other pictures 100.0% of 7 kept their label")
