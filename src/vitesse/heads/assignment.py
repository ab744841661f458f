"""Which position of a dense detector answers for which object: task-aligned assignment.

A position's alignment with an object is score^0.5 * IoU^6 of what it predicts now (arXiv 2108.07755 with the
exponents of arXiv 2405.14458). One object to many positions teaches fast; one object to one position teaches
not to repeat, so that nothing has to be suppressed afterwards.

Shape suffixes: G objects, P positions, C candidates of an object, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitesse.heads.detection import Target

SCORE_POWER, IOU_POWER = 0.5, 6.0
CANDIDATES = 10
SCORE_FLOOR = 0.1
"""Of an object's best position, so that an object that nothing overlaps yet is learned too."""
TINY = 1e-30
CHUNK = 256
"""Objects that meet all positions at once: what bounds the memory for thousands of them."""


class Assignment(NamedTuple):
    """What each position of an image shall predict.

    Attributes:
        owner_P: index of the object it answers for, -1 for none.
        share_P: its alignment beside that of the object's best position, 0..1; 0 without object.
        score_P: what its score for the object's class shall be, 0..1: the share of the object's best IoU.
    """

    owner_P: Tensor
    share_P: Tensor
    score_P: Tensor


class Candidates(NamedTuple):
    """For every object the positions that fit it best, the best first; `valid_GC` where there are so many."""

    position_GC: Tensor
    alignment_GC: Tensor
    iou_GC: Tensor
    valid_GC: Tensor


@torch.no_grad()
def assign(
    scores_PK: Tensor, boxes_P4: Tensor, points_P2: Tensor, strides_P: Tensor, target: Target, *, unique: bool
) -> Assignment:
    """The assignment of one image's objects to positions.

    A position takes part where it lies inside the object's box, or within half a stride of its centre.

    Args:
        scores_PK, boxes_P4: predicted; scores in 0..1.
        points_P2: the positions in pixels.
        strides_P: pixels from each position to its neighbour.
        unique: one position for each object, the pairs with the highest alignment first; otherwise up to
            `CANDIDATES`, and a position that several objects want goes to the one it is best aligned with.
    """
    num_positions, num_objects = len(points_P2), len(target["boxes"])
    objects = zip(
        torch.split(target["boxes"].to(boxes_P4.dtype), CHUNK),
        torch.split(target["labels"], CHUNK),
        strict=True,
    )
    chunks = [_candidates(scores_PK, boxes_P4, points_P2, strides_P, *chunk) for chunk in objects]
    found = Candidates(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))
    proposed_GC = _first_choices(found, num_positions) if unique else found.valid_GC
    owner_P = _owners(found, proposed_GC, num_positions)
    objects_G1 = torch.arange(num_objects, device=owner_P.device)[:, None]
    won_GC = proposed_GC & (owner_P[found.position_GC] == objects_G1)
    position, (share_P, score_P) = found.position_GC[won_GC], torch.zeros(2, num_positions).to(points_P2)
    share_GC, score_GC = _goals(found, won_GC)
    share_P[position], score_P[position] = share_GC[won_GC], score_GC[won_GC]
    return Assignment(owner_P=owner_P.where(owner_P < num_objects, -1), share_P=share_P, score_P=score_P)


def _candidates(
    scores_PK: Tensor,
    boxes_P4: Tensor,
    points_P2: Tensor,
    strides_P: Tensor,
    boxes_G4: Tensor,
    labels_G: Tensor,
) -> Candidates:
    # Takes seconds to import, and only training needs it.
    from torchvision.ops import box_iou

    iou_GP = box_iou(boxes_G4, boxes_P4)
    alignment_GP = scores_PK.T[labels_G].pow(SCORE_POWER) * iou_GP.pow(IOU_POWER)
    centre_G2 = (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2
    reach_GP2 = torch.maximum((boxes_G4[:, 2:] - boxes_G4[:, :2])[:, None], strides_P[:, None]) / 2
    inside_GP = ((points_P2 - centre_G2[:, None]).abs() <= reach_GP2).all(2)
    alignment_GC, position_GC = alignment_GP.where(inside_GP, -1).topk(min(CANDIDATES, len(points_P2)), dim=1)
    return Candidates(
        position_GC=position_GC,
        alignment_GC=alignment_GC,
        iou_GC=iou_GP.gather(1, position_GC),
        valid_GC=alignment_GC >= 0,
    )


def _owners(found: Candidates, proposed_GC: Tensor, num_positions: int) -> Tensor:
    """The best aligned of the objects that propose to each position, the first of equals: (P,); G if none."""
    position = found.position_GC[proposed_GC]
    alignment = found.alignment_GC[proposed_GC]
    objects = proposed_GC.nonzero()[:, 0]
    best_P = found.alignment_GC.new_full((num_positions,), -1)
    best_P.scatter_reduce_(0, position, alignment, "amax")
    wins = alignment == best_P[position]
    nobody = torch.full((num_positions,), len(proposed_GC), device=position.device)
    return nobody.scatter_reduce_(0, position[wins], objects[wins], "amin")


def _first_choices(found: Candidates, num_positions: int) -> Tensor:
    """Which candidate each object gets where it may have one, as (G, C) with at most one True a row.

    A stable matching: every object asks its best candidate, and whoever is turned down asks the next.
    """
    num_objects, num_candidates = found.valid_GC.shape
    objects_G = torch.arange(num_objects, device=found.valid_GC.device)
    counts_G = found.valid_GC.sum(1)
    choice_G = torch.zeros_like(counts_G)
    while True:
        asks_GC = torch.arange(num_candidates, device=objects_G.device) == choice_G[:, None]
        asks_GC &= (choice_G < counts_G)[:, None]
        owner_P = _owners(found, asks_GC, num_positions)
        asked_G = found.position_GC.gather(1, choice_G.clamp(max=num_candidates - 1)[:, None])[:, 0]
        refused_G = (choice_G < counts_G) & (owner_P[asked_G] != objects_G)
        if not refused_G.any():
            return asks_GC
        choice_G = choice_G + refused_G


def _goals(found: Candidates, won_GC: Tensor) -> tuple[Tensor, Tensor]:
    """Alignment as a share of that of the object's best position, and that share of its best IoU: (G, C)."""
    best_G1 = found.alignment_GC.where(won_GC, 0).amax(1, keepdim=True)
    iou_G1 = found.iou_GC.where(won_GC, 0).amax(1, keepdim=True).clamp(min=SCORE_FLOOR)
    share_GC = (found.alignment_GC + TINY) / (best_G1 + TINY)
    return share_GC, share_GC * iou_G1
