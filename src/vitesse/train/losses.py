"""Targets and losses, with or without a teacher.

Shape suffixes: B images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

RETRIEVAL_TEMPERATURE = 0.1


@dataclass(frozen=True)
class Targets:
    """What the pictures of a source should be taken for.

    Attributes:
        labels_N: class indices.
        smoothing: share of a target that is spread over all classes.
        shares_NK: a teacher's target shares of every picture, mixed in with weight `alpha`.
    """

    labels_N: Tensor
    num_classes: int
    smoothing: float
    shares_NK: Tensor | None = None
    alpha: float = 0.0

    def of(self, indices_B: Tensor) -> Tensor:
        """The target shares (B, K) of some pictures."""
        targets_BK = smooth_targets(self.labels_N[indices_B], self.num_classes, self.smoothing)
        if self.shares_NK is None:
            return targets_BK
        return torch.lerp(targets_BK, self.shares_NK[indices_B].float(), self.alpha)


def smooth_targets(labels_B: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Target shares (B, K): 1 - smoothing on the label, the rest spread over all classes."""
    return F.one_hot(labels_B, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def soft_cross_entropy(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Mean cross-entropy against target shares, in nats."""
    return F.cross_entropy(logits_BK.float(), targets_BK)


def binary_cross_entropy(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Mean over images and classes of the cross-entropy of each class by itself, in nats."""
    return F.binary_cross_entropy_with_logits(logits_BK.float(), targets_BK)


def distillation_loss(
    logits_BK: Tensor, teacher_BK: Tensor, kind: Literal["soft", "hard"], temperature: float
) -> Tensor:
    """Distance to a teacher's logits.

    `soft` is the KL divergence at a temperature, times its square, a mean over images
    (arXiv 1503.02531, section 2); `hard` is the cross-entropy with the teacher's
    first choice (DeiT, arXiv 2012.12877, section 4).
    """
    if kind == "hard":
        return F.cross_entropy(logits_BK.float(), teacher_BK.argmax(-1))
    student_BK = F.log_softmax(logits_BK.float() / temperature, -1)
    target_BK = F.log_softmax(teacher_BK.float() / temperature, -1)
    return F.kl_div(student_BK, target_BK, reduction="batchmean", log_target=True) * temperature**2


def teacher_shares(logits_BK: Tensor, kind: Literal["soft", "hard"], temperature: float) -> Tensor:
    """A teacher's logits as target shares (B, K), to be mixed with labels once and for all."""
    if kind == "hard":
        return F.one_hot(logits_BK.argmax(-1), logits_BK.shape[-1]).float()
    return torch.softmax(logits_BK.float() / temperature, -1)


def retrieval_loss(found_BC: Tensor, own_BC: Tensor) -> Tensor:
    """How well what came out of a multiplexed model's slots tells whose slot it was, in nats.

    Cross-entropy of choosing, for every row of `found_BC`, its own row of `own_BC` among the whole batch, by
    the cosine at `RETRIEVAL_TEMPERATURE`. DataMUX (arXiv 2202.09318, section 3.3) retrieves words; images
    have none, so that here whole images are retrieved. No gradient reaches `own_BC`.
    """
    own_BC = own_BC.detach().float()
    own_BC = own_BC - own_BC.mean(0)  # what all images share tells none from the others
    likeness_BB = F.normalize(found_BC.float(), dim=1) @ F.normalize(own_BC, dim=1).T
    return F.cross_entropy(
        likeness_BB / RETRIEVAL_TEMPERATURE, torch.arange(len(found_BC)).to(found_BC.device)
    )
