"""Logits to labels, the same for every engine. Shape suffixes: B pictures, K classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import ConfigError, EngineError
from vitesse.results import Prediction


def softmax(logits_BK: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities (B, K) float64 that sum to 1 a row, for logits of any finite size."""
    x_BK = logits_BK.astype(np.float64)
    x_BK -= x_BK.max(axis=1, keepdims=True)
    np.exp(x_BK, out=x_BK)
    x_BK /= x_BK.sum(axis=1, keepdims=True)
    return x_BK


def top_k(logits_BK: NDArray[Any], class_names: Sequence[str], k: int) -> list[tuple[Prediction, ...]]:
    """The k likeliest classes of each row, highest score first; of equal scores the lower index first.

    Args:
        logits_BK: finite logits.
        class_names: K names.
        k: how many; all K when it is larger.

    Raises:
        ConfigError: k is less than 1.
        EngineError: the logits are not (B, K) for K class names.
    """
    if k < 1:
        raise ConfigError(f"top_k: expected at least 1, got {k}")
    if logits_BK.ndim != 2 or logits_BK.shape[1] != len(class_names):
        raise EngineError(f"expected logits (B, {len(class_names)}), one a class name, got {logits_BK.shape}")
    scores_BK = softmax(logits_BK)
    order_BK = np.argsort(-scores_BK, axis=1, kind="stable")[:, :k]
    return [
        tuple(
            Prediction(label=class_names[index], index=index, score=min(1.0, float(scores_K[index])))
            for index in order_K.tolist()
        )
        for scores_K, order_K in zip(scores_BK, order_BK, strict=True)
    ]
