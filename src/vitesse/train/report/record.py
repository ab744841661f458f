"""What a report is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vitesse.data.contract import Pictures


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What the model said of each validation picture that could be read.

    Attributes:
        labels_N, firsts_N: the true class and the one that came first, int64.
        confidences_N, label_probs_N: probability of the first class and of the true one, float32.
        pictures_N: index in `source`, int64.
    """

    labels_N: NDArray[np.int64]
    firsts_N: NDArray[np.int64]
    confidences_N: NDArray[np.float32]
    label_probs_N: NDArray[np.float32]
    pictures_N: NDArray[np.int64]
    source: Pictures

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure of an evaluation, a share from 0 to 1.

    Attributes:
        key: in the rows of epochs.
        name: for a person, on a tile and in a legend.
        short: in a table.
    """

    key: str
    name: str
    short: str


TOP1 = Measure(key="top1", name="first guess right", short="top-1")
TOP5 = Measure(key="top5", name="among the first five", short="top-5")


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """A figure for each class, a share from 0 to 1; None of a class that is nowhere."""

    name: str
    explained: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A drawn picture and what to say of it."""

    jpeg: bytes
    text: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A training run as far as it has come.

    Rows may lack any key but `step` and `epoch`; a value that is NaN or infinite is shown as such.

    Attributes:
        model: `name`, `params`, `macs` (or None), `image_size`, `num_classes`.
        recipe: every setting of the run.
        provenance: command, commit, versions, data fingerprint and whatever else tells where it came from.
        status: `finished`, or what else the run is doing or was ended by.
        train_counts, val_counts: pictures of each class.
        notes: one line each, such as a warning about the data.
        steps: rows of `step`, `epoch` (a fraction), `loss`, `lr`, `grad_norm`, `img_per_s`, and `data_s`,
            `forward_s`, `backward_s`, `update_s`: mean seconds a step since the row before.
        epochs: rows of `epoch` (whole, from 1), `loss`, `seconds` (of training since the run began),
            `skipped` (steps), and where it was evaluated those of `measures`, for classes also `nll`, `ece`.
        measures: the figures of an evaluation, the one that decides first.
        counted: what `train_counts` and `val_counts` are numbers of.
        judged: held-out pictures that were judged last.
        predictions: of the latest evaluation, where pictures have one class each.
        class_tables: of the latest evaluation, where they have not.
        shown: of the latest evaluation, what was found in some held-out pictures.
    """

    title: str
    model: Mapping[str, Any]
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    status: str
    class_names: tuple[str, ...]
    train_counts: NDArray[np.int64]
    val_counts: NDArray[np.int64]
    notes: tuple[str, ...] = ()
    steps: Sequence[Mapping[str, Any]] = ()
    epochs: Sequence[Mapping[str, Any]] = ()
    measures: tuple[Measure, ...] = (TOP1, TOP5)
    counted: str = "picture"
    judged: int = 0
    predictions: Predictions | None = None
    class_tables: tuple[ClassTable, ...] = ()
    shown: tuple[Shown, ...] = ()
