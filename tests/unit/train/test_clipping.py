"""Adaptive clipping against timm's, which computes the same in more passes."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from vitesse.train.optimizer import clip_units


@pytest.mark.parametrize("share", [0.02, 0.5, 1000.0])
def test_units_are_clipped_as_timm_clips_them(share: float) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5), nn.Linear(5, 2)
    )
    nn.init.zeros_(ours[3].bias)
    ours[:4](3 * torch.randn(4, 3, 8, 8)).pow(2).mean().backward()  # the last layer has no gradient
    theirs = copy.deepcopy(ours)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.grad = None if mine.grad is None else mine.grad.clone()
    before = [parameter.grad.clone() for parameter in ours[:4].parameters()]
    clip_units(ours, share)
    adaptive_clip_grad(theirs.parameters(), share)
    after = [parameter.grad for parameter in ours[:4].parameters()]
    for mine, other in zip(after, theirs.parameters(), strict=False):
        torch.testing.assert_close(mine, other.grad)
    same = [torch.equal(mine, old) for mine, old in zip(after, before, strict=True)]
    assert all(same) == (share == 1000.0)
