from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax as scipy_softmax

from vitesse.errors import ConfigError, EngineError
from vitesse.runtime.postprocess import softmax, top_k

no_deadline = settings(deadline=None)  # machines are shared
NAMES = tuple("abcdef")
rows = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=6, max_size=6)


@no_deadline
@given(st.lists(rows, min_size=1, max_size=4))
def test_softmax_is_scipys(values):
    logits_BK = np.asarray(values, np.float32)
    np.testing.assert_allclose(
        softmax(logits_BK), scipy_softmax(logits_BK.astype(np.float64), axis=1), rtol=1e-12
    )


def test_softmax_leaves_its_input_alone():
    logits_BK = np.ones((1, 3), np.float64)
    softmax(logits_BK)
    assert (logits_BK == 1).all()


@no_deadline
@given(rows, st.integers(1, 9))
def test_top_k_is_a_full_sort(values, k):
    (found,) = top_k(np.asarray([values], np.float32), NAMES, k)
    scores = scipy_softmax(np.asarray(values, np.float32).astype(np.float64))
    expected = sorted(range(6), key=lambda index: (-scores[index], index))[:k]
    assert [p.index for p in found] == expected
    assert [p.label for p in found] == [NAMES[index] for index in expected]
    np.testing.assert_allclose([p.score for p in found], scores[expected])


def test_each_row_gets_its_own():
    found = top_k(np.eye(6, dtype=np.float16)[[2, 4]] * 9, NAMES, 1)
    assert [p.label for (p,) in found] == ["c", "e"]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="top_k: expected at least 1, got 0"):
        top_k(np.zeros((1, 6)), NAMES, 0)
    with pytest.raises(EngineError, match=r"expected logits \(B, 6\).* got \(1, 5\)"):
        top_k(np.zeros((1, 5)), NAMES, 1)
    with pytest.raises(EngineError, match="expected logits"):
        top_k(np.zeros(6), NAMES, 1)
