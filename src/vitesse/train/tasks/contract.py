"""What a task is to the training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from vitesse.data.contract import Pictures
from vitesse.data.loader import Batch
from vitesse.metrics import Examination
from vitesse.train.recipe import Recipe
from vitesse.train.report import Measure

if TYPE_CHECKING:
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


class LookedOver(Protocol):
    """What is odd about data."""

    @property
    def faulty(self) -> bool:
        """Whether strict training refuses it."""

    def lines(self) -> list[str]:
        """For a person, the worst last."""

    def to_dict(self) -> dict[str, Any]:
        """All of it, with every picture's name, as plain JSON values."""


class Task(Protocol):
    """What training asks of a task.

    Attributes:
        recipe: the name of the one that is taken where none is named.
        exam: how its pictures are opened and scored.
        measures: of the figures, what a report shows, the one that decides first.
        counted: what there is so much of in `amounts`.
    """

    recipe: str
    exam: Examination
    measures: tuple[Measure, ...]
    counted: str

    def check(self, source: Pictures) -> None:
        """
        Raises:
            DataError: nothing can be learnt from it.
        """

    def look_over(
        self, train: Pictures, val: Pictures, decode: bool, workers: int, check: Callable[[], None]
    ) -> LookedOver:
        """What is odd about the data.

        Args:
            decode: whether every picture must be decoded for it.
            workers: threads.
            check: called before every picture, in these threads; may raise.
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

    def explained(self, found: Any, source: Pictures) -> dict[str, Any]:
        """What a report says of it, of `RunRecord`: `predictions`, or `class_tables` and `shown`."""
