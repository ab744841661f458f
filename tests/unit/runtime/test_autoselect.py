"""`engine="auto"`: measured once, remembered, never fatal."""

from __future__ import annotations

import json
import threading
import time
from typing import ClassVar

import numpy as np
import pytest

from vitesse.errors import EngineError
from vitesse.runtime import autoselect, engines
from vitesse.runtime.artefact import cache_dir
from vitesse.runtime.engines import create_engine


class Stub:
    """An engine that takes a set time a picture."""

    made: ClassVar[list[str]] = []

    def __init__(self, name, seconds=0.0, fails=""):
        self.name, self._seconds, self._fails = name, seconds, fails

    def __call__(self, artefact, threads, streams, keep_compiled):
        Stub.made.append(self.name)
        if self._fails == "create":
            raise EngineError(f"{self.name} refused the model")
        return self

    def run(self, batch_BCHW):
        if self._fails == "run":
            raise EngineError(f"{self.name} failed")
        time.sleep(self._seconds * len(batch_BCHW))
        return (np.zeros((len(batch_BCHW), 10), np.float32),)


@pytest.fixture
def install(monkeypatch):
    def put(*stubs):
        monkeypatch.setattr(engines, "ENGINES", {stub.name: stub for stub in stubs})
        monkeypatch.setattr(engines, "available_engines", lambda: tuple(stub.name for stub in stubs))
        monkeypatch.setattr(autoselect, "BUDGET_S", 0.0)
        Stub.made = []

    return put


def memory_file():
    return cache_dir() / "engines.json"


def test_the_fastest_wins_and_is_remembered(tiny_artefact, install):
    install(Stub("slow", 0.004), Stub("quick", 0.0))
    assert create_engine(tiny_artefact).name == "quick"
    assert Stub.made == ["slow", "quick"]
    Stub.made = []
    assert create_engine(tiny_artefact).name == "quick"
    assert Stub.made == ["quick"]


def test_both_batch_sizes_count(tiny_artefact):
    def overhead(batch_BCHW):
        time.sleep(0.004)

    def proportional(batch_BCHW):
        time.sleep(0.003 * len(batch_BCHW))

    assert autoselect.fastest({"p": proportional, "o": overhead}, tiny_artefact) == "o"


def test_a_batch_fixed_to_one_is_measured_with_one(make_artefact, install):
    from vitesse.runtime.artefact import read_artefact

    seen = []
    autoselect.fastest({"a": lambda batch: seen.append(len(batch))}, read_artefact(make_artefact(batch=1)))
    assert set(seen) == {1}


def test_other_threads_are_measured_again(tiny_artefact, install):
    install(Stub("a"), Stub("b", 0.002))
    create_engine(tiny_artefact, threads=1)
    create_engine(tiny_artefact, threads=2)
    assert Stub.made == ["a", "b"] * 2
    assert len(json.loads(memory_file().read_text())) == 2


def test_one_engine_is_taken_unmeasured(tiny_artefact, install):
    install(Stub("only", fails="run"))
    assert create_engine(tiny_artefact).name == "only"
    assert not memory_file().exists()


@pytest.mark.parametrize("fails", ["create", "run"])
def test_an_engine_that_fails_is_left_out(tiny_artefact, install, fails):
    install(Stub("bad", fails=fails), Stub("good", 0.001))
    assert create_engine(tiny_artefact).name == "good"


def test_none_that_works_is_an_error_with_all_reasons(tiny_artefact, install):
    install(Stub("a", fails="create"), Stub("b", fails="run"))
    with pytest.raises(EngineError, match="a refused the model; b failed"):
        create_engine(tiny_artefact)


def test_a_remembered_engine_that_fails_now_is_replaced(tiny_artefact, install):
    install(Stub("a"), Stub("b", 0.002))
    assert create_engine(tiny_artefact).name == "a"
    install(Stub("a", fails="create"), Stub("b", 0.002))
    assert create_engine(tiny_artefact).name == "b"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"x": 1}', b"[" * 100_000])
def test_a_corrupt_memory_is_as_good_as_none(tiny_artefact, install, content):
    install(Stub("a"), Stub("b", 0.002))
    memory_file().parent.mkdir(exist_ok=True)
    memory_file().write_bytes(content)
    assert create_engine(tiny_artefact).name == "a"
    assert "a" in json.loads(memory_file().read_text()).values()


def test_a_remembered_name_that_is_not_installed_is_ignored(tiny_artefact, install):
    install(Stub("a"), Stub("b", 0.002))
    create_engine(tiny_artefact)
    entries = json.loads(memory_file().read_text())
    memory_file().write_text(json.dumps(dict.fromkeys(entries, "gone")))
    assert create_engine(tiny_artefact).name == "a"


def test_a_memory_that_cannot_be_written_is_no_error(tiny_artefact, install, monkeypatch, tmp_path):
    install(Stub("a"), Stub("b", 0.002))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITESSE_CACHE", str(tmp_path / "file" / "below"))
    assert create_engine(tiny_artefact).name == "a"


def test_the_memory_does_not_grow_without_end(tiny_artefact):
    for index in range(80):
        autoselect.Memory(("onnxruntime",), f"sha{index}", 1).remember("onnxruntime")
    assert len(json.loads(memory_file().read_text())) == 64
    assert autoselect.Memory(("onnxruntime",), "sha79", 1).recall() == "onnxruntime"
    assert autoselect.Memory(("onnxruntime",), "sha0", 1).recall() is None


def test_streams_are_measured_by_as_many_callers_and_remembered_apart(tiny_artefact, install, monkeypatch):
    class OneAtOnce(Stub):
        """Quickest alone, but its callers wait for each other."""

        lock = threading.Lock()

        def run(self, batch_BCHW):
            with self.lock:
                return super().run(batch_BCHW)

    monkeypatch.setattr(engines, "usable_cpus", lambda: 4)
    install(OneAtOnce("alone", 0.002), Stub("together", 0.003))
    assert create_engine(tiny_artefact, streams=4).name == "together"
    assert create_engine(tiny_artefact, streams=1).name == "alone"
    assert create_engine(tiny_artefact, streams=4).name == "together"
