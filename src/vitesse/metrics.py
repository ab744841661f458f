"""Top-1 and top-5 of any engine on labelled pictures: torch models and artefacts are scored by the same code.

Shape suffixes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitesse.data.sources import Relabelled
from vitesse.errors import DataError, ImageError
from vitesse.progress import track
from vitesse.runtime.imaging import load_tensor

if TYPE_CHECKING:
    from vitesse.data.sources import Source
    from vitesse.runtime.engines import Engine
    from vitesse.spec import PreprocessSpec


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Shares of pictures whose class is first, or among the first five; `refused` could not be read."""

    top1: float
    top5: float
    images: int
    refused: int = 0


def with_classes(source: Source, class_names: tuple[str, ...]) -> Source:
    """A source whose labels are the indices of a model with these classes.

    Labels stay where the names agree, or where the data or the model has numbers for names, or as many
    classes as the other under names of another kind. Where the names are known to the model at other indices,
    as in a folder that lacks some of the classes, they are moved there. Case, spaces and underscores do not
    matter.

    Raises:
        DataError: a label lies outside the model's classes, or names are none of the model's.
    """
    index_of = {_plain(name): index for index, name in enumerate(class_names)}
    used = {int(label): source.class_names[label] for label in np.unique(source.labels)}
    moved = {label: index_of.get(_plain(name)) for label, name in used.items()}
    unknown = [used[label] for label, index in moved.items() if index is None]
    in_place = all(index in (None, label) for label, index in moved.items())
    numbered = all(map(str.isdigit, class_names)) or all(map(str.isdigit, used.values()))
    if in_place and (len(unknown) < len(used) or numbered or len(source.class_names) == len(class_names)):
        _check_labels(source.labels, len(class_names))
        return source
    if unknown:
        raise DataError(
            f"{len(unknown)} of the data's {len(used)} classes are none of the model's {len(class_names)}, "
            f"{unknown[0]!r} for one: rename its folders, or take a model of these classes"
        )
    table = np.zeros(max(used) + 1, np.int64)
    for label, index in moved.items():
        table[label] = index or 0
    return Relabelled(source, table[source.labels], class_names)


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()


def _check_labels(labels_N: NDArray[np.int64], num_classes: int) -> None:
    if labels_N.size and labels_N.max() >= num_classes:
        raise DataError(f"the model has {num_classes} classes, the data has label {labels_N.max()}")


def score(
    engine: Engine, source: Source, preprocess: PreprocessSpec, *, batch_size: int = 64, workers: int = 2
) -> Scores:
    """Top-1 and top-5 of an engine on a labelled source, each a fraction of the pictures that could be read.

    Raises:
        DataError: no picture could be read, or a label lies outside the model's classes.
    """
    hits = np.zeros(2, dtype=np.int64)
    images = 0
    batches = -(-len(source) // batch_size)
    for logits_BK, labels_B in track(
        _scored(engine, source, preprocess, batch_size, workers), "evaluate", batches
    ):
        _check_labels(labels_B, logits_BK.shape[1])
        hits += [top_hits(logits_BK, labels_B, k) for k in (1, 5)]
        images += len(labels_B)
    if not images:
        raise DataError("no picture could be read, so there is nothing to score")
    top1, top5 = (hits / images).tolist()
    return Scores(top1=top1, top5=top5, images=images, refused=len(source) - images)


def top_hits(logits_BK: NDArray[np.float32], labels_B: NDArray[np.int64], k: int) -> int:
    """How many labels are among the first k of finite logits; of equal ones the lower index comes first."""
    own_B1 = np.take_along_axis(logits_BK, labels_B[:, None], axis=1)
    tied_before_BK = (logits_BK == own_B1) & (np.arange(logits_BK.shape[1]) < labels_B[:, None])
    rank_B = ((logits_BK > own_B1) | tied_before_BK).sum(axis=1)
    return int((rank_B < k).sum())


def _scored(
    engine: Engine, source: Source, preprocess: PreprocessSpec, batch_size: int, workers: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Logits and labels of the readable pictures, batch by batch; the next batch is decoded meanwhile."""

    def load(index: int) -> NDArray[np.float32] | None:
        try:
            return load_tensor(source.read(index), preprocess)
        except (ImageError, OSError):
            return None

    with ThreadPoolExecutor(workers) as pool:

        def start(first: int) -> list[Future[NDArray[np.float32] | None]]:
            return [pool.submit(load, i) for i in range(first, min(first + batch_size, len(source)))]

        decoding = start(0)
        for first in range(0, len(source), batch_size):
            decoded, decoding = decoding, start(first + batch_size)
            tensors = {first + i: future.result() for i, future in enumerate(decoded)}
            readable = {index: tensor for index, tensor in tensors.items() if tensor is not None}
            if readable:
                (logits_BK, *_) = engine.run(np.stack(list(readable.values())))
                yield logits_BK, source.labels[list(readable)]
