"""What a task is to the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from vitesse.data.contract import Pictures
from vitesse.data.loader import Batch
from vitesse.metrics import Showing
from vitesse.train.recipe import Recipe
from vitesse.train.report import Measure

if TYPE_CHECKING:
    from vitesse.runtime.engines import Engine
    from vitesse.train.folder import RunFacts


class Loss(Protocol):
    """What a step minimises."""

    def __call__(self, batch: Batch, side: int, epoch: float) -> Tensor:
        """The mean loss, a scalar, of a batch on the training device.

        Args:
            side: pixels that pictures of the recipe's `train_sizes` are trained at.
            epoch: so many are done.
        """

    def blank(self, count: int) -> Batch:
        """Pictures that teach nothing, for a process that can read none."""


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

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""


class Found(Protocol):
    """What a model found in pictures, before it is scored."""

    def of_pictures(self, indices: NDArray[np.int64]) -> Found:
        """The same, where the pictures were those of `indices` in a larger source."""

    def scores(self, source: Any) -> Figures:
        """The figures, of a source that these pictures are from."""


class Task(Protocol):
    """What training asks of a task.

    Attributes:
        name: `classify`, `detect` or `segment`.
        recipe: the name of the one that is taken where none is named.
        figures: the kind that an evaluation comes to.
        measures: of these, what a report shows, the one that decides first.
        counted: what there is so much of in `amounts`.
    """

    name: str
    recipe: str
    figures: type[Figures]
    measures: tuple[Measure, ...]
    counted: str

    def open(self, data: str | Path, split: str | None) -> Pictures:
        """The pictures of a split with what they teach.

        Raises:
            DataError: the data cannot be read.
        """

    def check(self, source: Pictures) -> None:
        """
        Raises:
            DataError: nothing can be learnt from it.
        """

    def look_over(self, train: Pictures, val: Pictures, decode: bool, workers: int) -> tuple[list[str], bool]:
        """What is odd about the data, a line each, the worst last; and whether that is a fault.

        `decode` tells whether every picture must be decoded for it.
        """

    def amounts(self, source: Pictures) -> NDArray[np.int64]:
        """How much there is of each class (K,), for the report."""

    def check_recipe(self, recipe: Recipe) -> None:
        """
        Raises:
            ConfigError: the recipe asks for what this task does not do.
        """

    def augmentation(self, recipe: Recipe) -> Callable[..., Any]:
        """From encoded pictures, and their annotations, to training pictures: see `AugmentedPictures`."""

    def loss(
        self,
        facts: RunFacts,
        accelerator: Accelerator,
        model: nn.Module,
        average: nn.Module | None,
        check: Callable[[], None],
    ) -> Loss:
        """What a step minimises.

        Args:
            model: as it is run, prepared by accelerate.
            average: the moving average of its weights, if any.
            check: called where this takes long; may raise.
        """

    def find(self, engine: Engine, source: Pictures, showing: Showing) -> Found:
        """What an engine makes of the pictures of a source.

        Raises:
            DataError: no picture could be read.
        """

    def explained(self, found: Any, source: Pictures) -> dict[str, Any]:
        """What a report says of it, of `RunRecord`: `predictions`, or `class_tables` and `shown`."""

    def joined(self, parts: Sequence[Any]) -> Found:
        """What was found in parts of a source, as one."""
