from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
from PIL import Image

from vitesse.errors import ArtefactError, ConfigError, EngineError
from vitesse.runtime.artefact import read_artefact
from vitesse.runtime.imaging import ImageLimits, preprocess
from vitesse.runtime.predictor import AHEAD, Predictor


@pytest.fixture
def predictor(tiny_artefact):
    return Predictor(tiny_artefact, engine="onnxruntime", threads=1, batch_size=4, workers=3)


@pytest.fixture
def files(tmp_path, photo, encode):
    paths = []
    for seed in range(11):
        paths.append(tmp_path / f"{seed}.jpg")
        paths[-1].write_bytes(encode(photo(50 + seed, 40, seed)))
    return paths


def decoders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("vitesse-decode")]


def test_labels_are_those_of_the_model(predictor, files, tiny_artefact, tiny_reference):
    records = predictor.predict(files)
    assert [record.source for record in records] == [str(path) for path in files]
    x_BCHW = np.stack([preprocess(Image.open(path), tiny_artefact.manifest.preprocess) for path in files])
    logits_BK = tiny_reference(x_BCHW)
    for record, logits_K in zip(records, logits_BK, strict=True):
        assert record.error is None
        assert record.model == "tiny"
        assert [p.index for p in record.predictions] == np.argsort(-logits_K)[:5].tolist()
        assert record.top.label == f"class {logits_K.argmax()}"
        assert record.top.score == pytest.approx(np.exp(logits_K.max()) / np.exp(logits_K).sum(), abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("workers", [1, 4])
def test_batches_and_workers_change_nothing(tiny_artefact, files, batch_size, workers):
    expected = [
        record.top.index for record in Predictor(tiny_artefact, batch_size=1, workers=1).predict(files)
    ]
    records = Predictor(tiny_artefact, batch_size=batch_size, workers=workers).predict(files)
    assert [record.top.index for record in records] == expected


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("streams", [2, 4])
def test_batches_at_once_change_neither_records_nor_their_order(tiny_artefact, files, engine, streams):
    files[4].write_bytes(b"no picture")
    one_by_one = Predictor(tiny_artefact, engine=engine, batch_size=2).predict(files * 4)
    at_once = Predictor(tiny_artefact, engine=engine, batch_size=2, streams=streams, threads=streams)
    assert [record.source for record in one_by_one] == [str(path) for path in files * 4]
    for record, other in zip(one_by_one, at_once.predict(files * 4), strict=True):
        assert (record.source, record.error) == (other.source, other.error)
        assert [p.index for p in record.predictions] == [p.index for p in other.predictions]


def test_as_many_batches_as_streams_run_at_once(tiny_artefact, files, monkeypatch):
    """Each run waits for a second one; alone it would wait in vain."""
    meeting = threading.Barrier(2, timeout=10)
    predictor = Predictor(tiny_artefact, engine="onnxruntime", batch_size=2, threads=2, streams=2)

    def run(batch_BCHW):
        meeting.wait()
        return (np.zeros((len(batch_BCHW), 10), np.float32),)

    monkeypatch.setattr(predictor.engine, "run", run)
    assert not [record.error for record in predictor.predict(files[:8]) if record.error]


def test_every_kind_of_source_gives_the_same(predictor, files):
    path, data = files[3], files[3].read_bytes()
    image = Image.open(path).convert("RGB")
    sources = [path, str(path), data, ("mine", data), Image.open(path), image, np.asarray(image)]
    records = predictor.predict(sources)
    assert [record.source for record in records] == [
        str(path), str(path), "input 2", "mine", str(path), "input 5", "input 6",
    ]  # fmt: skip
    assert len({record.predictions for record in records}) == 1


def test_one_record_for_each_input_whatever_happens(predictor, files, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "cut.jpg").write_bytes(files[0].read_bytes()[:300])
    bad = [tmp_path / "text.jpg", tmp_path / "cut.jpg", tmp_path / "none.jpg", tmp_path, b"", 7, None]
    bad += [np.zeros((3, 3)), ("name",), Image.new("F", (4, 4))]
    mixed = [source for pair in zip(bad, files, strict=False) for source in pair]
    records = predictor.predict(mixed)
    assert len(records) == len(mixed)
    assert all(record.error and "\n" not in record.error for record in records[::2])
    assert all(record.error is None for record in records[1::2])
    assert [record.source for record in records[1::2]] == [str(path) for path in files[: len(bad)]]


def test_only_bad_inputs(predictor):
    assert [bool(record.error) for record in predictor.predict([b""] * 9)] == [True] * 9


def test_nothing_in_nothing_out(predictor):
    assert predictor.predict([]) == []
    assert decoders() == []


def test_a_million_sources_are_not_read_ahead(predictor, photo, encode):
    data, taken = encode(photo()), 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield data

    stream = predictor.stream(endless())
    assert taken == 0
    for given, _ in enumerate(itertools.islice(stream, 40)):
        assert taken <= given + 1 + AHEAD * 4
    stream.close()


def test_closing_early_stops_the_decoders(predictor, files):
    stream = predictor.stream(itertools.cycle(files))
    next(stream)
    assert decoders()
    stream.close()
    assert decoders() == []


def test_records_before_a_failing_iterator_are_delivered(predictor, files):
    def sources():
        yield from files[:6]
        raise OSError("the list broke")

    stream = predictor.stream(sources())
    assert [next(stream).error for _ in range(6)] == [None] * 6
    with pytest.raises(OSError, match="the list broke"):
        next(stream)
    assert decoders() == []


def test_one_poisonous_picture_does_not_spoil_its_batch(make_artefact):
    spec = {"image_size": [24, 32], "mean": [0.0] * 3, "std": [1.0] * 3}
    model = make_artefact({"preprocess": spec}, logarithm=True)
    pictures = [Image.new("RGB", (32, 24), (level, 90, 90)) for level in (10, 20, 0, 40, 50, 60)]
    records = Predictor(model, engine="onnxruntime", batch_size=4).predict(pictures)
    assert [bool(record.error) for record in records] == [False, False, True, False, False, False]
    assert "NaN or infinity" in records[2].error


def test_an_engine_that_always_fails_gives_an_error_for_each(predictor, files, monkeypatch):
    def fail(batch_BCHW):
        raise EngineError("out of order")

    monkeypatch.setattr(predictor.engine, "run", fail)
    assert [record.error for record in predictor.predict(files)] == ["out of order"] * len(files)


def test_decoding_goes_on_while_the_engine_runs(predictor, files, monkeypatch):
    decoded, seen = [], []
    inner = predictor._load

    def count(source):
        time.sleep(0.005)
        decoded.append(source)
        return inner(source)

    def slow(batch_BCHW):
        before = len(decoded)
        deadline = threading.Event()
        for _ in range(30):
            if len(decoded) > before:
                break
            deadline.wait(0.02)
        seen.append(len(decoded) - before)
        return (np.zeros((len(batch_BCHW), 10), np.float32),)

    predictor._workers = 1
    monkeypatch.setattr(predictor, "_load", count)
    monkeypatch.setattr(predictor.engine, "run", slow)
    predictor.predict(files * 3)
    assert sum(ahead > 0 for ahead in seen[:3]) >= 2


def test_an_artefact_fixed_to_one_runs_one_by_one(make_artefact, files):
    fixed = Predictor(make_artefact(batch=1), engine="onnxruntime", batch_size=8)
    free = Predictor(make_artefact(), engine="onnxruntime", batch_size=8)
    assert [r.top.index for r in fixed.predict(files)] == [r.top.index for r in free.predict(files)]


def test_limits_and_top_k_are_kept(tiny_artefact, files, photo, encode):
    small = Predictor(tiny_artefact, engine="onnxruntime", top_k=99, limits=ImageLimits(max_pixels=2000))
    good, bad = small.predict([encode(photo(50, 40)), encode(photo(51, 40))])
    assert len(good.predictions) == 10
    assert "megapixels" in bad.error
    assert sum(p.score for p in good.predictions) == pytest.approx(1)


@pytest.mark.parametrize("one", ["a.jpg", b"abc", Image.new("RGB", (2, 2)), np.zeros((2, 2, 3), np.uint8)])
def test_one_picture_alone_is_a_mistake_that_is_explained(predictor, one):
    with pytest.raises(ConfigError, match="put it in a list"):
        predictor.stream(one)


@pytest.mark.parametrize("option", ["batch_size", "top_k", "workers", "streams"])
def test_numbers_below_one_are_refused(tiny_artefact, option):
    with pytest.raises(ConfigError, match=f"{option}: expected at least 1, got 0"):
        Predictor(tiny_artefact, **{option: 0})


def test_a_model_may_be_a_path(make_artefact):
    path = make_artefact()
    assert Predictor(str(path), engine="onnxruntime").artefact == read_artefact(path)
    with pytest.raises(ArtefactError, match="does not exist"):
        Predictor("no/such/file.onnx")


def test_an_engine_may_be_given(tiny_artefact, files):
    class Constant:
        name = "constant"

        def run(self, batch_BCHW):
            return (np.eye(10, dtype=np.float32)[[3] * len(batch_BCHW)],)

    predictor = Predictor(tiny_artefact, engine=Constant())
    assert predictor.engine.name == "constant"
    assert {record.top.index for record in predictor.predict(files)} == {3}


def test_without_a_model_the_bundled_one_is_used(make_artefact, monkeypatch):
    path = make_artefact()
    monkeypatch.setattr("vitesse.runtime.predictor.bundled_artefact", lambda: path)
    assert Predictor(engine="onnxruntime").artefact.path == path
