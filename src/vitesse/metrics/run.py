"""Pictures shown to an engine: the next batch is decoded while one runs.

Shape suffixes: N pictures of a source, B images, K classes, G groups, M pictures of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import DataError, ImageError
from vitesse.metrics.classes import check_label
from vitesse.metrics.scores import Outcomes, Scores
from vitesse.progress import track
from vitesse.runtime.imaging import load_tensor_and_size

if TYPE_CHECKING:
    from vitesse.data.contract import Pictures
    from vitesse.data.sources import Source
    from vitesse.runtime.engines import Engine
    from vitesse.spec import PreprocessSpec


@dataclass(frozen=True, kw_only=True)
class Showing:
    """How pictures are shown to an engine.

    Pictures that share a pass are drawn at random: side by side, pictures of one class would help each other,
    as they do not in use. Otherwise they are shown in their order.

    Attributes:
        batch_size: pictures a run.
        workers: threads that decode.
        mux_width: pictures that share a pass.
        mates: every number leaves each picture in its slot and draws the others of its group anew.
        purpose: what progress is called.
    """

    preprocess: PreprocessSpec
    batch_size: int = 64
    workers: int = 2
    mux_width: int = 1
    mates: int = 0
    purpose: str = "evaluate"


def score(engine: Engine, source: Source, showing: Showing) -> Scores:
    """The figures of an engine on a labelled source, of the pictures that could be read.

    Raises:
        DataError: see `outcomes`.
    """
    return outcomes(engine, source, showing).scores(source)


def outcomes_in_groups(engine: Engine, source: Source, showing: Showing) -> tuple[Outcomes, float | None]:
    """As `outcomes`; of a multiplexed model also the share of pictures whose label stays beside others."""
    first = outcomes(engine, source, showing)
    if showing.mux_width == 1:
        return first, None
    return first, first.agreement(outcomes(engine, source, replace(showing, mates=showing.mates + 1)))


def outcomes(engine: Engine, source: Source, showing: Showing) -> Outcomes:
    """What an engine says of every picture of a labelled source.

    Raises:
        DataError: no picture could be read, or a label lies outside the model's classes.
    """
    number, width = len(source), showing.mux_width
    order_N = np.arange(number) if width == 1 else _drawn(number, width, showing.mates)
    parts = []
    for (logits_BK, *_), pictures_B, _sizes in shown(engine, source, showing, order_N):
        labels_B = source.labels[pictures_B]
        check_label(labels_B.max(), logits_BK.shape[1])
        parts.append(Outcomes.of(logits_BK, labels_B=labels_B, pictures_B=pictures_B, mux_width=width))
    if not parts:
        raise DataError("no picture could be read, so there is nothing to score")
    return Outcomes.joined(parts)


def _drawn(count: int, mux_width: int, mates: int) -> NDArray[np.int64]:
    """An order (count,) that puts each picture in the same slot for every `mates`, beside other ones."""
    order_N = np.random.default_rng(0).permutation(count)
    whole = count // mux_width * mux_width
    groups_GM = order_N[:whole].reshape(-1, mux_width)
    generator = np.random.default_rng((1, mates))
    mixed_GM = np.stack([generator.permutation(column_G) for column_G in groups_GM.T], axis=1)
    return np.concatenate([mixed_GM.ravel(), order_N[whole:]])


def shown(
    engine: Engine, source: Pictures, showing: Showing, order_N: NDArray[np.int64] | None = None
) -> Iterator[tuple[tuple[NDArray[Any], ...], NDArray[np.int64], list[tuple[int, int]]]]:
    """What an engine gives for the readable pictures, batch by batch, in each those of one shape: its
    outputs, the pictures' indices, and their own (height, width). They are shown in the order of `order_N`,
    by default as they come."""

    def load(index: int) -> tuple[NDArray[np.float32], tuple[int, int]] | None:
        try:
            return load_tensor_and_size(source.read(index), showing.preprocess)
        except (ImageError, OSError):
            return None

    order_N = np.arange(len(source)) if order_N is None else order_N
    size = showing.batch_size
    with ThreadPoolExecutor(showing.workers) as pool:

        def start(first: int) -> list[tuple[int, Future[tuple[NDArray[np.float32], tuple[int, int]] | None]]]:
            indices = order_N[first : first + size].tolist()
            return [(index, pool.submit(load, index)) for index in indices]

        decoding = start(0)
        for first in track(range(0, len(source), size), showing.purpose, -(-len(source) // size)):
            decoded, decoding = decoding, start(first + size)
            loaded = [(index, future.result()) for index, future in decoded]
            readable = [(index, *item) for index, item in loaded if item is not None]
            for _, alike in groupby(readable, lambda item: item[1].shape):
                indices, tensors, sizes = zip(*alike, strict=True)
                yield engine.run(np.stack(tensors)), np.array(indices, np.int64), list(sizes)
