"""What a search found: the front, and whether the best of it beats the hand-made models."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitesse.bench.report import pareto_front
from vitesse.search.latency import Errors
from vitesse.search.trials import Trial
from vitesse.spec import to_mapping

FINALISTS = 4
"""So many of the most accurate candidates are timed once more beside the best hand-made model."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The most accurate candidate within the latency, and the most accurate hand-made model within it.

    Attributes:
        challenger, baseline: their trials; None where there is none.
        latency: the challenger's over the baseline's, from the same rounds.
        top1, baseline_top1: means over `seeds` trainings; of the search's own where there are no others.
        seeds: trainings of each with seeds that the search did not choose by.
        standard_error: of the difference of these means, by the spread of the seeds; None of fewer than two.
    """

    challenger: int | None
    baseline: int | None
    baseline_name: str = ""
    latency: float | None = None
    top1: float | None = None
    baseline_top1: float | None = None
    seeds: int = 0
    standard_error: float | None = None

    @property
    def gain(self) -> float | None:
        """Accuracy of the challenger less that of the baseline."""
        if self.top1 is None or self.baseline_top1 is None:
            return None
        return self.top1 - self.baseline_top1

    def explain(self) -> str:
        """The last line of a search."""
        if self.baseline is None:
            return "no hand-made model is within the latency, so there is none to compare with"
        if self.gain is None:
            return (
                f"falls short of {self.baseline_name}: timed again, none of the most accurate candidates was "
                "within the latency"
            )
        assert self.top1 is not None
        assert self.baseline_top1 is not None
        how = "beats" if self.gain > 0 else "falls short of"
        doubt = ""
        if self.standard_error is not None:
            doubt = f", standard error {100 * self.standard_error:.2f}"
            if abs(self.gain) < 2 * self.standard_error:
                doubt += ", so no difference is shown"
        seeds = f"means of {self.seeds} seeds that it was not chosen by" if self.seeds else "one seed each"
        points = f"{abs(100 * self.gain):.2f} points of top-1 at {self.latency:.2f} of its latency"
        return (
            f"trial {self.challenger} {how} {self.baseline_name} by {points}: "
            f"{self.top1:.2%} against {self.baseline_top1:.2%}, {seeds}{doubt}"
        )


def trained(trials: Sequence[Trial]) -> list[Trial]:
    """Those that were trained to the end."""
    return [trial for trial in trials if trial.state == "trained"]


def settled(trials: Sequence[Trial], latencies: Mapping[int, float]) -> list[Trial]:
    """The trials with the latencies that they were found to have at the end, where they were timed again."""
    return [replace(trial, measured=latencies.get(trial.number, trial.measured)) for trial in trials]


def front_of(trials: Sequence[Trial], bound: float) -> list[int]:
    """Trials within the bound that no other beats in both, latency and accuracy, the fastest first."""
    done = [trial for trial in trained(trials) if trial.measured is not None and trial.measured <= bound]
    points = [(trial.measured or 0.0, trial.top1 or 0.0) for trial in done]
    return [done[index].number for index in pareto_front(points)]


def named(trials: Sequence[Trial], name: str | float) -> Trial | None:
    """The trained hand-made model of this name, which others are to be no slower than."""
    return next((trial for trial in trained(trials) if trial.hand_made and trial.spec.name == name), None)


def finalists(trials: Sequence[Trial]) -> list[Trial]:
    """The most accurate hand-made model, and the `FINALISTS` most accurate others."""
    ranked = sorted(trained(trials), key=lambda trial: -(trial.top1 or 0.0))
    hand_made = [trial for trial in ranked if trial.hand_made]
    return [*hand_made[:1], *[trial for trial in ranked if not trial.hand_made][:FINALISTS]]


def judged(
    trials: Sequence[Trial],
    latencies: Mapping[int, float],
    bound: float,
    seeds: Mapping[int, Sequence[float]],
) -> Verdict:
    """The verdict on trials.

    Args:
        latencies: ratios from the same rounds, by trial: of the finalists.
        bound: the highest ratio.
        seeds: accuracies with further seeds, by trial; counted where both have some.
    """
    last = [trial for trial in finalists(trials) if trial.number in latencies]
    baseline = next((trial for trial in last if trial.hand_made), None)
    if baseline is None:
        return Verdict(challenger=None, baseline=None)
    rivals = [trial for trial in last if not trial.hand_made and latencies[trial.number] <= bound]
    if not rivals:
        return Verdict(challenger=None, baseline=baseline.number, baseline_name=baseline.spec.name)
    best = max(rivals, key=lambda trial: trial.top1 or 0.0)
    runs, baseline_runs = seeds.get(best.number, ()), seeds.get(baseline.number, ())
    fair = bool(runs) and bool(baseline_runs)
    return Verdict(
        challenger=best.number,
        baseline=baseline.number,
        baseline_name=baseline.spec.name,
        latency=latencies[best.number] / latencies[baseline.number],
        top1=statistics.mean(runs) if fair else best.top1,
        baseline_top1=statistics.mean(baseline_runs) if fair else baseline.top1,
        seeds=min(len(runs), len(baseline_runs)),
        standard_error=standard_error(runs, baseline_runs),
    )


def standard_error(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Of the difference of two means, by the spread within each; None where one has fewer than two values."""
    if min(len(first), len(second)) < 2:
        return None
    return math.sqrt(sum(statistics.variance(values) / len(values) for values in (first, second)))


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A finished search.

    Attributes:
        settings: what was asked for.
        reference: spec of the model that latencies are ratios to.
        reference_s: its seconds a batch at the start.
        bound: the highest ratio; where it is a hand-made model's, the one that this had at the end.
        errors: of the latency predictor.
        trials: all, in their order, the finalists with the latencies that they were found to have at the end.
        front: trials within the bound that no other beats, the fastest first.
        latencies: ratios of the finalists, from the same rounds.
    """

    settings: Mapping[str, Any]
    reference: Mapping[str, Any]
    reference_s: float
    bound: float
    errors: Errors
    trials: Sequence[Trial]
    front: Sequence[int]
    latencies: Mapping[int, float]
    verdict: Verdict
    folder: Path

    @property
    def best(self) -> Trial:
        """What the verdict prefers; without one the most accurate within the bound."""
        gain, verdict = self.verdict.gain, self.verdict
        number = verdict.challenger if gain is not None and gain > 0 else verdict.baseline
        if gain is not None and number is not None:
            return self.trials[number]
        if self.front:
            return self.trials[self.front[-1]]
        return min(trained(self.trials), key=lambda trial: trial.measured or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "settings": dict(self.settings),
            "reference": dict(self.reference),
            "reference_ms": 1000 * self.reference_s,
            "bound": self.bound,
            "predictor": to_mapping(self.errors),
            "trials": [
                {**trial.to_dict(), "latency_ms": _times(trial.measured, 1000 * self.reference_s)}
                for trial in self.trials
            ],
            "front": list(self.front),
            "best": self.best.number,
            "latencies": dict(self.latencies),
            "verdict": {**to_mapping(self.verdict), "gain": self.verdict.gain},
        }


def _times(ratio: float | None, unit: float) -> float | None:
    return None if ratio is None else ratio * unit
