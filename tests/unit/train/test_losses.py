"""Losses against float64 formulas."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from vitesse.train.losses import (
    Targets,
    distillation_loss,
    retrieval_loss,
    smooth_targets,
    soft_cross_entropy,
    teacher_shares,
)

logits = npst.arrays(np.float32, (4, 5), elements=st.floats(-20, 20, width=32))


def softmax(x_BK: np.ndarray) -> np.ndarray:
    shifted = np.exp(x_BK - x_BK.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


@given(student=logits, teacher=logits, temperature=st.floats(0.5, 8))
@settings(max_examples=40, deadline=None)
def test_soft_distillation_is_kl_times_temperature_squared(
    student: np.ndarray, teacher: np.ndarray, temperature: float
) -> None:
    p, q = (
        softmax(teacher.astype(np.float64) / temperature),
        softmax(student.astype(np.float64) / temperature),
    )
    expected = (p * (np.log(p) - np.log(q))).sum(1).mean() * temperature**2
    loss = distillation_loss(torch.from_numpy(student), torch.from_numpy(teacher), "soft", temperature)
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-4, atol=1e-4)


@given(student=logits, teacher=logits)
@settings(max_examples=20, deadline=None)
def test_hard_distillation_is_cross_entropy_with_the_first_choice(
    student: np.ndarray, teacher: np.ndarray
) -> None:
    chosen = softmax(student.astype(np.float64))[np.arange(4), teacher.argmax(1)]
    loss = distillation_loss(torch.from_numpy(student), torch.from_numpy(teacher), "hard", 3.0)
    np.testing.assert_allclose(loss.item(), -np.log(chosen).mean(), rtol=1e-4, atol=1e-4)
    shares = teacher_shares(torch.from_numpy(teacher), "hard", 1.0)
    torch.testing.assert_close(soft_cross_entropy(torch.from_numpy(student), shares), loss)


def test_smoothed_targets_are_shares() -> None:
    targets_BK = smooth_targets(torch.tensor([1, 3]), 4, 0.2)
    expected = torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.05, 0.05, 0.05, 0.85]])
    torch.testing.assert_close(targets_BK, expected)


def test_soft_cross_entropy_is_torchs_for_smoothed_labels() -> None:
    logits_BK, labels_B = torch.randn(6, 9), torch.arange(6)
    expected = torch.nn.functional.cross_entropy(logits_BK, labels_B, label_smoothing=0.1)
    torch.testing.assert_close(soft_cross_entropy(logits_BK, smooth_targets(labels_B, 9, 0.1)), expected)


@given(found=logits, own=logits)
@settings(max_examples=30, deadline=None)
def test_retrieval_is_cross_entropy_over_the_images_of_the_batch(found: np.ndarray, own: np.ndarray) -> None:
    found, own = found + 0.1 * np.eye(4, 5, dtype=np.float32), own + np.eye(4, 5, k=1, dtype=np.float32)
    centred = own - own.mean(0)
    unit_found, unit_own = (
        x.astype(np.float64) / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (found, centred)
    )
    chosen = np.diag(softmax(unit_found @ unit_own.T / 0.1))
    loss = retrieval_loss(torch.from_numpy(found), torch.from_numpy(own))
    np.testing.assert_allclose(loss.item(), -np.log(chosen).mean(), rtol=1e-3, atol=1e-3)


def test_retrieval_teaches_what_comes_out_and_not_what_goes_in() -> None:
    found, own = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    retrieval_loss(found, own).backward()
    assert found.grad is not None
    assert own.grad is None


def test_targets_are_smoothed_labels_with_a_teachers_shares_mixed_in() -> None:
    labels_N, shares_NK = torch.tensor([2, 0, 1, 2]), torch.softmax(torch.randn(4, 3), 1)
    chosen_B = torch.tensor([3, 1])
    alone_BK = Targets(labels_N, 3, 0.1).of(chosen_B)
    torch.testing.assert_close(alone_BK, torch.tensor([[1, 1, 28], [28, 1, 1]]) / 30)
    taught_BK = Targets(labels_N, 3, 0.1, shares_NK, 0.25).of(chosen_B)
    torch.testing.assert_close(taught_BK, 0.75 * alone_BK + 0.25 * shares_NK[chosen_B])
