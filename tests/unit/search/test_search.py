"""Searches on a machine whose laws are known."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitesse.errors import ConfigError, TrainingError
from vitesse.search.accuracy import COMPARED, Rung, is_behind
from vitesse.search.latency import Predictor
from vitesse.search.loop import MOST_STARTS, Search
from vitesse.search.run import _alone_in
from vitesse.search.trials import Journal
from vitesse.spec import ModelSpec

Make = Callable[..., Search]


def test_the_best_region_is_found_within_the_bound(make_search: Make, machine: Any) -> None:
    result = make_search(trials=20, floor=0.3).run()
    assert result.bound == pytest.approx(1)
    assert all(trial.measured <= result.bound for trial in result.trials)
    assert [trial.state in ("trained", "stopped") for trial in result.trials] == [True] * 20
    assert result.best.spec.variant["key_dim"] == 16
    shape = result.best.spec.variant
    assert shape["embed_dim"][2] // shape["num_heads"][2] in (16, 24, 32)
    assert len({trial.spec for trial in result.trials}) == 20
    assert result.verdict.gain > 0.05
    assert result.verdict.seeds == 1
    assert result.errors.p90 < 1e-6


def test_the_hand_made_model_is_tried_first_and_never_stopped(make_search: Make, machine: Any) -> None:
    result = make_search().run()
    assert result.trials[0].hand_made
    assert result.trials[0].spec == ModelSpec(name="efficientvit_m0", image_size=(32, 32), num_classes=5)
    assert [trial.hand_made for trial in result.trials].count(True) == 1
    search = make_search(trials=9)
    late = search.journal.add(result.trials[0].point, hand_made=True, measured=1.0)
    machine.law = lambda spec: 0.0
    search._train(late)
    assert search.journal.trials()[late.number].state == "trained"


def test_candidates_below_the_floor_or_of_too_many_macs_are_passed_over(make_search: Make) -> None:
    result = make_search(floor=0.8).run()
    assert all(trial.measured >= 0.8 for trial in result.trials)


def test_macs_are_bounded(make_search: Make) -> None:
    result = make_search(max_macs=0.08, floor=0).run()  # M0 has 0.147 by the law
    assert result.verdict.baseline is None
    assert "no hand-made model" in result.verdict.explain()


def test_an_interrupted_search_goes_on_where_it_was(make_search: Make, machine: Any) -> None:
    machine.break_at = 3
    with pytest.raises(KeyboardInterrupt):
        make_search().run()
    machine.break_at = None
    search = make_search()
    assert [trial.state for trial in search.journal.trials()].count("open") == 1
    interrupted = search.run()
    assert len(set(machine.trained)) == len(machine.trained) == 8 + 2
    assert len(set(machine.measured)) == len(machine.measured) - len(interrupted.latencies)
    before = list(machine.trained)
    assert make_search().run() == interrupted
    assert machine.trained == before


def test_an_interruption_changes_nothing(make_search: Make, machine: Any, tmp_path: Path) -> None:
    machine.break_at = 4
    with pytest.raises(KeyboardInterrupt):
        make_search().run()
    machine.break_at = None
    specs = [trial.spec for trial in make_search().run().trials]
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    assert [trial.spec for trial in make_search().run().trials] == specs


def test_a_search_can_be_prolonged_but_not_changed(make_search: Make, machine: Any) -> None:
    make_search(trials=3, confirm=0).run()
    result = make_search(trials=5, confirm=0).run()
    assert len(result.trials) == len(machine.trained) == 5
    with pytest.raises(ConfigError, match=r"holds a search with floor 0\.5, now 0\.1 is asked for"):
        make_search(floor=0.1)


def test_a_bound_that_was_refused_can_be_raised(make_search: Make) -> None:
    with pytest.raises(ConfigError, match="the fastest candidate takes"):
        make_search(max_latency="1us").run()
    assert make_search(max_latency="1.5ms", trials=2, confirm=0).run().trials


def test_the_value_that_differs_is_named(make_search: Make, tmp_path: Path, small_space: Any) -> None:
    asked = {"recipe": {"epochs": 2, "lr": 0.1}, "classes": 5}
    Journal(tmp_path, small_space, 5, asked).add(small_space.smallest())
    Journal(tmp_path, small_space, 5, asked)
    with pytest.raises(ConfigError, match=r"holds a search with recipe epochs 2, now 3 is asked for; take"):
        Journal(tmp_path, small_space, 5, {**asked, "recipe": {"epochs": 3, "lr": 0.1}})


def test_the_named_model_is_tried_whatever_is_predicted(
    make_search: Make, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "of_cost", lambda self, cost: 9.0)
    result = make_search(trials=2, confirm=0).run()
    assert [trial.hand_made for trial in result.trials] == [True]


def test_the_bound_is_what_the_named_model_takes_at_the_end(make_search: Make, machine: Any) -> None:
    search = make_search(trials=6, floor=0, confirm=0)

    def later(specs: Any) -> Any:
        return [
            dataclasses.replace(sample, ratio=sample.ratio * (1 if sample.spec.variant else 0.1))
            for sample in machine.measure(specs)
        ]

    search.measure = later
    result = search.run()
    assert result.bound == pytest.approx(0.1)
    assert result.best.hand_made
    assert "none of the most accurate candidates was within the latency" in result.verdict.explain()


def test_a_failure_is_one_row(make_search: Make, machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    machine.refuse = lambda spec: bool(spec.variant) and spec.variant["key_dim"] == 24
    result = make_search(trials=12).run()
    failed = [trial for trial in result.trials if trial.state == "failed"]
    assert failed
    assert {trial.error for trial in failed} == {
        "MemoryError: not enough memory: you tried to allocate 9 GB and more"
    }
    assert f"trial {failed[0].number} failed: MemoryError: not enough memory" in capsys.readouterr().err
    assert sum(trial.state in ("trained", "stopped", "failed") for trial in result.trials) == 12


def test_a_search_without_any_training_fails(make_search: Make, machine: Any) -> None:
    machine.refuse = lambda spec: True
    with pytest.raises(TrainingError, match="no candidate could be trained: MemoryError: not enough memory"):
        make_search(trials=2).run()


def test_a_training_that_kills_the_process_is_given_up(make_search: Make, machine: Any) -> None:
    machine.break_at = 0
    for _ in range(MOST_STARTS):
        with pytest.raises(KeyboardInterrupt):
            make_search(trials=2).run()
    machine.break_at = None
    result = make_search(trials=2).run()
    assert [trial.state for trial in result.trials] == ["failed", "trained"]
    assert "ended the process 3 times" in result.trials[0].error


def test_latencies_of_a_busy_machine_are_measured_again_by_the_same_command(
    make_search: Make, machine: Any, change: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    honest = machine.measure

    def busy(specs: Any) -> Any:
        last = len(machine.trained) >= 5
        return [
            change(sample, ratio=sample.ratio * (0.5 if last else 1), reference_s=0.008 if last else 0.002)
            for sample in honest(specs)
        ]

    machine.measure = busy
    first = make_search(trials=5).run()
    assert "the machine is busy, the reference took 4.0 times as long" in capsys.readouterr().err
    machine.measure = honest
    trained = len(machine.trained)
    again = make_search(trials=5).run()
    assert len(machine.trained) == trained
    assert again.latencies == pytest.approx({n: 2 * ratio for n, ratio in first.latencies.items()})
    assert "busy" not in capsys.readouterr().err


def test_weights_are_removed_once_their_trial_is_closed(
    make_search: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = make_search(trials=5)
    close = search.journal.close

    def closing(number: int, state: str, error: str = "") -> Any:
        if state in ("trained", "stopped"):
            assert (search.folder / "trials" / f"{number:04}" / "checkpoints").is_dir()
        return close(number, state, error)

    monkeypatch.setattr(search.journal, "close", closing)
    result = search.run()
    assert any(trial.state == "trained" for trial in result.trials)
    assert not list(search.folder.glob("trials/*/checkpoints"))


def test_candidates_measured_too_slow_are_not_trained(
    make_search: Make, machine: Any, change: Callable[..., Any]
) -> None:
    honest = machine.measure

    def slower(specs: Any) -> Any:
        """After those that the predictor was fitted on, every other proposal is slower than it expects."""
        late = len(specs) == 1 and len(machine.measured) > 14 and len(machine.measured) % 2
        return [change(sample, ratio=sample.ratio * (3 if late else 1)) for sample in honest(specs)]

    machine.measure = slower
    result = make_search(trials=5).run()
    slow = [trial for trial in result.trials if trial.state == "too slow"]
    assert slow
    assert all(trial.measured > result.bound for trial in slow)
    assert {trial.spec for trial in slow}.isdisjoint(spec for spec, _ in machine.trained)


def test_those_behind_the_others_are_stopped(make_search: Make, machine: Any) -> None:
    result = make_search(trials=16, floor=0).run()
    stopped = [trial for trial in result.trials if trial.state == "stopped"]
    assert stopped
    assert all(list(trial.rungs) == [1] for trial in stopped)
    assert not any(trial.number in result.front for trial in stopped)


def test_who_is_behind() -> None:
    rivals = [Rung(latency=1.0, top1=0.2)] * COMPARED
    assert is_behind(Rung(latency=1.0, top1=0.1), rivals)
    assert not is_behind(Rung(latency=1.0, top1=0.2), rivals)
    assert not is_behind(Rung(latency=0.9, top1=0.1), rivals)
    assert not is_behind(Rung(latency=1.0, top1=0.1), rivals[1:])


def test_a_latency_that_nothing_reaches_is_refused(make_search: Make) -> None:
    with pytest.raises(
        ConfigError, match=r"the fastest candidate takes .* ms here, expected at least that, got 1us"
    ):
        make_search(max_latency="1us").run()


def test_a_time_is_a_bound_too(make_search: Make) -> None:
    result = make_search(max_latency="1.5ms").run()  # the reference takes 2
    assert result.bound == pytest.approx(0.75)
    assert all(trial.measured <= 0.75 for trial in result.trials)


def test_a_line_that_was_written_in_part_is_removed(
    make_search: Make, tmp_path: Path, small_space: Any
) -> None:
    make_search(trials=2).run()
    journal = tmp_path / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"work')
    assert len(Journal(tmp_path, small_space, 5).trials()) >= 2
    lines = journal.read_bytes().splitlines()
    assert lines[: len(whole.splitlines())] == whole.splitlines()
    assert all(json.loads(line) for line in lines)


def test_a_folder_is_searched_by_one_process(tmp_path: Path) -> None:
    with (
        _alone_in(tmp_path),
        pytest.raises(ConfigError, match="another search is running"),
        _alone_in(tmp_path),
    ):
        pass
