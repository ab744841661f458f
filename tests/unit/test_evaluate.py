"""Accuracy: counted as torchmetrics counts it, whatever cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy

from vitesse.data.sources import FileSource, open_source
from vitesse.errors import DataError
from vitesse.metrics import score, top_hits
from vitesse.runtime.postprocess import top_k
from vitesse.spec import PreprocessSpec

SPEC = PreprocessSpec(image_size=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class MeanColour:
    """Logits are the mean blue, green and red of a picture."""

    name = "mean"

    def run(self, batch_BCHW: np.ndarray) -> tuple[np.ndarray, ...]:
        return (batch_BCHW.mean(axis=(2, 3))[:, ::-1],)


@given(seed=st.integers(0, 10_000), images=st.integers(1, 30), classes=st.integers(5, 12))
@settings(max_examples=40, deadline=None)
def test_hits_are_those_of_torchmetrics(seed: int, images: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits_BK = rng.normal(size=(images, classes)).astype(np.float32)
    labels_B = rng.integers(0, classes, images)
    for k in (1, 5):
        expected = multiclass_accuracy(
            torch.from_numpy(logits_BK), torch.from_numpy(labels_B), classes, top_k=k, average="micro"
        )
        assert top_hits(logits_BK, labels_B, k) / images == pytest.approx(expected.item())


@given(seed=st.integers(0, 10_000), levels=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_ties_are_broken_as_predictions_are(seed: int, levels: int) -> None:
    """int8 models give few different logits; one that gives all alike knows nothing."""
    rng = np.random.default_rng(seed)
    logits_BK = rng.integers(0, levels, (20, 9)).astype(np.float32)
    labels_B = rng.integers(0, 9, 20)
    names = tuple(map(str, range(9)))
    for k in (1, 5):
        shown = [{p.index for p in row} for row in top_k(logits_BK, names, k)]
        expected = sum(label in row for label, row in zip(labels_B.tolist(), shown, strict=True))
        assert top_hits(logits_BK, labels_B, k) == expected


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_every_readable_picture_counts_once(
    tmp_path: Path, paint_classes: Callable[..., Path], batch_size: int
) -> None:
    root = paint_classes(tmp_path, per_class=9)
    (root / "blue" / "000.png").write_bytes(b"")
    (root / "red" / "008.png").unlink()
    (root / "red" / "008.png").mkdir()
    source = open_source(root)
    wrong = FileSource(
        [Path(source.name(i)) for i in range(len(source))], (source.labels + 1) % 3, ("a", "b", "c")
    )
    good, bad = (score(MeanColour(), s, SPEC, batch_size=batch_size) for s in (source, wrong))
    assert (good.top1, good.images, good.refused) == (1.0, 25, 2)
    assert bad.top1 == 0.0


def test_labels_beyond_the_models_classes_are_named(
    tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    root = paint_classes(tmp_path, per_class=1)
    files = sorted(root.rglob("*.png"))
    source = FileSource(files, [0, 1, 7], [str(i) for i in range(8)])
    with pytest.raises(DataError, match="the model has 3 classes, the data has label 7"):
        score(MeanColour(), source, SPEC)


def test_nothing_readable_is_an_error_not_a_zero(tmp_path: Path) -> None:
    source = FileSource([tmp_path / "absent.png"], [0], ["a"])
    with pytest.raises(DataError, match="no picture could be read"):
        score(MeanColour(), source, SPEC)
