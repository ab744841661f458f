"""Results of inference: values that check themselves and turn into JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitesse.spec import from_mapping, to_mapping


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One class with its score: `score` is a probability in 0..1, `index` the class index."""

    label: str
    index: int
    score: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.score) and 0 <= self.score <= 1):
            raise ValueError(f"score of {self.label!r}: expected 0..1, got {self.score}")


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The result for one input: predictions with the highest score first, or the error that refused it.

    Attributes:
        source: where the picture came from, as the user named it.
        model: the model's name.
        predictions: highest score first; empty when `error` is set.
        error: one line saying what was wrong with this input, or None.
    """

    source: str
    model: str
    predictions: tuple[Prediction, ...] = ()
    error: str | None = None
    task: str = "classify"

    def __post_init__(self) -> None:
        if bool(self.predictions) == (self.error is not None):
            raise ValueError(f"{self.source}: expected predictions or an error, got both or neither")
        scores = [p.score for p in self.predictions]
        if scores != sorted(scores, reverse=True):
            raise ValueError(f"{self.source}: expected the highest score first, got {scores}")

    @property
    def top(self) -> Prediction:
        """The prediction with the highest score.

        Raises:
            ValueError: the input was refused.
        """
        if self.error is not None:
            raise ValueError(f"{self.source}: no prediction, {self.error}")
        return self.predictions[0]

    def to_dict(self) -> dict[str, Any]:
        """The JSON record: source, task, model, predictions of label, index and score, error."""
        return to_mapping(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Classification:
        """Read `to_dict`'s form."""
        predictions = tuple(from_mapping(Prediction, p) for p in raw["predictions"])
        return from_mapping(cls, {**raw, "predictions": predictions})
