"""Timing that a shared machine cannot bend in one contender's favour.

All contenders run in rounds, one after another in an order that rotates, after warm-up; figures are medians
and 95th percentiles over rounds, and every sample is kept. The processor seconds of this process are kept
beside wall seconds: other work on the machine disturbs them less.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import EngineError, one_line
from vitesse.progress import track
from vitesse.runtime.artefact import Artefact

Runner = Callable[[Any], Any]
"""Runs a batch (B, C, H, W), or whatever its contender's `feed` gives."""

IMAGENET = "ImageNet-1k, published for fp32"
MODELS_AT_ONCE = 8
WARM_UP = 2
MIN_SAMPLE_S = 0.02
"""A sample of a quick contender repeats it until so much time has passed."""


@dataclass(kw_only=True)
class Contender:
    """One way to run one model.

    Attributes:
        model: name or file; a timm model's is `timm:NAME`.
        engine: what runs it.
        precision: `fp32` or `int8`.
        image_size: (height, width) in pixels.
        macs: of one picture; None where unknown.
        top1: published accuracy, a fraction, or that in the file's manifest; None where nobody said.
        top1_on: the pictures that `top1` was measured on; only equal ones can be compared.
        in_chans: channels of a picture.
        stage: what of it is timed: of `vitesse.bench.stages.STAGES`, or as who times it calls it.
        start: gives the function that is timed; it takes a batch (B, C, H, W) float32, or what `feed` gives.
        feed: from the batch size to what a run takes; None for a batch of noise.
        pictures: that a run handles; None for the batch size.
        artefact: what an engine runs; None where there is none.
        error: why it cannot run, empty where it can.
    """

    model: str
    engine: str
    precision: str
    image_size: tuple[int, int]
    macs: int | None = None
    top1: float | None = None
    top1_on: str = IMAGENET
    in_chans: int = 3
    stage: str = "model"
    start: Callable[[], Runner] | None = field(default=None, repr=False)
    feed: Callable[[int], Any] | None = field(default=None, repr=False)
    pictures: int | None = None
    artefact: Artefact | None = field(default=None, repr=False)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What was measured of a contender at one batch size.

    Attributes:
        samples_s: seconds a picture, one for each round, as measured.
        processor_s: the same in processor seconds of all threads.
        drift: how much faster (below 1) the machine was in the first group; see `time_in_groups`.
    """

    contender: Contender
    batch_size: int
    threads: int
    samples_s: tuple[float, ...]
    processor_s: tuple[float, ...] = ()
    drift: float = 1.0
    error: str = ""

    @property
    def median_s(self) -> float:
        """Seconds a picture, as the machine was when the first group ran."""
        return statistics.median(self.samples_s) * self.drift

    def to_dict(self) -> dict[str, Any]:
        """The JSON record: milliseconds are those of a whole batch, `macs` those of one picture."""
        who = self.contender
        record: dict[str, Any] = {
            "model": who.model,
            "engine": who.engine,
            "precision": who.precision,
            "stage": who.stage,
            "batch_size": self.batch_size,
            "threads": self.threads,
            "img_per_s": None,
            "p50_ms": None,
            "p95_ms": None,
            "macs": who.macs,
            "image_size": list(who.image_size),
            "top1": who.top1,
            "top1_on": who.top1_on if who.top1 is not None else None,
            "error": self.error or None,
        }
        if self.samples_s:
            samples_ms, processor_ms = (
                np.asarray(samples) * self.batch_size * 1000 for samples in (self.samples_s, self.processor_s)
            )
            batch_ms = samples_ms * self.drift
            record |= {
                "img_per_s": round(1 / self.median_s, 2),
                "p50_ms": round(float(np.median(batch_ms)), 4),
                "p95_ms": round(float(np.quantile(batch_ms, 0.95)), 4),
                "samples_ms": samples_ms.round(4).tolist(),
                "samples_processor_ms": processor_ms.round(4).tolist(),
                "drift": round(self.drift, 4),
            }
        return record


def time_interleaved(
    contenders: Sequence[Contender], batch_sizes: Sequence[int], *, rounds: int, threads: int
) -> list[Timing]:
    """Time every contender at every batch size; one that fails has an error and no samples.

    Args:
        contenders: `start` is called once each, in this order.
        batch_sizes: pictures in a batch.
        rounds: in each of them every contender gives one sample a batch size.
        threads: what the contenders were made for; only recorded.
    """
    running: dict[int, Runner] = {}
    errors: dict[tuple[int, int], str] = {}
    feeds = _Feeds()
    for index, contender in enumerate(contenders):
        try:
            running[index] = _started(contender)
        except Exception as error:
            errors |= dict.fromkeys(((index, batch) for batch in batch_sizes), one_line(error))
    samples: dict[tuple[int, int], list[tuple[float, float]]] = {}
    repeats: dict[tuple[int, int], int] = {}
    for batch_size in batch_sizes:
        for index, run in running.items():
            try:
                repeats[index, batch_size] = _warm_up(run, feeds.of(contenders[index], batch_size))
            except Exception as error:
                errors[index, batch_size] = one_line(error)
    order = list(repeats)
    for _ in track(range(rounds), "bench", rounds):
        order.append(order.pop(0)) if order else None
        for index, batch_size in [key for key in order if key not in errors]:
            fed = feeds.of(contenders[index], batch_size)
            try:
                wall, busy = _sample(running[index], fed, repeats[index, batch_size])
            except Exception as error:
                errors[index, batch_size] = one_line(error)
                samples.pop((index, batch_size), None)
                continue
            pictures = contenders[index].pictures or batch_size
            samples.setdefault((index, batch_size), []).append((wall / pictures, busy / pictures))
    return [
        Timing(
            contender=contender,
            batch_size=batch_size,
            threads=threads,
            samples_s=tuple(wall for wall, _ in samples.get((index, batch_size), ())),
            processor_s=tuple(busy for _, busy in samples.get((index, batch_size), ())),
            error=errors.get((index, batch_size), ""),
        )
        for index, contender in enumerate(contenders)
        for batch_size in batch_sizes
    ]


def time_in_groups(
    contenders: Sequence[Contender], batch_sizes: Sequence[int], *, rounds: int, threads: int
) -> list[Timing]:
    """As `time_interleaved`, for more contenders than memory holds at once.

    Models run in groups of `MODELS_AT_ONCE`. The first model is the yardstick: it runs in every group, and
    each group's medians are scaled by how much slower or faster than in the first group it was there.
    """
    by_model = [list(same) for _, same in groupby(contenders, key=lambda contender: contender.model)]
    timings: list[Timing] = []
    for start in range(0, max(1, len(by_model) - 1), MODELS_AT_ONCE - 1):
        others = by_model[1 + start : start + MODELS_AT_ONCE]
        group = [contender for same in (by_model[0], *others) for contender in same]
        found = time_interleaved(group, batch_sizes, rounds=rounds, threads=threads)
        yardstick, rest = (
            found[: len(by_model[0]) * len(batch_sizes)],
            found[len(by_model[0]) * len(batch_sizes) :],
        )
        if not timings:
            timings += yardstick
        drift = _drift(timings[: len(yardstick)], yardstick)
        timings += [replace(timing, drift=drift[timing.batch_size]) for timing in rest]
    return timings


def _drift(first: Sequence[Timing], now: Sequence[Timing]) -> Mapping[int, float]:
    """By batch size, the yardstick's time in the first group over that now: the median of its ways to run."""
    ratios: dict[int, list[float]] = {}
    for then, again in zip(first, now, strict=True):
        ratios.setdefault(then.batch_size, [1.0] if then.error or again.error else [])
        if then.samples_s and again.samples_s:
            ratios[then.batch_size].append(then.median_s / again.median_s)
    return {batch_size: statistics.median(found) for batch_size, found in ratios.items()}


def comparable(timings: Sequence[Timing]) -> list[Timing]:
    """Those whose accuracy is known and was measured on the pictures that most were measured on."""
    known = [timing for timing in timings if timing.contender.top1 is not None]
    counts = Counter(timing.contender.top1_on for timing in known)
    return [t for t in known if t.contender.top1_on == counts.most_common(1)[0][0]]


def best_by_model(
    timings: Sequence[Timing], precision: str | None = None
) -> Mapping[tuple[str, int], Timing]:
    """The fastest way to run each model at each batch size, of all or of one precision."""
    best: dict[tuple[str, int], Timing] = {}
    for timing in timings:
        if timing.error or precision not in (None, timing.contender.precision):
            continue
        key = (timing.contender.model, timing.batch_size)
        if key not in best or timing.median_s < best[key].median_s:
            best[key] = timing
    return best


class _Feeds:
    """What runs take; noise of every shape is made once."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def of(self, contender: Contender, batch_size: int) -> Any:
        if contender.feed is not None:
            return contender.feed(batch_size)
        shape = (batch_size, contender.in_chans, *contender.image_size)
        if shape not in self._made:
            self._made[shape] = np.random.default_rng(0).standard_normal(shape, np.float32)
        return self._made[shape]


def _started(contender: Contender) -> Runner:
    if contender.start is None:
        raise EngineError(contender.error or "it cannot be run")
    return contender.start()


def _warm_up(run: Runner, fed: Any) -> int:
    """Run a few times; gives how many repetitions make a sample long enough to time."""
    for _ in range(WARM_UP):
        took, _ = _sample(run, fed, 1)
    return max(1, round(MIN_SAMPLE_S / max(took, 1e-6)))


def _sample(run: Runner, fed: Any, runs: int) -> tuple[float, float]:
    """Wall and processor seconds of one run, the means of so many."""
    started, started_busy = time.perf_counter(), time.process_time()
    for _ in range(runs):
        run(fed)
    return (time.perf_counter() - started) / runs, (time.process_time() - started_busy) / runs
