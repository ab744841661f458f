"""What a user wants of a model, as `top1>=75, batch=1`, and which contender meets it best."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitesse.bench.measure import Timing, comparable
from vitesse.errors import ConfigError

_CONDITION = re.compile(r"\s*(top1|ms|img_per_s|macs|batch)\s*(>=|<=|=)\s*([\d.]+)\s*$")
_EXAMPLE = "expected conditions such as 'top1>=75, batch=1, ms<=10'"


@dataclass(frozen=True)
class Goal:
    """Conditions that a model must meet: the fastest that does is the answer.

    `top1` is in per cent, `ms` the median of a whole batch, `macs` in millions.
    """

    conditions: tuple[tuple[str, str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Read conditions separated by commas.

        Raises:
            ConfigError: a condition cannot be read.
        """
        conditions = []
        for part in text.split(","):
            match = _CONDITION.match(part)
            if match is None or match[3].count(".") > 1:
                raise ConfigError(f"--goal: {_EXAMPLE}, got {part.strip()!r}")
            conditions.append((match[1], match[2], float(match[3])))
        return cls(tuple(conditions))

    def answer(self, timings: Sequence[Timing]) -> Timing | None:
        """The fastest timing that meets all conditions.

        Where one is about accuracy, only `comparable` ones can meet it.
        """
        if any(name == "top1" for name, _, _ in self.conditions):
            timings = comparable(timings)
        fitting = [t for t in timings if t.samples_s and all(self._met(t, *c) for c in self.conditions)]
        return min(fitting, key=lambda timing: timing.median_s, default=None)

    @staticmethod
    def _met(timing: Timing, name: str, relation: str, wanted: float) -> bool:
        value = _VALUES[name](timing)
        if value is None:
            return False
        return {">=": value >= wanted, "<=": value <= wanted, "=": value == wanted}[relation]


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else round(value * factor, 6)


_VALUES: dict[str, Callable[[Timing], float | None]] = {
    "top1": lambda t: _scaled(t.contender.top1, 100),
    "ms": lambda t: t.median_s * t.batch_size * 1000,
    "img_per_s": lambda t: 1 / t.median_s,
    "macs": lambda t: _scaled(t.contender.macs, 1e-6),
    "batch": lambda t: float(t.batch_size),
}
