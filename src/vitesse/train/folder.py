"""The folder of a run: what is saved to go on from, and the page that explains it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import nn

from vitesse.catalogue import models
from vitesse.data.contract import Pictures
from vitesse.errors import TrainingError
from vitesse.metrics import Found
from vitesse.provenance import provenance
from vitesse.spec import ModelSpec, PreprocessSpec, to_mapping
from vitesse.train.checkpoint import Checkpoints, Progress
from vitesse.train.recipe import Recipe, recipe_values
from vitesse.train.record import REFUSED_FILE, RunLog
from vitesse.train.report import RunRecord, write_report
from vitesse.train.sharding import whole
from vitesse.train.tasks import Task, task_of
from vitesse.weights.files import save_weights

REPORT_FILE = "report.html"
FREE_TO_CHANGE = frozenset(
    {
        *("epochs", "eval_every", "save_minutes", "log_every", "trackers", "limit_val", "max_bad_steps"),
        *("workers", "accumulate", "compile", "shard"),
    }
)
"""What of a recipe may change when a run goes on; the learning rate follows a changed number of epochs."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run is: the same in every process, and from its first step to its last.

    Attributes:
        out: the folder of the run.
        data: what it is trained on, as the user calls it.
        train_source, val_source: the pictures themselves.
    """

    out: Path
    data: str
    spec: ModelSpec
    recipe: Recipe
    train_source: Pictures
    val_source: Pictures

    @property
    def task(self) -> Task:
        """What is trained for."""
        return task_of(self.spec.name)

    @property
    def preprocess(self) -> PreprocessSpec:
        """How evaluation pictures become inputs."""
        recipe = self.recipe
        return PreprocessSpec(image_size=self.spec.image_size, resize=recipe.resize, crop_pct=recipe.crop_pct)

    def identity(self) -> dict[str, Any]:
        """What must agree to continue a checkpoint."""
        recipe = {key: v for key, v in recipe_values(self.recipe).items() if key not in FREE_TO_CHANGE}
        return {"recipe": recipe, "model": to_mapping(self.spec), "data": self.train_source.fingerprint}


def run_files(folder: Path) -> dict[str, Path]:
    """Where a run keeps its weights and its report, by the names of `TrainResult`."""
    last, best = (folder / "checkpoints" / name / "model.safetensors" for name in ("last", "best"))
    return {"checkpoint": last, "best": best, "report": folder / REPORT_FILE}


class RunFolder:
    """Saves and explains a run; a disk that is full is told of, and what was saved before stays."""

    def __init__(self, facts: RunFacts, log: RunLog, checkpoints: Checkpoints) -> None:
        self.facts, self.log, self.checkpoints = facts, log, checkpoints
        self.accelerator = checkpoints.accelerator
        self.saved = True

    def save(self, progress: Progress, model: nn.Module, best: bool = False) -> None:
        """The model, then the state to go on from; all processes call it together."""
        self.saved = False
        made = self._provenance(progress)
        models = {"last/model": model, **self._average_beside(), **({"best/model": model} if best else {})}
        with self.log.survived("a checkpoint"):
            self.checkpoints.save(progress, made, lambda: self._save_models(models, made))
            self.saved = True

    def check_saved(self) -> None:
        """
        Raises:
            TrainingError: the newest state could not be written.
        """
        if not self.saved:
            raise TrainingError(
                f"{self.facts.out}: the last checkpoint could not be written; make room and run the same "
                "command again: it goes on from the newest that could"
            )

    def refuse(self, indices: Iterable[int]) -> None:
        """List the training pictures that any process could not read; all processes call it together."""
        mine = sorted(indices)
        everywhere = mine if self.accelerator.num_processes == 1 else gather_object(mine)
        self.log.refuse(map(self.facts.train_source.name, everywhere))
        if count := len(self.log.refused):
            self.log.note(
                f"training pictures that cannot be read: {count}, see {REFUSED_FILE}; the first is "
                f"{self.log.refused[0]}"
            )

    @functools.cached_property
    def amounts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How much there is of each class, to train with and held out."""
        task = self.facts.task
        return task.amounts(self.facts.train_source), task.amounts(self.facts.val_source)

    def report(self, status: str, found: Found | None) -> None:
        """Write the page that a person looks at, with the latest evaluation."""
        if self.accelerator.is_main_process:
            with self.log.survived("the report"):
                write_report(self._record(status, found), self.facts.out / REPORT_FILE)

    def _record(self, status: str, found: Found | None) -> RunRecord:
        facts, log, spec = self.facts, self.log, self.facts.spec
        same = (m for m in models() if (m.name, m.image_size) == (spec.name, spec.image_size))
        known = None if spec.variant else next(same, None)
        parameters = self.accelerator.unwrap_model(self.checkpoints.model).parameters()
        return RunRecord(
            title=facts.out.name,
            model={
                **{"name": spec.name, "image_size": spec.image_size, "num_classes": spec.num_classes},
                "params": sum(parameter.numel() for parameter in parameters),
                "macs": known.macs if known else None,
            },
            recipe=recipe_values(facts.recipe),
            provenance=provenance() | {"data": facts.train_source.fingerprint},
            status=status,
            class_names=facts.train_source.class_names,
            train_counts=self.amounts[0],
            val_counts=self.amounts[1],
            notes=tuple(log.notes),
            steps=log.of_kind("step"),
            epochs=log.of_kind("epoch"),
            measures=facts.task.measures,
            counted=facts.task.counted,
            judged=found.scores(facts.val_source).images if found else 0,
            **(facts.task.explained(found, facts.val_source) if found else {}),
        )

    def _average_beside(self) -> dict[str, nn.Module]:
        """The average, where it is not the model itself."""
        if self.checkpoints.average is None or self.facts.recipe.evaluate_ema:
            return {}
        return {"last/ema": whole(self.checkpoints.average)}

    def _save_models(self, models: Mapping[str, nn.Module], made: dict[str, Any]) -> None:
        metadata = {
            "class_names": list(self.facts.train_source.class_names),
            "preprocess": to_mapping(self.facts.preprocess),
            "provenance": made,
        }
        for name, model in models.items():
            save_weights(self.checkpoints.folder / f"{name}.safetensors", model, metadata)

    def _provenance(self, progress: Progress) -> dict[str, Any]:
        return {
            **provenance(),
            "recipe": recipe_values(self.facts.recipe),
            "data": self.facts.train_source.fingerprint,
            "processes": self.accelerator.num_processes,
            **asdict(progress),
        }
