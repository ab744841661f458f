"""How long models take on this machine: measured against a reference, and predicted from what they compute.

A machine that others use too drifts by a factor of two. So a latency is a ratio: that of the model to a
reference timed in the same rounds. Milliseconds are the ratio times the reference's median at the start.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.bench.contenders import folded, random_manifest, random_model, started
from vitesse.bench.measure import Contender, Runner, Timing, time_interleaved
from vitesse.errors import ConfigError, from_extra, require
from vitesse.runtime.artefact import Artefact, read_artefact
from vitesse.search.cost import Cost, cost_of
from vitesse.spec import ModelSpec

ENGINES = ("onnxruntime", "openvino", "torch")
FOLDS = 5
FEWEST = 8
"""Measurements that a prediction needs."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's latency over the reference's in the same rounds, or why there is none.

    Attributes:
        reference_s: of the reference, seconds a batch in these rounds.
    """

    spec: ModelSpec
    ratio: float | None
    reference_s: float
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Meter:
    """Times models as folded and exported ones with random weights, on one engine."""

    reference: ModelSpec
    engine: str = "onnxruntime"
    threads: int = 1
    batch_size: int = 1
    rounds: int = 60

    def measure(self, specs: Sequence[ModelSpec]) -> list[Measured]:
        """Every model, in the same rounds as the reference."""
        timed = [self.reference, *(spec for spec in specs if spec != self.reference)]
        made = [self._contender(spec) for spec in timed]
        with _torch_threads(self.threads):
            timings = time_interleaved(made, (self.batch_size,), rounds=self.rounds, threads=self.threads)
        if timings[0].error:
            raise ConfigError(f"the reference {self.reference.name} cannot be timed: {timings[0].error}")
        by_spec = {spec: self._compared(spec, t, timings[0]) for spec, t in zip(timed, timings, strict=True)}
        return [by_spec[spec] for spec in specs]

    def _compared(self, spec: ModelSpec, timing: Timing, reference: Timing) -> Measured:
        base = reference.samples_s
        ratio = None
        if timing.samples_s:
            pairs = zip(timing.samples_s, base, strict=True)
            ratio = statistics.median(one / other for one, other in pairs)
        seconds = statistics.median(base) * self.batch_size
        return Measured(spec=spec, ratio=ratio, reference_s=seconds, error=timing.error)

    @functools.cached_property
    def _reference_runner(self) -> Runner:
        return self._runner(self.reference)

    def _runner(self, spec: ModelSpec) -> Runner:
        return _runner(spec, self.engine, self.threads, self.batch_size)

    def _contender(self, spec: ModelSpec) -> Contender:
        def start() -> Runner:
            return self._reference_runner if spec == self.reference else self._runner(spec)

        return Contender(
            model=spec.name, engine=self.engine, precision="fp32", image_size=spec.image_size, start=start
        )


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """While entered, torch has so many; trainings have what they had."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _runner(spec: ModelSpec, engine: str, threads: int, batch_size: int) -> Runner:
    """A model in the engine. For batches of one the file takes no other, and is exported in half the time."""
    import torch

    model = folded(random_model(spec))
    if engine == "torch":
        from vitesse.models.engine import TorchEngine

        return TorchEngine(model.to(memory_format=torch.channels_last)).run
    with from_extra("search"):
        from vitesse.export.onnx import INPUT, OUTPUTS, to_onnx, traced
    if batch_size == 1:
        images_BCHW = torch.zeros(1, spec.in_chans, *spec.image_size)
        proto = traced(model, {INPUT: images_BCHW}, {}, OUTPUTS["classify"], spec.name)
    else:
        proto = to_onnx(model, spec)
    return started(_in_memory(proto, spec), engine, threads).run


def _in_memory(proto: Any, spec: ModelSpec) -> Artefact:
    """The artefact of an `onnx.ModelProto` that is no file for longer than it takes to read it."""
    from vitesse.export.onnx import write_artefact

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_artefact(proto, random_manifest(spec, {}), path)
        return read_artefact(path)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Relative errors of predictions for models that the predictor had not seen."""

    median: float
    p90: float
    models: int

    def explain(self) -> str:
        """In a few words."""
        return f"median error {self.median:.1%}, p90 {self.p90:.1%} on {self.models} models not fitted on"


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Latency ratio as a sum of costs, none of them negative: so much a call, a product, a number moved."""

    weights: tuple[float, ...]
    batch_size: int = 1

    def __call__(self, spec: ModelSpec) -> float:
        """The ratio that a model is expected to have."""
        return self.of_cost(cost_of(spec, self.batch_size))

    def of_cost(self, cost: Cost) -> float:
        """The same from its cost."""
        return float(np.dot(self.weights, cost.features))

    @classmethod
    def fit(cls, costs: Sequence[Cost], ratios: Sequence[float], batch_size: int = 1) -> Predictor:
        """Least squares of relative errors.

        Raises:
            ConfigError: fewer than `FEWEST` measurements.
        """
        nnls = require("scipy.optimize", "search").nnls

        if len(ratios) < FEWEST:
            raise ConfigError(f"--samples: expected at least {FEWEST} models to fit on, got {len(ratios)}")
        features = np.array([cost.features for cost in costs])
        scale = np.maximum(features.max(axis=0), 1.0)
        weights, _ = nnls(features / scale / np.array(ratios)[:, None], np.ones(len(ratios)))
        return cls(weights=tuple(map(float, weights / scale)), batch_size=batch_size)

    def errors(self, costs: Sequence[Cost], ratios: Sequence[float]) -> Errors:
        """Of predictions for these models."""
        return _errors(np.array([self.of_cost(cost) for cost in costs]), np.array(ratios))


def held_out_errors(costs: Sequence[Cost], ratios: Sequence[float], folds: int = FOLDS) -> Errors:
    """Each model predicted by a fit on the other folds: every `folds`-th model is left out at a time.

    Raises:
        ConfigError: too few measurements for that.
    """
    predicted = np.zeros(len(ratios))
    for fold in range(folds):
        kept = [i for i in range(len(ratios)) if i % folds != fold]
        predictor = Predictor.fit([costs[i] for i in kept], [ratios[i] for i in kept])
        for left_out in range(fold, len(ratios), folds):
            predicted[left_out] = predictor.of_cost(costs[left_out])
    return _errors(predicted, np.array(ratios))


def _errors(predicted: NDArray[Any], measured: NDArray[Any]) -> Errors:
    relative = np.abs(predicted - measured) / measured
    return Errors(
        median=float(np.median(relative)), p90=float(np.quantile(relative, 0.9)), models=len(measured)
    )


Measure = Callable[[Sequence[ModelSpec]], list[Measured]]
