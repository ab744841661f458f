"""Top-1 and top-5 of any engine on labelled pictures: torch models and artefacts are scored by the same code.

Shape suffixes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.sources import Relabelled
from vitesse.errors import DataError, ImageError
from vitesse.progress import track
from vitesse.runtime.imaging import load_tensor
from vitesse.spec import to_mapping

if TYPE_CHECKING:
    from vitesse.data.sources import Source
    from vitesse.runtime.engines import Engine
    from vitesse.spec import PreprocessSpec


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Shares of pictures whose class is first, or among the first five; `refused` could not be read.

    `slots` are, of a multiplexed model, the shares of the pictures in each slot whose class is first.
    """

    top1: float
    top5: float
    images: int
    refused: int = 0
    slots: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; without slots where there are none."""
        record = to_mapping(self)
        return record if self.slots else {key: value for key, value in record.items() if key != "slots"}


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What a model said of every readable picture, in the order they were shown.

    Attributes:
        mux_width: pictures that share a pass.
        pictures_B: index in the source.
        ranks_B: how many classes came before the label.
        firsts_B: the class that came first.
        slots_B: where in its group a picture was; 0 for all of a model that takes them alone.
    """

    mux_width: int
    pictures_B: NDArray[np.int64]
    ranks_B: NDArray[np.int64]
    firsts_B: NDArray[np.int64]
    slots_B: NDArray[np.int64]

    def scores(self, of: int) -> Scores:
        """The shares, of a source of so many pictures; a slot that no picture was in is left out."""
        slots = [self.ranks_B[self.slots_B == slot] for slot in range(self.mux_width)]
        return Scores(
            top1=float((self.ranks_B < 1).mean()),
            top5=float((self.ranks_B < 5).mean()),
            images=len(self.ranks_B),
            refused=of - len(self.ranks_B),
            slots=tuple(float((ranks < 1).mean()) for ranks in slots if len(ranks)) if len(slots) > 1 else (),
        )

    def agreement(self, other: Outcomes) -> float:
        """Share of the pictures in both whose first class is the same."""
        _, mine, theirs = np.intersect1d(self.pictures_B, other.pictures_B, return_indices=True)
        return float((self.firsts_B[mine] == other.firsts_B[theirs]).mean())


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
    engine: Engine,
    source: Source,
    preprocess: PreprocessSpec,
    *,
    batch_size: int = 64,
    workers: int = 2,
    mux_width: int = 1,
) -> Scores:
    """Top-1 and top-5 of an engine on a labelled source, each a fraction of the pictures that could be read.

    Args:
        batch_size: pictures a run.
        workers: threads that decode.
        mux_width: pictures that share a pass, see `outcomes`.

    Raises:
        DataError: no picture could be read, or a label lies outside the model's classes.
    """
    found = outcomes(engine, source, preprocess, batch_size=batch_size, workers=workers, mux_width=mux_width)
    return found.scores(len(source))


def score_in_groups(
    engine: Engine, source: Source, preprocess: PreprocessSpec, *, batch_size: int = 64, mux_width: int
) -> tuple[Scores, float | None]:
    """As `score`; of a multiplexed model also the share of pictures whose label stays beside others."""
    shown = partial(outcomes, engine, source, preprocess, batch_size=batch_size, mux_width=mux_width)
    first = shown()
    return first.scores(len(source)), first.agreement(shown(mates=1)) if mux_width > 1 else None


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
    parts: list[tuple[NDArray[np.int64], ...]] = []
    batches = -(-len(source) // batch_size)
    for logits_BK, pictures_B in track(
        _shown(engine, source, preprocess, order_N, batch_size, workers), "evaluate", batches
    ):
        labels_B = source.labels[pictures_B]
        _check_labels(labels_B, logits_BK.shape[1])
        slots_B = np.arange(len(pictures_B)) % mux_width
        parts.append((pictures_B, label_ranks(logits_BK, labels_B), logits_BK.argmax(1), slots_B))
    if not parts:
        raise DataError("no picture could be read, so there is nothing to score")
    pictures_B, ranks_B, firsts_B, slots_B = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Outcomes(
        mux_width=mux_width, pictures_B=pictures_B, ranks_B=ranks_B, firsts_B=firsts_B, slots_B=slots_B
    )


def _drawn(count: int, mux_width: int, mates: int) -> NDArray[np.int64]:
    """An order (count,) that puts each picture in the same slot for every `mates`, beside other ones."""
    order_N = np.random.default_rng(0).permutation(count)
    whole = count // mux_width * mux_width
    groups_GM = order_N[:whole].reshape(-1, mux_width)
    generator = np.random.default_rng((1, mates))
    mixed_GM = np.stack([generator.permutation(column_G) for column_G in groups_GM.T], axis=1)
    return np.concatenate([mixed_GM.ravel(), order_N[whole:]])


def label_ranks(logits_BK: NDArray[np.float32], labels_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes come before the label (B,), of finite logits; of equal ones the lower index first."""
    own_B1 = np.take_along_axis(logits_BK, labels_B[:, None], axis=1)
    tied_before_BK = (logits_BK == own_B1) & (np.arange(logits_BK.shape[1]) < labels_B[:, None])
    ranks_B: NDArray[np.int64] = ((logits_BK > own_B1) | tied_before_BK).sum(axis=1)
    return ranks_B


def _shown(
    engine: Engine,
    source: Source,
    preprocess: PreprocessSpec,
    order_N: NDArray[np.int64],
    batch_size: int,
    workers: int,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Logits and indices of the readable pictures, batch by batch; the next batch is decoded meanwhile."""

    def load(index: int) -> NDArray[np.float32] | None:
        try:
            return load_tensor(source.read(index), preprocess)
        except (ImageError, OSError):
            return None

    with ThreadPoolExecutor(workers) as pool:

        def start(first: int) -> list[tuple[int, Future[NDArray[np.float32] | None]]]:
            indices = order_N[first : first + batch_size].tolist()
            return [(index, pool.submit(load, index)) for index in indices]

        decoding = start(0)
        for first in range(0, len(source), batch_size):
            decoded, decoding = decoding, start(first + batch_size)
            tensors = {index: future.result() for index, future in decoded}
            readable = {index: tensor for index, tensor in tensors.items() if tensor is not None}
            if readable:
                (logits_BK, *_) = engine.run(np.stack(list(readable.values())))
                yield logits_BK, np.fromiter(readable, np.int64)
