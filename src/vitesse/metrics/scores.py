"""What a model said of each picture, and the figures that come of it.

Shape suffixes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.spec import to_mapping

CALIBRATION_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Shares of pictures whose class is first, or among the first five; `refused` could not be read.

    `ece` is the expected calibration error, see `calibration_error`; `nll` the mean negative log-likelihood
    of the labels in nats. `slots` are, of a multiplexed model, the shares of the pictures in each slot whose
    class is first.
    """

    top1: float
    top5: float
    ece: float
    nll: float
    images: int
    refused: int = 0
    slots: tuple[float, ...] = ()

    @property
    def best_by(self) -> float:
        """What makes weights the best ones."""
        return self.top1

    def brief(self) -> dict[str, float]:
        """The two figures to know, by their keys."""
        return {"top1": self.top1, "top5": self.top5}

    def explain(self) -> str:
        """In a few words."""
        return f"top-1 {self.top1:.2%}, top-5 {self.top5:.2%}"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; without slots where there are none."""
        record = to_mapping(self)
        return record if self.slots else {key: value for key, value in record.items() if key != "slots"}


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What a model said of every readable picture, in the order they were shown.

    Attributes:
        mux_width: pictures that share a pass.
        pictures_B: index in the source.
        slots_B: where in its group a picture was; 0 for all of a model that takes them alone.
        labels_B: the right class.
        ranks_B: how many classes came before the label.
        firsts_B: the class that came first.
        confidences_B: probability of the first class.
        label_probs_B: probability of the label.
        losses_B: negative log-likelihood of the label in nats, finite where the probability vanishes.
    """

    mux_width: int
    pictures_B: NDArray[np.int64]
    slots_B: NDArray[np.int64]
    labels_B: NDArray[np.int64]
    ranks_B: NDArray[np.int64]
    firsts_B: NDArray[np.int64]
    confidences_B: NDArray[np.float32]
    label_probs_B: NDArray[np.float32]
    losses_B: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        logits_BK: NDArray[np.float32],
        *,
        labels_B: NDArray[np.int64],
        pictures_B: NDArray[np.int64],
        mux_width: int = 1,
    ) -> Outcomes:
        """Those of one batch of whole groups, by its finite logits."""
        x_BK = logits_BK.astype(np.float64)
        x_BK -= x_BK.max(axis=1, keepdims=True)
        log_sums_B = np.log(np.exp(x_BK).sum(axis=1))
        losses_B = log_sums_B - np.take_along_axis(x_BK, labels_B[:, None], axis=1)[:, 0]
        return cls(
            mux_width=mux_width,
            pictures_B=pictures_B,
            slots_B=np.arange(len(pictures_B)) % mux_width,
            labels_B=labels_B,
            ranks_B=label_ranks(logits_BK, labels_B),
            firsts_B=logits_BK.argmax(axis=1),
            confidences_B=np.exp(-log_sums_B).astype(np.float32),
            label_probs_B=np.exp(-losses_B).astype(np.float32),
            losses_B=losses_B,
        )

    def of_pictures(self, indices: NDArray[np.int64]) -> Outcomes:
        """The same, where the pictures were those of `indices` in a larger source."""
        return replace(self, pictures_B=indices[self.pictures_B])

    @classmethod
    def joined(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """Those of several batches of one model, in their order."""
        columns = [field.name for field in fields(cls) if field.name != "mux_width"]
        return cls(
            mux_width=parts[0].mux_width,
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns},
        )

    def scores(self, source: Sized) -> Scores:
        """The figures, of the source of these pictures; a slot that no picture was in is left out."""
        hits_B = self.ranks_B < 1
        slots = [hits_B[self.slots_B == slot] for slot in range(self.mux_width)]
        return Scores(
            top1=float(hits_B.mean()),
            top5=float((self.ranks_B < 5).mean()),
            ece=calibration_error(self.confidences_B, hits_B),
            nll=float(self.losses_B.mean()),
            images=len(hits_B),
            refused=len(source) - len(hits_B),
            slots=tuple(float(hits.mean()) for hits in slots if len(hits)) if len(slots) > 1 else (),
        )

    def agreement(self, other: Outcomes) -> float:
        """Share of the pictures in both whose first class is the same."""
        _, mine, theirs = np.intersect1d(self.pictures_B, other.pictures_B, return_indices=True)
        return float((self.firsts_B[mine] == other.firsts_B[theirs]).mean())


def label_ranks(logits_BK: NDArray[np.float32], labels_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes come before the label (B,), of finite logits; of equal ones the lower index first."""
    own_B1 = np.take_along_axis(logits_BK, labels_B[:, None], axis=1)
    tied_before_BK = (logits_BK == own_B1) & (np.arange(logits_BK.shape[1]) < labels_B[:, None])
    ranks_B: NDArray[np.int64] = ((logits_BK > own_B1) | tied_before_BK).sum(axis=1)
    return ranks_B


def calibration_error(confidences_B: NDArray[np.float32], hits_B: NDArray[np.bool_]) -> float:
    """How far confidence lies from accuracy, 0 to 1: the expected calibration error of the first class.

    As Guo et al. define it (arXiv 1706.04599): in 15 bins of equal width, of which each holds its upper edge,
    the difference of both means, weighted by the pictures in the bin.
    """
    inner_edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    bins_B = np.searchsorted(inner_edges, confidences_B, side="left")
    gaps = np.bincount(bins_B, weights=hits_B - confidences_B.astype(np.float64))
    return float(np.abs(gaps).sum() / len(bins_B))
