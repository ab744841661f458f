"""One format for the profiles of all engines: operators with their time, tensors and module."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from vitesse.analyze.kinds import COMPUTE_KINDS, KINDS, MEMORY_KINDS, OTHER, ROLES, roles_of
from vitesse.errors import EngineError

Key = TypeVar("Key")


@dataclass(frozen=True)
class Shaped:
    """A tensor without its values: its sides, and the bytes of one element."""

    sides: tuple[int, ...]
    itemsize: int = 4

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.sides)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.size * self.itemsize


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What an engine ran as one.

    Attributes:
        name: in the engine's words.
        type: in the engine's words, such as `Conv` or `aten::add`.
        kind: of `KINDS`.
        module: dotted name of the module that it belongs to, empty for the model itself; None for what the
            engine put in by itself.
        seconds: that it took.
        inputs, outputs: its tensors, without those that hold shapes, axes or indices. Both empty for what
            moves no data.
    """

    name: str
    type: str
    kind: str
    module: str | None
    seconds: float
    inputs: tuple[Shaped, ...]
    outputs: tuple[Shaped, ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where an engine spends its time on one batch.

    Attributes:
        operators: in the order of computation, each with the median of its time over the runs.
        plain_s: median of the runs without profiler.
        profiled_s: median of the runs with it.
    """

    engine: str
    operators: tuple[Operator, ...]
    plain_s: float
    profiled_s: float

    @property
    def operators_s(self) -> float:
        """Time inside operators; what `profiled_s` has more is between them."""
        return sum(operator.seconds for operator in self.operators)

    @property
    def overhead(self) -> float:
        """What profiling adds to a run, as a fraction of the run without it."""
        return self.profiled_s / self.plain_s - 1

    @property
    def roles(self) -> list[str]:
        """The part of the model that each operator belongs to, of `ROLES`."""
        return roles_of([operator.module or "" for operator in self.operators])

    def by_kind(self) -> dict[str, float]:
        """Share of the operators' time, of every kind."""
        return self._shares(KINDS, (operator.kind for operator in self.operators))

    def by_role(self) -> dict[str, float]:
        """Share of the operators' time, of every part of the model."""
        return self._shares(ROLES, self.roles)

    def by_role_and_kind(self) -> dict[str, dict[str, float]]:
        """Share of the operators' time, of every part and kind."""
        keys = [(role, kind) for role in ROLES for kind in KINDS]
        pairs = zip(self.roles, (operator.kind for operator in self.operators), strict=True)
        found = self._shares(keys, pairs)
        return {role: {kind: found[role, kind] for kind in KINDS} for role in ROLES}

    def other(self, what: str, at_most: int = 3) -> list[str]:
        """The `modules`, or types of `operators`, of no known place that take most time."""
        seconds: Counter[str] = Counter()
        for role, operator in zip(self.roles, self.operators, strict=True):
            if what == "modules" and role == OTHER:
                seconds[operator.module or "the model itself"] += operator.seconds  # type: ignore[assignment]
            elif what == "operators" and operator.kind == OTHER:
                seconds[operator.type] += operator.seconds  # type: ignore[assignment]
        return [name for name, _ in seconds.most_common(at_most)]

    @property
    def memory_bound_share(self) -> float:
        """Share of the operators' time in kinds that memory bounds."""
        shares = self.by_kind()
        return sum(shares[kind] for kind in MEMORY_KINDS)

    @property
    def compute_bound_share(self) -> float:
        """Share of the operators' time in kinds that arithmetic bounds."""
        shares = self.by_kind()
        return sum(shares[kind] for kind in COMPUTE_KINDS)

    def _shares(self, keys: Sequence[Key], of: Iterable[Key]) -> dict[Key, float]:
        total = self.operators_s
        found = dict.fromkeys(keys, 0.0)
        for key, operator in zip(of, self.operators, strict=True):
            found[key] += operator.seconds / total if total else 0.0
        return found


def median_of(runs: Sequence[Sequence[Operator]], engine: str) -> tuple[Operator, ...]:
    """Each operator with the median of its time over the runs; what has no module takes the next one's.

    An engine puts layout conversions in front of what needs them, and names them as it likes.

    Raises:
        EngineError: there is no run or no operator, the runs differ in their operators, or all took less than
            the engine can count.
    """
    names = [[operator.name for operator in run] for run in runs]
    if not names or not names[0]:
        raise EngineError(f"{engine}: its profile holds no operators; report it with `vitesse doctor`")
    if any(other != names[0] for other in names):
        raise EngineError(f"{engine}: its profile has other operators in each run; run it again")
    medians = [
        replace(same[0], seconds=statistics.median(operator.seconds for operator in same))
        for same in zip(*runs, strict=True)
    ]
    if not any(operator.seconds for operator in medians):
        raise EngineError(f"{engine}: every operator takes less time than it can count; raise --batch-size")
    following: str | None = None
    placed = []
    for operator in reversed(medians):
        following = following if operator.module is None else operator.module
        placed.append(replace(operator, module=following))
    return tuple(reversed(placed))


def as_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """For a JSON record: four digits after the point."""
    return {key: round(value, 4) for key, value in shares.items()}
