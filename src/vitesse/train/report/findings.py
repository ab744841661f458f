"""The figures that a report shows, from the rows and predictions of a run.

Shape suffixes: S points of a curve, N pictures, M mistakes, K classes, P pairs of them, G bins of confidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.train.report.record import Predictions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STAGES = ("data", "forward", "backward", "update")
BINS = 15


def curve(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[Floats, Floats]:
    """(epochs_S, values_S) of the rows that have the key."""
    points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    x_S, y_S = np.asarray(points, np.float64).reshape(-1, 2).T
    return x_S, y_S


def smoothed(y_S: Floats, reach: int) -> Floats:
    """Mean of the finite values at most `reach` points away; NaN where there are none."""
    finite_S = np.isfinite(y_S)
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(part_S)]) for part_S in (np.where(finite_S, y_S, 0.0), finite_S)
    )
    at_S = np.arange(len(y_S))
    first_S, end_S = np.maximum(at_S - reach, 0), np.minimum(at_S + reach + 1, len(y_S))
    counts_S = counts[end_S] - counts[first_S]
    return np.where(counts_S > 0, (sums[end_S] - sums[first_S]) / np.maximum(counts_S, 1), np.nan)


def thinned(y_S: Floats, most: int) -> Ints:
    """Indices of at most `most` points: the ends, and the smallest and largest of each stretch between.

    Of a stretch without a finite value the first point stands for all.
    """
    if len(y_S) <= most:
        return np.arange(len(y_S))
    kept = {0, len(y_S) - 1}
    for stretch in np.array_split(np.arange(1, len(y_S) - 1), (most - 2) // 2):
        finite = stretch[np.isfinite(y_S[stretch])]
        if len(finite):
            kept |= {int(finite[y_S[finite].argmin()]), int(finite[y_S[finite].argmax()])}
        else:
            kept.add(int(stretch[0]))
    return np.asarray(sorted(kept))


def stage_seconds(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean seconds that a step spends in each stage, of the rows that have them all; empty where none has."""
    spans = np.diff(np.asarray([0, *(row["step"] for row in steps)], np.float64))
    seconds = np.asarray([[row.get(f"{stage}_s") for stage in STAGES] for row in steps], np.float64)
    whole = np.flatnonzero(np.isfinite(seconds.reshape(-1, len(STAGES))).all(axis=1))
    if spans[whole].sum() <= 0:
        return {}
    means = np.average(seconds[whole], axis=0, weights=spans[whole])
    return dict(zip(STAGES, means.tolist(), strict=True)) if means.sum() > 0 else {}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """So many pictures of one class that were taken for another."""

    label: int
    first: int
    pictures: int


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How the classes fared.

    Attributes:
        right_N: whether the first class is the true one.
        shown_K, named_K, hits_K: pictures of each class, how often it came first, and rightly so.
        recall_K, precision_K: `hits_K` over the one and the other; NaN over nothing.
        mistakes: every pair of classes that was confused, the most frequent first.
        surest_mistakes: positions in the predictions of those that are wrong, the highest confidence first.
    """

    predictions: Predictions
    right_N: NDArray[np.bool_]
    shown_K: Ints
    named_K: Ints
    hits_K: Ints
    recall_K: Floats
    precision_K: Floats
    mistakes: tuple[Pair, ...]
    surest_mistakes: Ints


def judge(predictions: Predictions, num_classes: int) -> Judgement:
    """What predictions say of each class."""
    labels_N, firsts_N = predictions.labels_N, predictions.firsts_N
    right_N = np.equal(labels_N, firsts_N)
    shown_K, named_K, hits_K = (
        np.bincount(part_N, minlength=num_classes) for part_N in (labels_N, firsts_N, labels_N[right_N])
    )
    wrong = np.flatnonzero(~right_N & np.isfinite(predictions.confidences_N))
    return Judgement(
        predictions=predictions,
        right_N=right_N,
        shown_K=shown_K,
        named_K=named_K,
        hits_K=hits_K,
        recall_K=_shares(hits_K, shown_K),
        precision_K=_shares(hits_K, named_K),
        mistakes=_mistakes(labels_N[~right_N], firsts_N[~right_N], num_classes),
        surest_mistakes=wrong[np.argsort(-predictions.confidences_N[wrong], kind="stable")],
    )


def _mistakes(labels_M: Ints, firsts_M: Ints, num_classes: int) -> tuple[Pair, ...]:
    codes_P, counts_P = np.unique(labels_M * num_classes + firsts_M, return_counts=True)
    order = np.argsort(-counts_P, kind="stable")
    return tuple(
        Pair(label=code // num_classes, first=code % num_classes, pictures=count)
        for code, count in zip(codes_P[order].tolist(), counts_P[order].tolist(), strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How often the model is right at each confidence; bins that no picture is in are NaN."""

    counts_G: Ints
    confidence_G: Floats
    accuracy_G: Floats
    ece: float

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return self._mean(self.accuracy_G)

    @property
    def overconfidence(self) -> float:
        """Mean confidence less the share that is right."""
        return self._mean(self.confidence_G) - self.accuracy

    def _mean(self, values_G: Floats) -> float:
        full_G = self.counts_G > 0
        return float(np.average(values_G[full_G], weights=self.counts_G[full_G]))


def calibration(confidences_N: NDArray[np.float32], right_N: NDArray[np.bool_]) -> Calibration | None:
    """Expected calibration error over bins of equal width ; None without a finite confidence."""
    finite_N = np.isfinite(confidences_N)
    if not finite_N.any():
        return None
    values_N, hits_N = confidences_N[finite_N].astype(np.float64), right_N[finite_N]
    bins_N = np.clip(np.ceil(values_N * BINS).astype(int) - 1, 0, BINS - 1)
    counts_G = np.bincount(bins_N, minlength=BINS)
    confidence_G = _shares(np.bincount(bins_N, values_N, BINS), counts_G)
    accuracy_G = _shares(np.bincount(bins_N, hits_N, BINS), counts_G)
    gaps_G = np.nan_to_num(np.abs(confidence_G - accuracy_G))
    ece = float((gaps_G * counts_G).sum() / counts_G.sum())
    return Calibration(counts_G=counts_G, confidence_G=confidence_G, accuracy_G=accuracy_G, ece=ece)


def _shares(parts: NDArray[Any], wholes: Ints) -> Floats:
    return np.where(wholes > 0, parts / np.maximum(wholes, 1), np.nan)
