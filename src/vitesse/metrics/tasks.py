"""Pictures of any task, opened, shown and scored the same way; no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitesse.data.annotated import open_boxes, open_maps
from vitesse.data.contract import Pictures
from vitesse.data.sources import open_source
from vitesse.metrics.classes import same_classes, with_classes
from vitesse.metrics.dense import (
    BoxesFound,
    MapsCounted,
    count_maps,
    find_boxes,
    recorded_boxes,
    recorded_maps,
)
from vitesse.metrics.detection import BoxScores
from vitesse.metrics.run import Showing, outcomes, outcomes_in_groups
from vitesse.metrics.scores import Outcomes, Scores
from vitesse.metrics.segmentation import MapScores
from vitesse.spec import Task

if TYPE_CHECKING:
    from vitesse.runtime.artefact import Artefact
    from vitesse.runtime.engines import Engine

DENSE_BATCH = 4
"""Pictures a run of what looks at large ones."""


class Figures(Protocol):
    """What an evaluation comes to: a frozen dataclass."""

    @property
    def images(self) -> int:
        """Pictures that it is of."""

    @property
    def refused(self) -> int:
        """Pictures that could not be read."""

    @property
    def best_by(self) -> float:
        """What makes weights the best ones, 0 to 1."""

    def explain(self) -> str:
        """In a few words."""

    def brief(self) -> dict[str, float]:
        """The few figures to know, by their keys."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""


class Found(Protocol):
    """What a model found in pictures, before it is scored."""

    def of_pictures(self, indices: NDArray[np.int64]) -> Found:
        """The same, where the pictures were those of `indices` in a larger source."""

    def scores(self, source: Any) -> Figures:
        """The figures, of a source that these pictures are from."""


@dataclass(frozen=True)
class Examination:
    """How a task's pictures are opened, shown to a model, and scored.

    Attributes:
        open: data and split to a source.
        find: engine, source and `Showing` to what is found.
        joined: what was found in parts of a source, as one.
        figures: the kind that an evaluation comes to.
        of_classes: a source and a model's class names to that source, with the model's indices.
        recorded: records, one a picture of a source, and the source to what is found; None for classifiers.
    """

    open: Callable[[Any, str | None], Any]
    find: Callable[[Engine, Any, Showing], Found]
    joined: Callable[[Sequence[Any]], Found]
    figures: type[Figures]
    of_classes: Callable[[Any, tuple[str, ...]], Any] = same_classes
    recorded: Callable[[Any, Any], Found] | None = None


EXAMINATIONS: Mapping[Task, Examination] = {
    "classify": Examination(open_source, outcomes, Outcomes.joined, Scores, with_classes),
    "detect": Examination(open_boxes, find_boxes, BoxesFound.joined, BoxScores, recorded=recorded_boxes),
    "segment": Examination(open_maps, count_maps, MapsCounted.joined, MapScores, recorded=recorded_maps),
}


def open_for(task: Task, data: str | Path | Pictures, split: str | None) -> Any:
    """The pictures of a split with what the task needs to know of them.

    Raises:
        DataError: the data cannot be read, or is not annotated for the task.
    """
    return EXAMINATIONS[task].open(data, split)


def examine(engine: Engine, artefact: Artefact, source: Any) -> tuple[Figures, Mapping[str, Any]]:
    """The figures of an engine that runs this artefact, and what a multiplexed model's manifest says beside.

    Raises:
        DataError: see `Examination.find`.
    """
    manifest = artefact.manifest
    if manifest.task == "classify":
        showing = Showing(preprocess=manifest.preprocess, mux_width=manifest.mux_width)
        found, agreement = outcomes_in_groups(engine, source, showing)
        scores = found.scores(source)
        return scores, {} if agreement is None else {"slots": scores.slots, "agreement": agreement}
    showing = Showing(preprocess=manifest.preprocess, batch_size=artefact.input_shape[0] or DENSE_BATCH)
    return EXAMINATIONS[manifest.task].find(engine, source, showing).scores(source), {}
