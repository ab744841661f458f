"""What is wrong with labelled pictures: balance, duplicates, unreadable ones."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.contract import Pictures, Source, check_labels
from vitesse.errors import DataError, ImageError
from vitesse.progress import track
from vitesse.runtime.bands import NPY_MAGIC, read_bands
from vitesse.runtime.imaging import read_image
from vitesse.spec import to_mapping

MAX_COMPARED = 100_000
"""Pictures of training and validation data together that duplicates are looked for in."""
MAX_READ = 2**30
"""Bytes that are read for it."""

PICTURES_A_TASK = 64
NAMES_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class SamePicture:
    """Pictures of exactly the same bytes: their names in each split, and the classes they are given."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def leaked(self) -> bool:
        """Whether training shows what validation asks."""
        return bool(self.train and self.val)

    @property
    def conflicting(self) -> bool:
        """Whether the same picture has several classes."""
        return len(self.classes) > 1


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A picture that cannot be decoded, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What `check_data` found.

    Attributes:
        class_names: of the training data.
        train_counts, val_counts: pictures a class.
        duplicates: groups of pictures of the same bytes; None where it would have taken long to compare.
        unreadable: pictures that cannot be decoded, or where `decoded` is False such as hold no bytes.
        decoded: whether every picture was decoded.
        seconds: how long the check took.
    """

    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    val_counts: tuple[int, ...]
    duplicates: tuple[SamePicture, ...] | None
    unreadable: tuple[Unreadable, ...]
    decoded: bool
    seconds: float

    @property
    def leaked(self) -> tuple[SamePicture, ...]:
        """Duplicates that are in both training and validation data."""
        return tuple(same for same in self.duplicates or () if same.leaked)

    @property
    def conflicting(self) -> tuple[SamePicture, ...]:
        """Duplicates with different classes."""
        return tuple(same for same in self.duplicates or () if same.conflicting)

    @property
    def faulty(self) -> bool:
        """Whether a picture cannot be read."""
        return bool(self.unreadable)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        groups = {"leaked": self.leaked, "conflicting": self.conflicting}
        return to_mapping(self) | {name: [*map(to_mapping, found)] for name, found in groups.items()}

    def lines(self) -> list[str]:
        """What a person should know, a line each."""
        return [*self._balance(), *self._sameness(), *self._decoding()]

    def _balance(self) -> list[str]:
        counts = np.array(self.train_counts)
        fewest = int(counts.argmin())
        spread = (
            f"{counts.min():,} to {counts.max():,} pictures a class, median {np.median(counts):g}; "
            f"fewest: {self.class_names[fewest]!r} ({counts[fewest]})"
        )
        even = f"{counts[0]:,} pictures in each of {len(counts)} classes"
        lines = [f"balance: {even if counts.min() == counts.max() else spread}"]
        for split, per_class in (("training", self.train_counts), ("validation", self.val_counts)):
            empty = [name for name, count in zip(self.class_names, per_class, strict=True) if not count]
            if empty:
                have = _count(len(empty), "class has", "classes have")
                lines.append(f"{have} no {split} picture: {_some(map(repr, empty))}")
        return lines

    def _sameness(self) -> list[str]:
        if self.duplicates is None:
            return ["duplicates: left out, there is too much to compare"]
        lines = []
        if self.duplicates:
            spare = sum(len(same.train) + len(same.val) - 1 for same in self.duplicates)
            lines.append(f"{_pictures(spare)} a copy of another, the first is {_first(self.duplicates)}")
        if self.leaked:
            both, first = sum(len(same.val) for same in self.leaked), self.leaked[0].val[0]
            lines.append(f"{_pictures(both)} in both training and validation data, the first is {first}")
        if self.conflicting:
            same = self.conflicting[0]
            lines.append(
                f"{_pictures(len(self.conflicting))} there under several classes, the first is "
                f"{_first(self.conflicting)} ({_some(map(repr, same.classes))})"
            )
        return lines

    def _decoding(self) -> list[str]:
        if not self.unreadable:
            return ["every picture can be decoded"] if self.decoded else []
        first, number = self.unreadable[0], _count(len(self.unreadable), "picture", "pictures")
        return [f"{number} cannot be read, the first is {first.name}: {first.reason}"]


def check_data(
    train: Source,
    val: Source,
    *,
    decode: bool = True,
    workers: int = 2,
    check: Callable[[], None] = lambda: None,
) -> DataCheck:
    """Look at training and validation data together; each picture is read once at most.

    Args:
        decode: decode every picture; otherwise only those are read that may be copies.
        workers: threads.
        check: called before every picture, in these threads; may raise.

    Raises:
        DataError: the two hold different classes.
    """
    if differ := sorted(set(train.class_names) ^ set(val.class_names)):
        raise DataError(
            f"training and validation data hold different classes, such as {', '.join(differ[:NAMES_SHOWN])}"
        )
    started = time.monotonic()
    sources = (train, val)
    read = [range(len(source)) for source in sources] if decode else of_same_size(*sources)
    compare = read is not None and len(train) + len(val) <= MAX_COMPARED
    scanned = [
        _scan(source, indices, compare, decode, workers, check)
        for source, indices in zip(sources, read or (), strict=False)
    ]
    return DataCheck(
        class_names=train.class_names,
        train_counts=tuple(class_balance(train).tolist()),
        val_counts=tuple(class_balance(val).tolist()),
        duplicates=_same_pictures(sources, [scan[0] for scan in scanned]) if compare else None,
        unreadable=tuple(chain.from_iterable(scan[1] for scan in scanned)),
        decoded=decode,
        seconds=time.monotonic() - started,
    )


def check_trainable(source: Source) -> None:
    """Refuse data that nothing can be learnt from.

    Raises:
        DataError: fewer than two classes have pictures, or a label is no class index.
    """
    check_labels(source)
    present = np.flatnonzero(class_balance(source)).tolist()
    if len(present) < 2:
        found = f"all {len(source)} are {source.class_names[present[0]]!r}" if present else "there are none"
        raise DataError(f"training needs pictures of at least two classes, {found}")


def class_balance(source: Source) -> NDArray[np.int64]:
    """Pictures of each class, int64 (K,)."""
    return np.bincount(source.labels, minlength=len(source.class_names)).astype(np.int64)


def find_duplicates(
    source_a: Source, source_b: Source | None = None, workers: int = 2
) -> tuple[SamePicture, ...]:
    """Groups of pictures of the same bytes, within training data and, with `source_b`, validation data."""
    sources = [source_a] if source_b is None else [source_a, source_b]
    return _same_pictures(
        sources, [content_digests(source, range(len(source)), workers) for source in sources]
    )


def of_same_size(*sources: Pictures) -> list[Sequence[int]] | None:
    """Of each source, the pictures of as many bytes as another of any of them, or of none at all.

    None where these are more than `MAX_COMPARED` pictures or `MAX_READ` bytes, or it takes long to know.
    """
    if sum(map(len, sources)) > MAX_COMPARED:
        return None
    sizes = [known for source in sources if (known := source.sizes()) is not None]
    if len(sizes) < len(sources):
        return None
    values, counts = np.unique(np.concatenate(sizes), return_counts=True)
    shared = values[(counts > 1) | (values == 0)]
    alike = [np.flatnonzero(np.isin(sizes_N, shared)) for sizes_N in sizes]
    bytes_read = sum(sizes_N[found].sum() for sizes_N, found in zip(sizes, alike, strict=True))
    return [found.tolist() for found in alike] if bytes_read <= MAX_READ else None


def content_digests(source: Pictures, indices: Sequence[int], workers: int = 2) -> dict[int, bytes]:
    """A digest of the bytes of these pictures, by reading them, where there are any."""
    return _scan(source, indices, True, False, workers)[0]


def find_unreadable(source: Source, workers: int = 2) -> tuple[Unreadable, ...]:
    """Every picture that cannot be decoded, by decoding all of them."""
    return tuple(_scan(source, range(len(source)), False, True, workers)[1])


def _scan(
    source: Pictures,
    indices: Sequence[int],
    hashed: bool,
    decoded: bool,
    workers: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[dict[int, bytes], list[Unreadable]]:
    """Digests of these pictures, where asked for and there are bytes, and what cannot be read."""

    def look(start: int) -> list[tuple[bytes | None, str]]:
        return [one(index) for index in indices[start : start + PICTURES_A_TASK]]

    def one(index: int) -> tuple[bytes | None, str]:
        check()
        return _look(source, index, hashed, decoded)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        tasks = pool.map(look, range(0, len(indices), PICTURES_A_TASK))
        seen = [*track(chain.from_iterable(tasks), "check pictures", len(indices))]
    pairs = [*zip(indices, seen, strict=True)]
    unreadable = [
        Unreadable(name=source.name(index), reason=reason) for index, (_, reason) in pairs if reason
    ]
    return {index: found for index, (found, _) in pairs if found is not None}, unreadable


def _look(source: Pictures, index: int, hashed: bool, decoded: bool) -> tuple[bytes | None, str]:
    """A picture's digest, and why it cannot be read."""
    try:
        data = source.read(index)
    except OSError as error:
        return None, error.strerror or str(error)
    found = hashlib.blake2b(data, digest_size=16).digest() if hashed and data else None
    try:
        if decoded:
            read_bands(data) if data.startswith(NPY_MAGIC) else read_image(data)
    except ImageError as error:
        return found, str(error)
    return found, "" if data else "it holds no bytes"


def _same_pictures(
    sources: Iterable[Source], digests: Iterable[Mapping[int, bytes]]
) -> tuple[SamePicture, ...]:
    places = defaultdict[bytes, list[tuple[int, int]]](list)
    sources = list(sources)
    for part, of_source in enumerate(digests):
        for index, found in of_source.items():
            places[found].append((part, index))
    return tuple(_group(sources, same) for same in places.values() if len(same) > 1)


def _group(sources: list[Source], same: list[tuple[int, int]]) -> SamePicture:
    names = [tuple(sources[part].name(index) for part, index in same if part == wanted) for wanted in (0, 1)]
    labels = {sources[part].class_names[sources[part].labels[index]] for part, index in same}
    return SamePicture(train=names[0], val=names[1], classes=tuple(sorted(labels)))


def _count(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _pictures(number: int) -> str:
    return _count(number, "picture is", "pictures are")


def _first(groups: tuple[SamePicture, ...]) -> str:
    return (groups[0].train + groups[0].val)[0]


def _some(texts: Iterable[str]) -> str:
    listed = list(texts)
    more = f" and {len(listed) - NAMES_SHOWN} more" if len(listed) > NAMES_SHOWN else ""
    return ", ".join(listed[:NAMES_SHOWN]) + more
