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
            `skipped` (steps), and where it was evaluated `top1`, `top5`, `nll`, `ece`.
        predictions: of the latest evaluation.
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
    predictions: Predictions | None = None
