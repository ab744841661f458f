"""How accurate an architecture is, from a short training; one that falls behind is stopped early."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitesse.errors import ConfigError
from vitesse.metrics import Figures, Scores
from vitesse.models.variants import write_spec
from vitesse.spec import ModelSpec
from vitesse.train import Recipe, load_recipe, train
from vitesse.train.recipe import recipe_values
from vitesse.train.recipe_files import parse_overrides
from vitesse.train.setup import splits
from vitesse.train.tasks import check_kind, task_of

SHORT: Mapping[str, Any] = {"init": "", "eval_every": 1, "trackers": []}
"""What a short training changes of a recipe: all start from scratch, for only the hand-made have weights."""
COMPARED = 4
"""So many others must have been as far before a candidate can be stopped for being behind them."""

Watch = Callable[[int, float], bool]
"""Told after each epoch: how many are done, and the accuracy; whether that is enough."""
TrainModel = Callable[[ModelSpec, Path, int, Watch], float]
"""A spec, a folder, a seed and who is told of every epoch: to the accuracy at the end."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """How far a candidate was after an epoch: its latency ratio and its accuracy then."""

    latency: float
    top1: float


def is_behind(candidate: Rung, others: Sequence[Rung]) -> bool:
    """Whether less accurate than the median of those that are no slower; of them there must be `COMPARED`."""
    rivals = [other.top1 for other in others if other.latency <= candidate.latency]
    return len(rivals) >= COMPARED and candidate.top1 < statistics.median(rivals)


@dataclass(frozen=True, kw_only=True)
class ShortTraining:
    """Trains every candidate on `data` by the same recipe, but for its image size."""

    data: str | Path
    recipe: Recipe

    def __call__(self, spec: ModelSpec, folder: Path, seed: int, watch: Watch) -> float:
        """Top-1 on the held-out pictures at the end, a fraction; goes on with an interrupted training.

        Raises:
            StoppedError: a signal came; the run is saved.
            VitesseError: see `vitesse.train`.
        """
        spec_file = folder / "spec.json"
        write_spec(spec, spec_file)
        size = {"image_size": spec.image_size[1], "image_height": None}
        result = train(
            self.data,
            model=str(spec_file),
            out=folder,
            overrides={**recipe_values(self.recipe), **size, "seed": seed},
            enough=lambda epochs, scores: watch(epochs, top1_of(scores)),
        )
        return top1_of(result.scores)


def drop_checkpoints(folder: Path) -> None:
    """Remove the weights of a finished training, some 50 MB a candidate."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def top1_of(scores: Figures) -> float:
    """The accuracy of a classifier.

    Raises:
        ConfigError: these are not the scores of one.
    """
    if not isinstance(scores, Scores):
        raise ConfigError("search: expected pictures with one class each, for classifiers alone are searched")
    return scores.top1


def short_training(
    data: str | Path, recipe: str | Path, overrides: Iterable[str] | Mapping[str, Any], model: str
) -> tuple[ShortTraining, tuple[str, ...]]:
    """The training of candidates, and the names of the data's classes.

    Raises:
        ConfigError: an unknown recipe or key, a seed, or data that is not for classifiers.
        DataError: the data cannot be read, or holds nothing to learn from or to evaluate with.
    """
    changes = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    if "seed" in changes:
        raise ConfigError("seed=: a search sets the seeds of its trainings; give --seed instead")
    settings = load_recipe(recipe, {**SHORT, **changes})
    task = task_of(model)
    check_kind(data, task, model)
    train_source, _ = splits(task, data, settings)
    task.check(train_source)
    return ShortTraining(data=data, recipe=settings), train_source.class_names
