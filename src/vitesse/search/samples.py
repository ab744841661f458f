"""Latencies measured so far, in a file that an interrupted search goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitesse.errors import ConfigError
from vitesse.files import write_atomically
from vitesse.progress import track
from vitesse.search.cost import Cost, cost_of
from vitesse.search.latency import Errors, Measure, Measured, Predictor, held_out_errors
from vitesse.search.settings import difference
from vitesse.search.space import Space
from vitesse.spec import ModelSpec, from_mapping, to_mapping

GROUP = 4
"""Models timed in the same rounds."""


@dataclass(kw_only=True)
class Samples:
    """What was measured, by spec, and how: `conditions` must agree for a file to go on with.

    Attributes:
        measured: every model's latency over the reference's, by its spec; the first measurement counts.
        reference_s: the reference's seconds a batch at the start.
    """

    path: Path
    conditions: Mapping[str, Any]
    measure: Measure
    batch_size: int = 1
    measured: dict[ModelSpec, Measured] = field(default_factory=dict)
    reference_s: float = 0.0

    @classmethod
    def open(
        cls, path: Path, conditions: Mapping[str, Any], measure: Measure, batch_size: int = 1
    ) -> Samples:
        """Those in the file, none where there is no file.

        Raises:
            ConfigError: the file cannot be read, or was measured under other conditions.
        """
        samples = cls(path=path, conditions=conditions, measure=measure, batch_size=batch_size)
        if not path.exists():
            return samples
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            found = [from_mapping(Measured, {**row, "spec": _spec(row["spec"])}) for row in raw["measured"]]
            before, reference_s = raw["conditions"], raw["reference_s"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: expected measured latencies, {error}; remove it") from error
        if found_other := difference(before, json.loads(json.dumps(conditions))):
            raise ConfigError(f"{path} was measured with {found_other} is asked for; take another --out")
        samples.measured = {sample.spec: sample for sample in found}
        samples.reference_s = reference_s
        return samples

    def of(self, specs: Sequence[ModelSpec]) -> list[Measured]:
        """Their latencies, those not known yet measured together and kept."""
        if new := [spec for spec in dict.fromkeys(specs) if spec not in self.measured]:
            found = self.measure(new)
            self.reference_s = self.reference_s or found[0].reference_s
            self.measured |= {sample.spec: sample for sample in found}
            self._write()
        return [self.measured[spec] for spec in specs]

    def draw(
        self, space: Space, count: int, num_classes: int, seed: int, check: Callable[[], None] | None = None
    ) -> list[Measured]:
        """So many models of a space at random, in an order that only the seed decides."""
        rng = np.random.default_rng(seed)
        drawn: dict[ModelSpec, None] = {}
        for _ in range(100 * count):
            if len(drawn) == count:
                break
            drawn[space.spec(space.draw(rng), num_classes)] = None
        specs = list(drawn)
        found: list[Measured] = []
        groups = range(0, len(specs), GROUP)
        for start in track(groups, "measuring latencies", len(groups)):
            if check is not None:
                check()
            found += self.of(specs[start : start + GROUP])
        return found

    def fitted(self) -> tuple[Predictor, Errors]:
        """A predictor fitted on all, and the errors of such ones for models left out.

        Raises:
            ConfigError: too few measurements for that.
        """
        costs, ratios = self.table()
        return Predictor.fit(costs, ratios, self.batch_size), held_out_errors(costs, ratios)

    def table(self) -> tuple[list[Cost], list[float]]:
        """Costs and latency ratios of the models that could be measured."""
        good = [(sample.spec, sample.ratio) for sample in self.measured.values() if sample.ratio is not None]
        return [cost_of(spec, self.batch_size) for spec, _ in good], [ratio for _, ratio in good]

    def _write(self) -> None:
        record = {
            "conditions": self.conditions,
            "reference_s": self.reference_s,
            "measured": [to_mapping(sample) for sample in self.measured.values()],
        }
        write_atomically(self.path, json.dumps(record, indent=1).encode() + b"\n")


def _spec(raw: Mapping[str, Any]) -> ModelSpec:
    return from_mapping(ModelSpec, raw)
