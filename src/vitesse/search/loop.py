"""The course of a search, with whatever measures and trains.

Cheap questions first: a proposal that is predicted too slow costs milliseconds, one that is measured too slow
an export; only what is within the bound is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitesse.errors import ConfigError, StoppedError, TrainingError, one_line
from vitesse.progress import say
from vitesse.search.accuracy import Rung, TrainModel, drop_checkpoints, is_behind
from vitesse.search.cost import cost_of
from vitesse.search.latency import Measure, Predictor
from vitesse.search.propose import propose
from vitesse.search.result import SearchResult, finalists, front_of, judged, named, settled
from vitesse.search.samples import Samples
from vitesse.search.settings import Settings
from vitesse.search.space import Space
from vitesse.search.trials import Journal, Trial
from vitesse.spec import ModelSpec
from vitesse.train.stopping import StopRequestedError

NEARLY = 1.3
"""Hand-made models that are predicted to take up to so many times the bound are measured."""
BUSY = 1.5
"""Times as long as at the start, of the reference: latencies measured then are not kept."""
MOST_STARTS = 3
"""A training that ended the process so often is not begun again."""
MOST_TOO_SLOW = 5
"""Candidates measured and found too slow, for each that is to be trained."""
COUNTED = ("trained", "stopped", "failed")


@dataclass(kw_only=True)
class Search:
    """One search, with whatever measures and trains.

    Attributes:
        measure: of the finalists; `samples` measure all others.
        epochs: of a short training.
        check: raises where a signal came.
    """

    folder: Path
    settings: Settings
    journal: Journal
    samples: Samples
    train: TrainModel
    measure: Measure
    epochs: int
    check: Callable[[], None] = lambda: None

    def run(self) -> SearchResult:
        """All trials that are left, then the measurements and trainings that decide.

        Raises:
            ConfigError: no candidate is fast enough.
            TrainingError: none could be trained.
        """
        bound = self._bound()
        self.samples.draw(self.space, self.settings.samples, self._classes, self.settings.seed, self.check)
        predictor, errors = self.samples.fitted()
        say(f"latency predictor: {errors.explain()}")
        for trial in self.journal.trials():
            if trial.state == "open":
                self._train(trial)
        self._try_hand_made(bound, predictor)
        self._try_others(bound)
        return self._conclude(bound)

    def count(self) -> int:
        """Trials that are done; those that were only measured do not count."""
        return sum(trial.state in COUNTED for trial in self.journal.trials())

    @property
    def space(self) -> Space:
        """What is searched."""
        return self.journal.space

    @property
    def _classes(self) -> int:
        return self.journal.num_classes

    def _bound(self) -> float:
        """The highest latency ratio, after a look at whether the smallest model of the space reaches it."""
        limit = self.settings.limit()
        named = [self.space.spec(p, self._classes) for name, p in self.space.hand_made() if name == limit]
        smallest = self.space.spec(self.space.smallest(), self._classes)
        fastest, *others = self.samples.of([smallest, *named[:1]])
        for sample in (fastest, *others):
            if sample.ratio is None:
                raise ConfigError(f"{sample.spec.name} cannot be timed: {sample.error}")
        reference_s = self.samples.reference_s
        assert fastest.ratio is not None
        bound = others[0].ratio if isinstance(limit, str) else limit / reference_s
        assert bound is not None
        if fastest.ratio > bound:
            raise ConfigError(
                f"--max-latency: the fastest candidate takes {_ms(fastest.ratio * reference_s)} here, "
                f"expected at least that, got {self.settings.max_latency}"
            )
        return bound

    def _try_hand_made(self, bound: float, predictor: Predictor) -> None:
        known = {trial.spec for trial in self.journal.trials()}
        points = {self.space.spec(point, self._classes): point for _, point in self.space.hand_made()}
        measured = self.samples.measured
        new = [
            spec
            for spec in points
            if spec not in known and (spec in measured or predictor(spec) <= NEARLY * bound)
        ]
        for sample in self.samples.of(new):
            fast_enough = sample.ratio is not None and sample.ratio <= bound
            if fast_enough and self._macs_fit(sample.spec) and self.count() < self.settings.trials:
                facts = {"predicted": predictor(sample.spec), "measured": sample.ratio, "hand_made": True}
                self._train(self.journal.add(points[sample.spec], **facts))

    def _try_others(self, bound: float) -> None:
        while (left := self.settings.trials - self.count()) > 0:
            self.check()
            trials = self.journal.trials()
            if sum(trial.state == "too slow" for trial in trials) > MOST_TOO_SLOW * self.settings.trials:
                say(f"too many candidates were slower than predicted; {left} trials are left out")
                return
            predictor, _ = self.samples.fitted()
            known = {trial.spec for trial in trials}

            def allowed(spec: ModelSpec, known: set[ModelSpec] = known, ask: Predictor = predictor) -> bool:
                if spec in known or self.space.is_hand_made(spec) or not self._macs_fit(spec):
                    return False
                return self.settings.floor * bound <= ask(spec) <= bound

            point = propose(self.space, trials, self._classes, self.settings.seed, allowed)
            if point is None:
                say(f"no further candidate within the bound was found; {left} trials are left out")
                return
            spec = self.space.spec(point, self._classes)
            trial = self.journal.add(point, predicted=predictor(spec))
            self._measure_and_train(trial, bound)

    def _measure_and_train(self, trial: Trial, bound: float) -> None:
        (sample,) = self.samples.of([trial.spec])
        if sample.ratio is None:
            self._fail(trial, sample.error)
            return
        trial = self.journal.note(trial.number, measured=sample.ratio)
        if sample.ratio > bound:
            self.journal.close(trial.number, "too slow")
            say(f"trial {trial.number}: {sample.ratio / bound:.2f} of the bound, not trained")
        else:
            self._train(trial)

    def _train(self, trial: Trial) -> None:
        """Train an open trial, or go on with it."""
        self.check()
        if trial.measured is None:  # killed before it was measured
            self._measure_and_train(trial, self._bound())
            return
        if trial.starts >= MOST_STARTS:
            self._fail(
                trial, f"its training ended the process {MOST_STARTS} times, as happens without memory"
            )
            return
        self.journal.note(trial.number, starts=trial.starts + 1)
        stopped = False

        def watch(epochs: int, top1: float) -> bool:
            nonlocal stopped
            rungs = {**self.journal.trials()[trial.number].rungs, epochs: top1}
            self.journal.note(trial.number, rungs=rungs)
            stopped = epochs < self.epochs and not trial.hand_made and self._is_behind(trial, epochs, top1)
            return stopped

        try:
            top1 = self.train(trial.spec, self._folder_of(trial), self.settings.seed, watch)
        except (StoppedError, StopRequestedError):
            self.journal.note(trial.number, starts=trial.starts)
            raise
        except Exception as error:  # whatever a candidate meets is that candidate's row
            self._fail(trial, one_line(error))
            return
        if not stopped:
            watch(self.epochs, top1)
        done = self.journal.close(trial.number, "stopped" if stopped else "trained")
        drop_checkpoints(self._folder_of(trial))
        what = "stopped, it is behind others" if stopped else "trained"
        say(
            f"trial {done.number} ({self.count()} of {self.settings.trials}): {done.measured:.2f} of "
            f"{self.samples.conditions['reference']['name']}'s latency, top-1 {top1:.2%}, {what}"
        )

    def _is_behind(self, trial: Trial, epochs: int, top1: float) -> bool:
        others = [
            Rung(latency=other.measured, top1=other.rungs[epochs])
            for other in self.journal.trials()
            if other.number != trial.number and other.measured is not None and epochs in other.rungs
        ]
        assert trial.measured is not None
        return is_behind(Rung(latency=trial.measured, top1=top1), others)

    def _fail(self, trial: Trial, reason: str) -> None:
        self.journal.close(trial.number, "failed", reason)
        say(f"trial {trial.number} failed: {reason}")

    def _macs_fit(self, spec: ModelSpec) -> bool:
        most = self.settings.max_macs
        return most is None or cost_of(spec).macs <= most * 1e6

    def _folder_of(self, trial: Trial, seed: int | None = None) -> Path:
        name = f"{trial.number:04}" if seed is None else f"{trial.number:04}-seed{seed}"
        return self.folder / "trials" / name

    def _conclude(self, bound: float) -> SearchResult:
        """Time those that matter once more, together; train the best again with other seeds."""
        trials = self.journal.trials()
        if not any(trial.state == "trained" for trial in trials):
            failed = [trial.error for trial in trials if trial.state == "failed"]
            raise TrainingError(
                f"no candidate could be trained: {failed[-1] if failed else 'none was found'}"
            )
        last, equal = finalists(trials), named(trials, self.settings.limit())
        latencies = self._timed_together([*last, *([equal] if equal and equal not in last else [])])
        if equal is not None:
            bound = latencies.get(equal.number, bound)
        verdict = judged(trials, latencies, bound, {})
        if verdict.challenger is not None and verdict.baseline is not None:
            seeds = self._confirmed([trials[verdict.challenger], trials[verdict.baseline]])
            verdict = judged(trials, latencies, bound, seeds)
        return SearchResult(
            settings={**self.settings.identity(), "trials": self.settings.trials},
            reference=self.samples.conditions["reference"],
            reference_s=self.samples.reference_s,
            bound=bound,
            errors=self.samples.fitted()[1],
            trials=(final := settled(trials, latencies)),
            front=front_of(final, bound),
            latencies=latencies,
            verdict=verdict,
            folder=self.folder,
        )

    def _timed_together(self, trials: list[Trial]) -> dict[int, float]:
        """Latency ratios by trial, all from the same rounds; those of the last time if they were the same."""
        kept = {int(number): ratio for number, ratio in (self.journal.kept("latencies") or {}).items()}
        if kept.keys() == {trial.number for trial in trials}:
            return kept
        self.check()
        found = self.measure([trial.spec for trial in trials])
        ratios = {
            trial.number: sample.ratio
            for trial, sample in zip(trials, found, strict=True)
            if sample.ratio is not None
        }
        slowdown = found[0].reference_s / self.samples.reference_s
        if slowdown > BUSY:
            say(
                f"the machine is busy, the reference took {slowdown:.1f} times as long as at the start: "
                "the last latencies may be off; the same command times them again once it is quiet"
            )
        else:
            self.journal.keep("latencies", ratios)
        return ratios

    def _confirmed(self, trials: list[Trial]) -> dict[int, list[float]]:
        """Accuracies with seeds that the search did not see, by trial; a failed training has none."""
        kept: dict[str, float | None] = self.journal.kept("confirmed") or {}
        for seed in range(self.settings.seed + 1, self.settings.seed + 1 + self.settings.confirm):
            for trial in trials:
                key = f"{trial.number}/{seed}"
                if key in kept:
                    continue
                self.check()
                say(f"trial {trial.number} once more, with seed {seed}")
                folder = self._folder_of(trial, seed)
                try:
                    kept[key] = self.train(trial.spec, folder, seed, lambda epochs, top1: False)
                except (StoppedError, StopRequestedError):
                    raise
                except Exception as error:
                    kept[key] = None
                    say(f"trial {trial.number} failed with seed {seed}: {one_line(error)}")
                self.journal.keep("confirmed", kept)
                drop_checkpoints(folder)
        return {
            trial.number: [
                top1 for key, top1 in kept.items() if key.startswith(f"{trial.number}/") and top1 is not None
            ]
            for trial in trials
        }


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
