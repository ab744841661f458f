"""Accuracy of whatever names a model, on pictures that say what is in them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.contract import Pictures
from vitesse.data.sources import take, unseen
from vitesse.errors import ConfigError, ImageError
from vitesse.metrics import (
    DENSE_BATCH,
    EXAMINATIONS,
    Figures,
    Showing,
    open_for,
    outcomes_in_groups,
    read_label_sets,
    score_label_sets,
    with_classes,
)
from vitesse.predictors import load
from vitesse.progress import track
from vitesse.runtime.multiplex import whole_groups
from vitesse.spec import to_mapping

if TYPE_CHECKING:
    from vitesse.runtime.artefact import Artefact
    from vitesse.runtime.engines import Engine
    from vitesse.runtime.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` measured: `Scores`, and which model, engine and precision they belong to.

    `img_per_s` counts everything from files to labels, `engine_img_per_s` the time in the engine alone; both
    are of this run, the first batch included, and no benchmark.

    With other labels also `labels_top1`: the share of `labels_images` pictures whose first class is among
    theirs; `labels_left_out` have none.

    Of a multiplexed model also `mux_width`, the top-1 of each slot, and `agreement`: the share of pictures
    whose label stays when they are grouped with others, each in the same slot; for it they are shown twice.
    """

    model: str
    engine: str
    precision: str
    top1: float
    top5: float
    ece: float
    nll: float
    images: int
    refused: int
    img_per_s: float
    engine_img_per_s: float
    labels_top1: float | None = None
    labels_images: int | None = None
    labels_left_out: int | None = None
    mux_width: int = 1
    slots: tuple[float, ...] = ()
    agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON record, without what was not asked for or only multiplexed models have."""
        left_out = () if self.mux_width > 1 else ("mux_width", "slots")
        record = to_mapping(self).items()
        return {key: value for key, value in record if value is not None and key not in left_out}


@dataclass(frozen=True, kw_only=True)
class DenseEvaluation:
    """What `evaluate` measured of a detector or segmenter: its `BoxScores` or `MapScores`.

    The rest is as of `Evaluation`.
    """

    model: str
    engine: str
    precision: str
    scores: Figures
    img_per_s: float
    engine_img_per_s: float

    @property
    def refused(self) -> int:
        """Pictures that could not be read."""
        return self.scores.refused

    def to_dict(self) -> dict[str, Any]:
        """The JSON record, with the scores in it."""
        record = to_mapping(self)
        del record["scores"]
        return record | self.scores.to_dict()


class _Timed:
    """An engine with the pictures it was shown and the seconds it took."""

    def __init__(self, engine: Engine) -> None:
        self.name, self._engine = engine.name, engine
        self.images, self.seconds = 0, 0.0

    def run(self, batch_BCHW: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """See `Engine.run`."""
        started = time.perf_counter()
        outputs = self._engine.run(batch_BCHW)
        self.seconds += time.perf_counter() - started
        self.images += len(batch_BCHW)
        return outputs


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
    labels: str | Path | None = None,
    tile: int | tuple[int, int] | None = None,
    overlap: float | None = None,
) -> Evaluation | DenseEvaluation:
    """Accuracy of an artefact, a checkpoint or a published model on pictures that say what is in them.

    Args:
        data: anything that `open_source` reads, for a detector `open_boxes`, for a segmenter `open_maps`.
        model, engine, arch, threads, image_size: see `vitesse.load`.
        split: of `data`.
        batch_size: pictures a run of the model; of a detector or segmenter at most `DENSE_BATCH`.
        limit: at most so many pictures, drawn by seed 0.
        ensemble: of a multiplexed model, show every picture in every slot and take the mean.
        labels: other labels for these pictures, any of several, see `vitesse.metrics.read_label_sets`.
        tile, overlap: of a detector or segmenter, score what a `Predictor` with these finds; of objects all,
            however low they score.

    Raises:
        DataError: the data cannot be read, or its classes or the other labels do not fit the model.
        VitesseError: the model cannot be loaded, see `vitesse.load`.
    """
    predictor = load(
        model,
        engine=engine,
        arch=arch,
        threads=threads,
        image_size=image_size,
        batch_size=batch_size if tile is None else min(batch_size, DENSE_BATCH),
        ensemble=ensemble,
        min_score=0.0,
        tile=tile,
        overlap=overlap,
    )
    manifest = predictor.artefact.manifest
    everything = open_for(manifest.task, data, split)
    if manifest.task != "classify":
        if labels is not None or ensemble:
            raise ConfigError(
                f"{'labels' if labels else 'ensemble'}: expected a classifier, {manifest.model.name} is none"
            )
        batch_size = predictor.artefact.input_shape[0] or min(batch_size, DENSE_BATCH)
        pictures = take(unseen(everything, manifest.provenance), limit)
        showing = Showing(preprocess=manifest.preprocess, batch_size=batch_size)
        return _evaluate_dense(predictor, pictures, showing if tile is None else None)
    width, num_classes = manifest.mux_width, len(manifest.class_names)
    source = with_classes(take(unseen(everything, manifest.provenance), limit), manifest.class_names)
    sets = None if labels is None else read_label_sets(labels, everything, num_classes)
    size = predictor.artefact.input_shape[0] or whole_groups(batch_size, width)
    showing = Showing(preprocess=manifest.preprocess, batch_size=size, mux_width=width)
    timed, started = _Timed(predictor.engine), time.perf_counter()
    found, agreement = outcomes_in_groups(timed, source, showing)
    seconds = time.perf_counter() - started
    others = {} if sets is None else vars(score_label_sets(found, source, sets))
    return Evaluation(
        model=manifest.model.name,
        engine=timed.name,
        precision=manifest.precision,
        img_per_s=timed.images / seconds,
        engine_img_per_s=timed.images / timed.seconds,
        mux_width=width,
        agreement=agreement,
        **vars(found.scores(source)),
        **{f"labels_{key}": value for key, value in others.items()},
    )


def _evaluate_dense(predictor: Predictor, pictures: Pictures, showing: Showing | None) -> DenseEvaluation:
    """Of pictures as they are shown to the engine; without `showing` of the predictor's own records."""
    manifest = predictor.artefact.manifest
    exam = EXAMINATIONS[manifest.task]
    source = exam.of_classes(pictures, manifest.class_names)
    timed, started = _Timed(predictor.engine), time.perf_counter()
    if showing is not None:
        found = exam.find(timed, source, showing)
    else:
        assert exam.recorded is not None
        predictor.engine = timed
        found = exam.recorded(track(predictor.stream(_encoded(source)), "evaluate", len(source)), source)
    scores = found.scores(source)
    return DenseEvaluation(
        model=manifest.model.name,
        engine=timed.name,
        precision=manifest.precision,
        scores=scores,
        img_per_s=scores.images / (time.perf_counter() - started),
        engine_img_per_s=scores.images / timed.seconds,
    )


def _encoded(source: Pictures) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of all pictures; of files that cannot be read none."""
    for index in range(len(source)):
        try:
            data = source.read(index)
        except (ImageError, OSError):
            data = b""
        yield source.name(index), data
