"""WebDataset shards: plain .tar files whose members of one key are a picture and its label."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitesse.data.contract import IMAGE_SUFFIXES, check_labels, digest, index_labels
from vitesse.errors import DataError

LABEL_SUFFIXES = (".cls", ".json")


@dataclass
class Sample:
    """What a shard holds of one key: where its picture lies, in bytes, and its label."""

    key: str
    offset: int = 0
    size: int = -1
    label: str | int | None = None
    seen: set[str] = field(default_factory=set)


class TarSource:
    """Shards of `KEY.jpg` (or .png, .webp, .npy) beside `KEY.cls` or `KEY.json` with a `label`.

    Members are indexed once; a picture is read from its offset. Class names come from `classes.txt` or
    `classes.json` beside the shards, or are the labels' own.

    Raises:
        DataError: a shard is no plain tar or is cut short, or a picture has no label.
    """

    blocks: tuple[int, ...] = ()

    def __init__(self, shards: Sequence[Path]) -> None:
        self.shards = list(shards)
        indexed = [list(_pictures(shard)) for shard in shards]
        samples = [sample for of_shard in indexed for sample in of_shard]
        if not samples:
            raise DataError(
                f"{shards[0]}: expected pictures (.jpg, .png, .webp, .npy) with labels, found none"
            )
        self._keys = [sample.key for sample in samples]
        self._offsets = np.array([sample.offset for sample in samples], np.int64)
        self._sizes = np.array([sample.size for sample in samples], np.int64)
        self._shard_of = np.repeat(np.arange(len(indexed)), [len(of_shard) for of_shard in indexed])
        labels = [sample.label for sample in samples if sample.label is not None]
        self.labels, self.class_names = index_labels(labels, self.name, _class_names(shards[0].parent))
        check_labels(self)
        self.fingerprint = digest(
            [shard.name for shard in self.shards] + self._keys, self.labels, self.class_names
        )

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, index: int) -> str:
        return f"{self.shards[self._shard_of[index]]}/{self._keys[index]}"

    def read(self, index: int) -> bytes:
        size = int(self._sizes[index])
        with self.shards[self._shard_of[index]].open("rb", buffering=0) as shard:
            shard.seek(int(self._offsets[index]))
            data: bytes = shard.read(size)
        if len(data) < size:
            raise OSError(f"expected {size} bytes, the shard ends after {len(data)} of them")
        return data

    def sizes(self) -> NDArray[np.int64]:
        return self._sizes


def _pictures(shard: Path) -> Iterator[Sample]:
    """The samples of a shard that have a picture."""
    for sample in _samples(shard):
        if sample.size >= 0 and sample.label is None:
            raise DataError(f"{shard}: picture {sample.key} has no {sample.key}.cls and no label in a .json")
        if sample.size >= 0:
            yield sample


def _samples(shard: Path) -> list[Sample]:
    samples: dict[str, Sample] = {}
    with shard.open("rb") as stream:
        for member in _members(shard):
            key, suffix = _key_and_suffix(member.name)
            if suffix not in IMAGE_SUFFIXES and suffix not in LABEL_SUFFIXES:
                continue
            sample = samples.setdefault(key, Sample(key))
            kind = "picture" if suffix in IMAGE_SUFFIXES else suffix
            if kind in sample.seen:
                raise DataError(f"{shard}: expected one {kind} of each key, found another at {member.name}")
            sample.seen.add(kind)
            if kind == "picture":
                sample.offset, sample.size = member.offset_data, member.size
            else:
                stream.seek(member.offset_data)
                data = stream.read(member.size)
                if len(data) < member.size:
                    raise DataError(f"{shard}: cut short within {member.name}: copy it again")
                found = _label(shard, member.name, suffix, data)
                sample.label = sample.label if found is None else found
    return [*samples.values()]


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar whose end is there, or that is cut within the bytes of the last file.

    Raises:
        DataError: it is no plain tar, or damaged, or cut elsewhere.
    """
    member, total = None, shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.isreg():
                    yield member
            end = tar.offset
        with shard.open("rb") as stream:
            stream.seek(end)
            whole = stream.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE
    except tarfile.ReadError as error:
        if member is None:
            raise DataError(f"{shard}: expected a plain .tar, not compressed: {error}") from None
        whole = member.offset_data + member.size > total
    if not whole:
        last = "its start" if member is None else member.name
        raise DataError(f"{shard}: cut short or damaged after {last}: copy it again")


def _label(shard: Path, name: str, suffix: str, data: bytes) -> str | int | None:
    try:
        text = data.decode().strip()
        label = text if suffix == ".cls" else json.loads(text).get("label")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{shard}: {name}: expected a label: {error}") from None
    if label == "" or isinstance(label, bool) or not isinstance(label, str | int | None):
        raise DataError(f"{shard}: {name}: expected a label as text or a whole number, got {label!r}")
    return label


def _key_and_suffix(name: str) -> tuple[str, str]:
    """`a/b.seg.PNG` as `a/b` and `.seg.png`."""
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return f"{folder}{slash}{key}", (dot + suffix).lower()


def _class_names(folder: Path) -> list[str]:
    """Those in `classes.txt`, one a line, or in `classes.json`; none without either."""
    if (path := folder / "classes.txt").is_file():
        return path.read_text(encoding="utf-8").splitlines()
    if not (path := folder / "classes.json").is_file():
        return []
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON list of class names: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected a JSON list of class names")
    return names
