"""Accuracy of whatever names a model, on labelled pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitesse.data.sources import open_source, take
from vitesse.metrics import score, with_classes
from vitesse.predictors import load
from vitesse.spec import to_mapping

if TYPE_CHECKING:
    from vitesse.runtime.artefact import Artefact


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` measured: `Scores`, and which model, engine and precision they belong to."""

    model: str
    engine: str
    precision: str
    top1: float
    top5: float
    images: int
    refused: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON record."""
        return to_mapping(self)


def evaluate(
    data: str | Path,
    *,
    model: str | Path | Artefact | None = None,
    engine: str = "auto",
    arch: str | None = None,
    split: str | None = "test",
    batch_size: int = 64,
    limit: int | None = None,
    threads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Evaluation:
    """Accuracy of an artefact, a checkpoint or a published model on labelled pictures.

    Args:
        data: anything `open_source` reads.
        model, engine, arch, threads, image_size: see `vitesse.load`.
        split: of `data`.
        batch_size: pictures a run of the model.
        limit: at most so many pictures, drawn by seed 0.

    Raises:
        DataError: the data cannot be read, or its classes are not the model's.
        VitesseError: the model cannot be loaded, see `vitesse.load`.
    """
    found = take(open_source(data, split), limit)
    predictor = load(
        model, engine=engine, arch=arch, threads=threads, image_size=image_size, batch_size=batch_size
    )
    manifest = predictor.artefact.manifest
    source = with_classes(found, manifest.class_names)
    fixed = predictor.artefact.input_shape[0]
    scores = score(predictor.engine, source, manifest.preprocess, batch_size=fixed or batch_size)
    return Evaluation(
        model=manifest.model.name, engine=predictor.engine.name, precision=manifest.precision, **vars(scores)
    )
