"""Accuracy of whatever names a model, on labelled pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitesse.data.sources import open_source, take
from vitesse.metrics import score_in_groups, with_classes
from vitesse.predictors import load
from vitesse.runtime.multiplex import whole_groups
from vitesse.spec import to_mapping

if TYPE_CHECKING:
    from vitesse.runtime.artefact import Artefact


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` measured: `Scores`, and which model, engine and precision they belong to.

    Of a multiplexed model also `mux_width`, the top-1 of each slot, and `agreement`: the share of pictures
    whose label stays when they are grouped with others, each in the same slot; for it they are shown twice.
    """

    model: str
    engine: str
    precision: str
    top1: float
    top5: float
    images: int
    refused: int
    mux_width: int = 1
    slots: tuple[float, ...] = ()
    agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON record; what only multiplexed models have is left out for others."""
        left_out = () if self.mux_width > 1 else ("mux_width", "slots", "agreement")
        return {key: value for key, value in to_mapping(self).items() if key not in left_out}


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
    ensemble: bool = False,
) -> Evaluation:
    """Accuracy of an artefact, a checkpoint or a published model on labelled pictures.

    Args:
        data: anything `open_source` reads.
        model, engine, arch, threads, image_size: see `vitesse.load`.
        split: of `data`.
        batch_size: pictures a run of the model.
        limit: at most so many pictures, drawn by seed 0.
        ensemble: of a multiplexed model, show every picture in every slot and take the mean.

    Raises:
        DataError: the data cannot be read, or its classes are not the model's.
        VitesseError: the model cannot be loaded, see `vitesse.load`.
    """
    found = take(open_source(data, split), limit)
    predictor = load(
        model,
        engine=engine,
        arch=arch,
        threads=threads,
        image_size=image_size,
        batch_size=batch_size,
        ensemble=ensemble,
    )
    manifest = predictor.artefact.manifest
    source, width = with_classes(found, manifest.class_names), manifest.mux_width
    size = predictor.artefact.input_shape[0] or whole_groups(batch_size, width)
    scores, agreement = score_in_groups(
        predictor.engine, source, manifest.preprocess, batch_size=size, mux_width=width
    )
    return Evaluation(
        model=manifest.model.name,
        engine=predictor.engine.name,
        precision=manifest.precision,
        mux_width=width,
        agreement=agreement,
        **vars(scores),
    )
