"""What a search leaves behind, and what its last line says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitesse.models.variants import read_spec
from vitesse.search.latency import Errors
from vitesse.search.report import describe, markdown, write_result
from vitesse.search.result import SearchResult, front_of, judged, settled
from vitesse.search.trials import Trial
from vitesse.spec import ModelSpec

M0 = ModelSpec(name="efficientvit_m0", image_size=(32, 32), num_classes=5)


def trial(
    number: int, measured: float, top1: float, *, hand_made: bool = False, state: Any = "trained"
) -> Trial:
    spec = M0 if hand_made else ModelSpec(name="efficientvit_m0", variant={"key_dim": number})
    return Trial(
        number=number,
        point={},
        spec=spec,
        state=state,
        hand_made=hand_made,
        measured=measured,
        rungs={1: top1 / 2, 2: top1},
    )


def test_the_front_holds_what_no_other_beats() -> None:
    trials = [trial(0, 1.0, 0.3), trial(1, 0.8, 0.3), trial(2, 0.5, 0.1), trial(3, 0.6, 0.05)]
    assert front_of([*trials, trial(4, 0.1, 0.9, state="stopped")], 1.0) == [2, 1]
    assert front_of(settled(trials, {1: 1.1}), 1.0) == [2, 0]


def test_the_verdict_is_on_models_that_are_no_slower() -> None:
    trials = [trial(0, 1.0, 0.30, hand_made=True), trial(1, 0.99, 0.40), trial(2, 0.95, 0.35)]
    verdict = judged(trials, {0: 1.0, 1: 1.01, 2: 0.96}, 1.0, {})
    assert (verdict.challenger, verdict.latency) == (2, 0.96)
    assert verdict.gain == pytest.approx(0.05)
    assert verdict.explain() == (
        "trial 2 beats efficientvit_m0 by 5.00 points of top-1 at 0.96 of its latency: 35.00% against "
        "30.00%, one seed each"
    )
    assert judged(trials, {0: 0.9, 1: 1.0, 2: 1.0}, 0.9, {}).explain() == (
        "falls short of efficientvit_m0: timed again, none of the most accurate candidates was within the "
        "latency"
    )


def test_candidates_may_be_slower_than_the_hand_made_model_where_a_time_is_the_bound() -> None:
    trials = [trial(0, 1.0, 0.30, hand_made=True), trial(1, 1.9, 0.40), trial(2, 0.9, 0.31)]
    verdict = judged(trials, {0: 1.0, 1: 1.9, 2: 0.9}, 2.0, {})
    assert (verdict.challenger, verdict.latency) == (1, 1.9)


def test_the_best_is_the_one_that_the_verdict_prefers(tmp_path: Path) -> None:
    trials = [trial(0, 1.0, 0.30, hand_made=True), trial(1, 0.9, 0.31), trial(2, 0.8, 0.25)]
    latencies = {0: 1.0, 1: 0.9, 2: 0.8}
    for tops, best in (([0.28], 0), ([0.33], 1)):
        verdict = judged(trials, latencies, 1.0, {0: [0.3], 1: tops})
        result = SearchResult(
            settings={},
            reference={},
            reference_s=1.0,
            bound=1.0,
            errors=Errors(median=0.1, p90=0.2, models=9),
            trials=trials,
            front=front_of(trials, 1.0),
            latencies=latencies,
            verdict=verdict,
            folder=tmp_path,
        )
        assert result.best.number == best


def test_other_seeds_count_instead_where_both_have_them() -> None:
    trials = [trial(0, 1.0, 0.30, hand_made=True), trial(1, 0.9, 0.40)]
    latencies = {0: 1.0, 1: 0.9}
    verdict = judged(trials, latencies, 1.0, {0: [0.3, 0.32], 1: [0.28, 0.30]})
    assert verdict.gain == pytest.approx(-0.02)
    assert "falls short of efficientvit_m0 by 2.00 points" in verdict.explain()
    assert "means of 2 seeds that it was not chosen by" in verdict.explain()
    assert "standard error 1.41, so no difference is shown" in verdict.explain()
    clear = judged(trials, latencies, 1.0, {0: [0.30, 0.31], 1: [0.36, 0.37]}).explain()
    assert "beats efficientvit_m0 by 6.00 points" in clear
    assert clear.endswith("standard error 0.71")
    one = judged(trials, latencies, 1.0, {0: [0.3, 0.32], 1: [0.28]})
    assert (one.seeds, one.standard_error, one.top1) == (1, None, 0.28)
    assert judged(trials, latencies, 1.0, {0: [0.3]}).seeds == 0


def test_without_a_hand_made_model_there_is_none_to_beat() -> None:
    assert "no hand-made model" in judged([trial(1, 0.9, 0.4)], {1: 0.9}, 1.0, {}).explain()


def test_specs_record_table_and_picture_are_written(make_search: Callable[..., Any], tmp_path: Path) -> None:
    stale = tmp_path / "front" / "trial_9999.json"
    stale.parent.mkdir()
    stale.touch()
    result = make_search(trials=10, floor=0.3).run()
    assert write_result(result) == ["front/best.json", "search.json", "search.md", "search.png"]
    specs = {path.name: read_spec(path) for path in stale.parent.iterdir()}
    assert specs.pop("best.json") == result.best.spec
    assert [int(name[6:10]) for name in sorted(specs)] == sorted(result.front)
    record = json.loads((tmp_path / "search.json").read_text())
    assert len(record["trials"]) == len(result.trials)
    assert {"spec", "predicted", "measured", "latency_ms", "top1", "state"} <= record["trials"][0].keys()
    assert record["trials"][0]["latency_ms"] == pytest.approx(2.0)
    assert record["predictor"]["median"] < 1e-6
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    table = markdown(result)
    assert table == (tmp_path / "search.md").read_text()
    assert result.verdict.explain()[1:] in table.splitlines()[-1]


def test_a_variant_is_described_by_what_it_consists_of() -> None:
    spec = ModelSpec(name="shvit_s1", image_size=(64, 64), variant={"depths": (1, 2, 3), "key_dim": 8})
    assert describe(spec) == "depths 1-2-3; key_dim 8; at 64 px"
    assert describe(M0) == "efficientvit_m0 at 32 px"
