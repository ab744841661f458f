"""Timing is fair, failures are rows, the front and the goal pick what they should."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vitesse.bench.contenders as making
from vitesse.bench import Contender, Goal, Timing, benchmark, measure, time_interleaved
from vitesse.bench.limits import gemm_rates
from vitesse.bench.measure import best_by_model
from vitesse.bench.peers import PEERS, chosen_peers
from vitesse.bench.report import draw_front, markdown, pareto_front
from vitesse.catalogue import facts
from vitesse.cli import run as command
from vitesse.errors import ConfigError, EngineError, MissingExtraError, UnknownModelError
from vitesse.runtime.artefact import Artefact
from vitesse.runtime.engines import usable_cpus


def contender(model="a", seconds=0.0, calls=None, **changes):
    def run(batch):
        if calls is not None:
            calls.append((model, len(batch)))
        time.sleep(seconds)

    options = {"engine": "onnxruntime", "precision": "fp32", "image_size": (8, 8), "start": lambda: run}
    return Contender(model=model, **{**options, **changes})


def timing(model="a", seconds=1.0, top1=None, batch_size=1, **changes):
    who = contender(model, top1=top1, **changes)
    return Timing(contender=who, batch_size=batch_size, threads=1, samples_s=(seconds,) * 3)


def test_contenders_take_turns_and_none_is_always_first(monkeypatch):
    monkeypatch.setattr("vitesse.bench.measure.MIN_SAMPLE_S", 0.0)
    calls = []
    found = time_interleaved([contender(name, 0.001, calls) for name in "abc"], (1, 4), rounds=6, threads=1)
    assert [(t.contender.model, t.batch_size) for t in found] == [*itertools.product("abc", (1, 4))]
    assert all(len(t.samples_s) == 6 for t in found)
    timed = calls[-36:]
    rounds = [timed[i : i + 6] for i in range(0, 36, 6)]
    assert all(sorted(turn) == sorted(rounds[0]) for turn in rounds), "each round has every contender once"
    assert len({turn[0] for turn in rounds}) == 6, "another begins each round"


def test_groups_are_compared_through_the_first_model(monkeypatch):
    """The machine becomes three times slower after the first group."""
    monkeypatch.setattr(measure, "MODELS_AT_ONCE", 3)
    built = []

    def stand_in(group, batch_sizes, *, rounds, threads):
        built.append([c.model for c in group])
        slower = 1.0 if len(built) == 1 else 3.0
        return [
            Timing(contender=c, batch_size=b, threads=1, samples_s=(slower * ord(c.model),) * rounds)
            for c in group
            for b in batch_sizes
        ]

    monkeypatch.setattr(measure, "time_interleaved", stand_in)
    found = measure.time_in_groups([contender(name) for name in "abcdef"], (1, 4), rounds=2, threads=1)
    assert built == [["a", "b", "c"], ["a", "d", "e"], ["a", "f"]]
    assert [(t.contender.model, t.batch_size) for t in found] == [*itertools.product("abcdef", (1, 4))]
    assert [t.median_s for t in found] == pytest.approx([ord(m) for m in "abcdef" for _ in range(2)])
    alone = measure.time_in_groups([contender("z")], (1,), rounds=1, threads=1)
    assert [t.contender.model for t in alone] == ["z"]


def test_a_slow_contender_is_seen_to_be_slow():
    fast, slow = time_interleaved(
        [contender("fast", 0.001), contender("slow", 0.008)], (2,), rounds=5, threads=1
    )
    assert slow.median_s > 3 * fast.median_s
    record = slow.to_dict()
    assert record["img_per_s"] == pytest.approx(1 / slow.median_s, rel=1e-3)
    assert record["p50_ms"] == pytest.approx(2000 * slow.median_s, rel=1e-3)
    assert record["p95_ms"] >= record["p50_ms"]


def test_processor_seconds_are_those_of_work():
    def works(batch):
        started = time.process_time()
        while time.process_time() - started < 0.03:
            pass

    asleep, awake = time_interleaved(
        [contender("asleep", 0.03), contender("awake", start=lambda: works)], (1,), rounds=3, threads=1
    )
    assert max(asleep.processor_s) < 0.03 <= min(awake.processor_s)
    assert min(awake.to_dict()["samples_processor_ms"]) >= 30
    assert len(asleep.samples_s) == len(asleep.processor_s) == 3


def test_what_fails_is_reported_and_the_rest_goes_on():
    def refuses():
        raise EngineError("an operator\nthat it lacks")

    def fails_on(batch):
        if len(batch) > 1:
            raise RuntimeError("only one at a time")

    found = time_interleaved(
        [
            contender("whole"),
            contender("none", start=refuses),
            contender("single", start=lambda: fails_on),
            contender("unexported", start=None, error="export failed: no"),
        ],
        (1, 2),
        rounds=2,
        threads=1,
    )
    errors = {(t.contender.model, t.batch_size): t.error for t in found}
    assert errors["whole", 1] == errors["single", 1] == ""
    assert errors["none", 2] == "an operator that it lacks"
    assert errors["single", 2] == "RuntimeError: only one at a time"
    assert errors["unexported", 1] == "export failed: no"
    table = markdown(found)
    assert table.count("\n") == 2 + len(found)
    assert "failed: an operator that it lacks" in table
    assert found[2].to_dict()["img_per_s"] is None
    assert found[2].to_dict()["error"] == "an operator that it lacks"


def test_the_fastest_way_to_run_a_model():
    slow, fast = timing("a", 2.0), timing("a", 1.0, precision="int8")
    broken = Timing(contender=contender("a"), batch_size=1, threads=1, samples_s=(), error="no")
    assert best_by_model([slow, fast, broken])["a", 1] is fast
    assert best_by_model([slow, fast, broken], "fp32")["a", 1] is slow


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 100)), min_size=1, max_size=20))
def test_the_front_holds_what_nothing_beats(points):
    front = pareto_front(points)
    for index, (latency, accuracy) in enumerate(points):
        beaten = any((x <= latency and y >= accuracy) and (x, y) != (latency, accuracy) for x, y in points)
        if index in front:
            assert not beaten
        else:
            assert beaten or any(points[i] == points[index] for i in front)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top1>=75", "m"),
        ("top1>=75, batch=1", "m"),
        ("top1>=75,batch=16", "l16"),
        ("ms<=3", "unknown"),
        ("img_per_s>=400, top1>=60", "s"),
        ("top1>=99", None),
        ("macs<=100", None),
    ],
)
def test_a_goal_is_met_by_the_fastest_that_meets_it(text, expected):
    timings = [
        timing("s", 0.002, 0.70),
        timing("m", 0.004, 0.76),
        timing("l", 0.008, 0.80),
        timing("l16", 0.005, 0.80, batch_size=16),
        timing("unknown", 0.001),
    ]
    found = Goal.parse(text).answer(timings)
    assert (found and found.contender.model) == expected


@pytest.mark.parametrize("text", ["", "top1", "top1>75", "speed>=3", "top1>=a", "top1>=7.5.1", "top1>=75,"])
def test_a_goal_that_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigError, match="expected conditions such as"):
        Goal.parse(text)


def test_peers_are_named_and_unknown_ones_refused():
    assert len(chosen_peers("all")) == len(PEERS) == 17
    assert chosen_peers("resnet50, timm:swin_tiny_patch4_window7_224") == (
        "timm:resnet50",
        "timm:swin_tiny_patch4_window7_224",
    )
    with pytest.raises(ConfigError, match="unknown peer 'resnet5'; did you mean resnet50"):
        chosen_peers("resnet5")


def test_every_peer_is_a_model_of_timm():
    timm = pytest.importorskip("timm")
    assert [name for name in PEERS if not timm.is_model(name)] == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_sizes": (0,)}, "--batch-size: expected at least 1"),
        ({"threads": 0}, "--threads: expected at least 1"),
        ({"threads": usable_cpus() + 1}, f"may use {usable_cpus()} CPUs"),
        ({"rounds": 0}, "--rounds: expected at least 1"),
        ({"precisions": ("int4",)}, "--precision: expected of fp32, int8"),
        ({"engines": "tensorrt"}, "--engine: expected of .*got 'tensorrt'"),
    ],
)
def test_impossible_numbers_and_names_are_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        benchmark(["efficientvit_m0"], **options)


def test_no_model_and_unknown_models_are_refused():
    with pytest.raises(ConfigError, match="expected a model to time"):
        benchmark([])
    with pytest.raises(UnknownModelError, match="did you mean"):
        benchmark(["efficientvit_m9"])


def test_an_engine_that_runs_none_of_the_models_is_refused(make_artefact):
    with pytest.raises(ConfigError, match="--engine: torch runs none of these models"):
        benchmark([str(make_artefact())], engines="torch")


def test_an_engine_that_is_not_installed_names_its_extra(make_artefact, monkeypatch):
    monkeypatch.setattr(making, "available_engines", lambda: ("onnxruntime",))
    with pytest.raises(MissingExtraError, match=r"openvino, which is not installed.*vitesse\[bench\]"):
        benchmark([str(make_artefact())], engines="openvino")


def test_a_file_is_timed_on_every_engine(make_artefact):
    path = make_artefact()
    found = benchmark([str(path)], batch_sizes=(1, 3), rounds=2)
    assert {(t.contender.engine, t.batch_size) for t in found} == {
        *itertools.product(("onnxruntime", "openvino"), (1, 3))
    }
    assert all(t.samples_s and not t.error for t in found)


def test_a_crash_of_an_engine_stays_outside(monkeypatch, tiny_artefact: Artefact):
    """As OpenVINO was seen to do on a graph with every operator quantised."""
    monkeypatch.setattr(making, "PROBE", ("-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    with pytest.raises(EngineError, match=r"openvino crashes on this file \(signal 11\)"):
        making._survives(tiny_artefact, "openvino")


@pytest.mark.slow
def test_a_name_is_exported_once_in_both_precisions(capsys):
    found = benchmark(["efficientvit_b0"], engines="onnxruntime,torch", batch_sizes=(1,), rounds=2)
    ways = {(t.contender.engine, t.contender.precision) for t in found}
    assert ways == {("onnxruntime", "fp32"), ("torch", "fp32"), ("onnxruntime", "int8")}
    assert all(
        not t.error and t.contender.macs == pytest.approx(facts("efficientvit_b0").macs) for t in found
    )
    assert "int8: exporting, once" in capsys.readouterr().err
    benchmark(["efficientvit_b0"], engines="onnxruntime", batch_sizes=(1,), rounds=1)
    assert "exporting" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_timm_model_is_timed_at_its_own_size():
    pytest.importorskip("timm")
    assert making.spec_and_accuracy("timm:vit_tiny_patch16_384")[0].image_size == (384, 384)


def test_a_timm_model_that_does_not_exist_is_a_row():
    found = benchmark(["timm:no_such_model"], engines="onnxruntime", batch_sizes=(1,), rounds=1)
    assert all("export failed: timm has no model named" in t.error for t in found)


@pytest.mark.slow
def test_the_limit_is_a_rate_no_model_reaches():
    rates = gemm_rates(1)
    assert rates.keys() == {"fp32", "int8"}
    assert 1e9 < rates["fp32"] < rates["int8"] < 1e14


def test_the_picture_and_the_table_are_written(make_artefact, tmp_path: Path, capsys):
    timings = [timing("efficientvit_m5", 0.004, 0.771), timing("timm:resnet50", 0.03, 0.761)]
    draw_front(timings, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 10_000
    assert "| efficientvit_m5 | onnxruntime | fp32 | 1 | 250.0 | 4.00 | 4.00 | 77.1% |" in markdown(timings)


@pytest.mark.slow
def test_the_command_prints_lines_and_writes_a_record(make_artefact, tmp_path: Path, capsys):
    path = make_artefact()
    options = ["--batch-size", "1,2", "--rounds", "2", "--out", str(tmp_path / "out"), "--json"]
    assert command(["bench", str(path), "--goal", "batch=2", *options]) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert len(lines) == 4
    fields = "model engine precision batch_size threads img_per_s p50_ms p95_ms macs error"
    assert set(fields.split()) <= lines[0].keys()
    assert not any(key.startswith("samples") for key in lines[0]), "the record has them"
    assert "take " in printed.err
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert np.shape([t["samples_ms"] for t in record["timings"]]) == (4, 2)
    assert record["environment"]["cpu"]
    assert (tmp_path / "out" / "bench.md").read_text().count("\n") == 6
    assert command(["bench", str(path), "--batch-size", "one"]) == 2


def test_one_that_fails_in_a_round_ends_with_its_reason_and_the_others_go_on():
    runs = itertools.count()

    def fails_late(batch):
        if next(runs) > 400:
            raise EngineError("out of\nmemory")

    late = contender("late", start=lambda: fails_late)
    late_timing, other = time_interleaved([late, contender("other")], (1,), rounds=30, threads=1)
    assert (late_timing.error, late_timing.samples_s) == ("out of memory", ())
    assert len(other.samples_s) == 30


def test_whatever_an_exporter_meets_is_the_models_row(monkeypatch):
    def fail(spec, precision):
        raise ValueError("axis out of range")

    monkeypatch.setattr(making, "exported", fail)
    found = list(making.contenders(["timm:resnet50"], ["onnxruntime"], ["fp32"], 1))
    assert [c.error for c in found] == ["export failed: ValueError: axis out of range"]


@pytest.mark.parametrize(
    ("name", "size"),
    [("timm:shvit_s4", 256), ("shvit_s4", 256), ("timm:mobilevit_xxs", 256), ("timm:x", 224)],
)
def test_both_sides_of_a_comparison_have_the_same_size(name, size):
    assert making.spec_and_accuracy(name)[0].image_size == (size, size)


def test_the_macs_of_a_file_are_its_own_or_unknown(tiny_artefact):
    manifest = tiny_artefact.manifest
    assert making._macs_of(manifest) is None
    assert making._macs_of(replace(manifest, provenance={"macs": 12})) == 12
    model = replace(manifest.model, name="shvit_s4", image_size=(256, 256))
    preprocess = replace(manifest.preprocess, image_size=(256, 256))
    assert making._macs_of(replace(manifest, model=model, preprocess=preprocess)) == facts("shvit_s4").macs
    assert making._macs_of(replace(manifest, model=replace(model, image_size=(24, 32)))) is None


def test_accuracies_on_other_pictures_are_not_compared():
    imagenet = [timing(name, 1.0, top1=0.7) for name in "ab"]
    cifar = timing("c", 0.1, top1=0.9, top1_on="cifar100")
    assert measure.comparable([*imagenet, cifar]) == imagenet
    assert Goal.parse("top1>=60").answer([*imagenet, cifar]) == imagenet[0]
    assert Goal.parse("ms<=100000").answer([*imagenet, cifar]) == cifar


@pytest.mark.parametrize("name", ["a.pth", "runs/model.safetensors"])
def test_a_checkpoint_is_exported_before_it_is_timed(name):
    with pytest.raises(ConfigError, match=f"{name}: expected a name or an artefact .*vitesse export"):
        benchmark([name], rounds=1)


def test_what_is_kept_depends_on_all_code_of_models(monkeypatch):
    read, read_bytes = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    making._key.__wrapped__()
    assert {"layers.py", "registry.py", "fcos.py", "onnx.py"} <= set(read)
