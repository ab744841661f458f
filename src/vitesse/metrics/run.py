"""Pictures shown to an engine: the next batch is decoded while one runs.

Shape suffixes: N pictures of a source, B images, K classes, G groups, M pictures of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
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


def score(
    engine: Engine,
    source: Source,
    preprocess: PreprocessSpec,
    *,
    batch_size: int = 64,
    workers: int = 2,
    mux_width: int = 1,
) -> Scores:
    """The figures of an engine on a labelled source, of the pictures that could be read.

    Args:
        batch_size: pictures a run.
        workers: threads that decode.
        mux_width: pictures that share a pass, see `outcomes`.

    Raises:
        DataError: no picture could be read, or a label lies outside the model's classes.
    """
    found = outcomes(engine, source, preprocess, batch_size=batch_size, workers=workers, mux_width=mux_width)
    return found.scores(source)


def score_in_groups(
    engine: Engine, source: Source, preprocess: PreprocessSpec, *, batch_size: int = 64, mux_width: int
) -> tuple[Scores, float | None]:
    """As `score`; of a multiplexed model also the agreement, see `outcomes_in_groups`."""
    found, agreement = outcomes_in_groups(
        engine, source, preprocess, batch_size=batch_size, mux_width=mux_width
    )
    return found.scores(source), agreement


def outcomes_in_groups(
    engine: Engine, source: Source, preprocess: PreprocessSpec, *, batch_size: int = 64, mux_width: int
) -> tuple[Outcomes, float | None]:
    """As `outcomes`; of a multiplexed model also the share of pictures whose label stays beside others."""
    shown = partial(outcomes, engine, source, preprocess, batch_size=batch_size, mux_width=mux_width)
    first = shown()
    return first, first.agreement(shown(mates=1)) if mux_width > 1 else None


def outcomes(
    engine: Engine,
    source: Source,
    preprocess: PreprocessSpec,
    *,
    batch_size: int = 64,
    workers: int = 2,
    mux_width: int = 1,
    mates: int = 0,
) -> Outcomes:
    """What an engine says of every picture of a labelled source.

    Pictures that share a pass (`mux_width` above 1) are drawn at random: side by side, pictures of one class
    would help each other, as they do not in use. Every number `mates` leaves each in its slot and draws the
    others of its group anew. Otherwise pictures are shown in their order.

    Raises:
        DataError: no picture could be read, or a label lies outside the model's classes.
    """
    order_N = np.arange(len(source)) if mux_width == 1 else _drawn(len(source), mux_width, mates)
    parts = []
    for (logits_BK, *_), pictures_B, _sizes in shown(
        engine, source, preprocess, order_N, batch_size=batch_size, workers=workers
    ):
        labels_B = source.labels[pictures_B]
        check_label(labels_B.max(), logits_BK.shape[1])
        parts.append(Outcomes.of(logits_BK, labels_B=labels_B, pictures_B=pictures_B, mux_width=mux_width))
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
    engine: Engine,
    source: Pictures,
    preprocess: PreprocessSpec,
    order_N: NDArray[np.int64] | None = None,
    *,
    batch_size: int = 64,
    workers: int = 2,
) -> Iterator[tuple[tuple[NDArray[Any], ...], NDArray[np.int64], list[tuple[int, int]]]]:
    """What an engine gives for the readable pictures, batch by batch: its outputs, the pictures' indices, and
    their own (height, width).

    Args:
        order_N: in which to show them; by default as they come.
        batch_size: pictures a run.
        workers: threads that decode.
    """

    def load(index: int) -> tuple[NDArray[np.float32], tuple[int, int]] | None:
        try:
            return load_tensor_and_size(source.read(index), preprocess)
        except (ImageError, OSError):
            return None

    order_N = np.arange(len(source)) if order_N is None else order_N
    with ThreadPoolExecutor(workers) as pool:

        def start(first: int) -> list[tuple[int, Future[tuple[NDArray[np.float32], tuple[int, int]] | None]]]:
            indices = order_N[first : first + batch_size].tolist()
            return [(index, pool.submit(load, index)) for index in indices]

        decoding = start(0)
        for first in track(range(0, len(source), batch_size), "evaluate", -(-len(source) // batch_size)):
            decoded, decoding = decoding, start(first + batch_size)
            loaded = {index: future.result() for index, future in decoded}
            readable = {index: item for index, item in loaded.items() if item is not None}
            if readable:
                tensors, sizes = zip(*readable.values(), strict=True)
                yield engine.run(np.stack(tensors)), np.fromiter(readable, np.int64), list(sizes)
