"""What an engine compiled is kept whole, found again by all that it depends on, and never trusted blindly."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vitesse.errors import EngineError
from vitesse.runtime import compiled, engines
from vitesse.runtime.artefact import cache_dir, read_artefact
from vitesse.runtime.compiled import Blob
from vitesse.runtime.engines import OpenVinoEngine, create_engine
from vitesse.runtime.predictor import Predictor


@pytest.fixture
def x():
    return np.random.default_rng(3).standard_normal((5, 3, 24, 32), np.float32)


@pytest.fixture
def calls(monkeypatch):
    """Names of what OpenVINO was asked to do; every model is worth keeping."""
    pytest.importorskip("openvino")
    core, seen = engines.openvino_core(), []

    class Counting:
        def __getattr__(self, name):
            seen.append(name)
            return getattr(core, name)

    monkeypatch.setattr(engines, "openvino_core", Counting)
    monkeypatch.setattr(engines, "WORTH_KEEPING_S", 0.0)
    return seen


def opened(artefact, **options):
    return OpenVinoEngine(artefact, **options, keep_compiled=True)


def blobs():
    return sorted((cache_dir() / "compiled").glob("*"))


def test_what_was_kept_comes_back_by_its_key_alone():
    Blob("model", 1).remember(b"compiled")
    assert Blob("model", 1).recall() == b"compiled"
    assert Blob("model", 2).recall() is None


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-1], lambda c: c[:10], lambda c: b"", lambda c: c[:-1] + b"!"]
)
def test_a_damaged_blob_is_as_good_as_none(damage):
    Blob("model").remember(b"compiled")
    (path,) = blobs()
    path.write_bytes(damage(path.read_bytes()))
    assert Blob("model").recall() is None


def test_those_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(compiled, "_KEPT", 2)
    for age, name in enumerate("abc"):
        Blob(name).remember(name.encode())
        os.utime(Blob(name)._path, (age, age)) if name != "c" else None
        Blob("a").recall()
    assert [Blob(name).recall() for name in "abc"] == [b"a", None, b"c"]


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VITESSE_CACHE", str(tmp_path / "file"))
    Blob("model").remember(b"compiled")
    assert Blob("model").recall() is None


def test_a_model_is_compiled_once_and_then_read(tiny_artefact, x, calls):
    first = opened(tiny_artefact).run(x)[0]
    assert "compile_model" in calls
    calls.clear()
    again = opened(tiny_artefact).run(x)[0]
    assert calls == ["import_model"]
    np.testing.assert_array_equal(first, again)


def test_a_blob_that_openvino_refuses_is_made_again(tiny_artefact, x, calls, monkeypatch):
    expected = opened(tiny_artefact).run(x)[0]
    monkeypatch.setattr(Blob, "recall", lambda self: b"whole, but of another kind")
    calls.clear()
    np.testing.assert_array_equal(opened(tiny_artefact).run(x)[0], expected)
    assert "compile_model" in calls


def test_other_settings_and_other_models_have_other_blobs(make_artefact, tiny_artefact, calls):
    opened(tiny_artefact, threads=1)
    opened(tiny_artefact, threads=2)
    opened(tiny_artefact, threads=2, streams=2)
    opened(read_artefact(make_artefact(size=("h", "w"))), threads=1)
    assert len(blobs()) == 4


def test_a_quick_model_is_not_kept(tiny_artefact, calls, monkeypatch):
    monkeypatch.setattr(engines, "WORTH_KEEPING_S", 60.0)
    opened(tiny_artefact)
    assert blobs() == []


def test_what_is_only_tried_is_not_kept(tiny_artefact, calls):
    create_engine(tiny_artefact, "openvino")
    assert blobs() == []
    Predictor(tiny_artefact, engine="openvino")
    assert len(blobs()) == 1


def test_more_streams_than_threads_are_refused(tiny_artefact):
    with pytest.raises(EngineError, match="streams: expected at most one a thread, 2, got 3"):
        create_engine(tiny_artefact, "onnxruntime", threads=2, streams=3)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_batches_at_once_do_not_overwrite_each_other(name, tiny_artefact, tiny_reference, x):
    engine = create_engine(tiny_artefact, name, threads=2, streams=2)
    batches = [x + offset for offset in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = [outputs[0] for outputs in pool.map(engine.run, batches)]
    for batch_BCHW, logits_BK in zip(batches, found, strict=True):
        np.testing.assert_allclose(logits_BK, tiny_reference(batch_BCHW), atol=1e-4)


def test_no_streams_are_refused(tiny_artefact):
    with pytest.raises(EngineError, match="streams: expected at least 1, got 0"):
        create_engine(tiny_artefact, "onnxruntime", streams=0)
