"""Labelled pictures on disk, read as encoded bytes: class folders, Parquet shards, a `labels.tsv` list."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import DataError, require

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".npy"})
SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "val", "valid", "validation"),
}


class Source(Protocol):
    """Pictures with one class each.

    Attributes:
        labels: class index of each picture, int64 (N,).
        class_names: name of each class index.
        fingerprint: hex digest that changes when the list of pictures or labels changes.
    """

    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where a picture came from, for error messages."""

    def read(self, index: int) -> bytes:
        """The encoded picture.

        Raises:
            OSError: the file cannot be read.
        """


class FileSource:
    """Picture files with a list of labels."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int], class_names: Sequence[str]) -> None:
        self.files = list(files)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names = tuple(class_names)
        _check_labels(self)
        self.fingerprint = _digest([file.name for file in self.files], self.labels, self.class_names)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return str(self.files[index])

    def read(self, index: int) -> bytes:
        return self.files[index].read_bytes()


class ParquetSource:
    """Parquet shards in the Hub's image layout: `image` (struct of bytes and path) and `label` (int)."""

    def __init__(self, shards: Sequence[Path]) -> None:
        parquet = require("pyarrow.parquet", "train")
        pyarrow = require("pyarrow", "train")
        try:
            tables = [parquet.read_table(shard, memory_map=True) for shard in shards]
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(
                f"{shards[0].parent}: cannot read Parquet: {str(error).splitlines()[0]}"
            ) from error
        for shard, table in zip(shards, tables, strict=True):
            _check_columns(shard, table.column_names)
        table = pyarrow.concat_tables(tables)
        images = table.column("image")
        self._bytes = pyarrow.chunked_array([chunk.field("bytes") for chunk in images.chunks])
        self._shards = [f"{s}[{row}]" for s, t in zip(shards, tables, strict=True) for row in range(len(t))]
        self.labels = table.column("label").to_numpy().astype(np.int64)
        self.class_names = _class_names(tables[0].schema.metadata or {}, self.labels)
        _check_labels(self)
        self.fingerprint = _digest(
            [f"{s.name}:{s.stat().st_size}" for s in shards], self.labels, self.class_names
        )

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self._shards[index]

    def read(self, index: int) -> bytes:
        encoded: bytes = self._bytes[index].as_py() or b""
        return encoded


class Subset:
    """Some pictures of a source, by index."""

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        self.source, self.indices = source, indices
        self.labels = source.labels[indices]
        self.class_names = source.class_names
        self.fingerprint = _digest([source.fingerprint], indices, ())

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def read(self, index: int) -> bytes:
        return self.source.read(int(self.indices[index]))


class Relabelled:
    """A source with other labels and class names."""

    def __init__(self, source: Source, labels: NDArray[np.int64], class_names: tuple[str, ...]) -> None:
        self.source, self.labels, self.class_names = source, labels, class_names
        self.fingerprint = _digest([source.fingerprint], labels, class_names)
        self.name, self.read = source.name, source.read

    def __len__(self) -> int:
        return len(self.source)


def open_source(path: str | Path, split: str | None = None) -> Source:
    """The labelled pictures at `path`.

    Args:
        path: a Parquet file; a folder of Parquet shards named after their split
            (`train-00000-of-00002.parquet`); a folder with `labels.tsv` and `images/`; a folder of class
            folders, or of split folders of those.
        split: `train` or `test`; `val`, `valid` and `validation` count as `test`. None takes everything
            there is, or refuses where there are several splits, so that training data is never scored by
            accident.

    Raises:
        DataError: the path does not exist, its layout is not one of these, or it lacks the split.
        MissingExtraError: Parquet is asked for and pyarrow is not installed.
    """
    root = Path(path)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    if root.is_file():
        if root.suffix != ".parquet":
            raise DataError(f"{root}: expected a folder of pictures or a .parquet file")
        return ParquetSource([root])
    if shards := sorted(root.glob("*.parquet")):
        return ParquetSource(_of_split(root, shards, split))
    if (root / "labels.tsv").is_file():
        return _read_list(root)
    folders = sorted(
        folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")
    )
    if {folder.name for folder in folders} & {name for names in SPLIT_NAMES.values() for name in names}:
        (root,) = _of_split(root, folders, split)[:1]
        folders = sorted(
            folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")
        )
    return _read_class_folders(root, folders)


def hold_out(source: Source, share: float, seed: int) -> tuple[Source, Source]:
    """A seeded split into (training part, held-out part); the held-out part keeps the class proportions."""
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(source), dtype=bool)
    for label in np.unique(source.labels):
        members = rng.permutation(np.flatnonzero(source.labels == label))
        held_out[members[: round(len(members) * share)]] = True
    return Subset(source, np.flatnonzero(~held_out)), Subset(source, np.flatnonzero(held_out))


def take(source: Source, limit: int | None, seed: int = 0) -> Source:
    """At most `limit` pictures, drawn once by `seed`; all of them where `limit` is None."""
    if limit is None or limit >= len(source):
        return source
    drawn = np.random.default_rng(seed).permutation(len(source))[:limit]
    return Subset(source, np.sort(drawn))


def _of_split(root: Path, entries: list[Path], split: str | None) -> list[Path]:
    """The entries whose names begin with the split's name; without a split there must be only one."""
    found = sorted({entry.name.split("-")[0].removesuffix(".parquet") for entry in entries})
    known = {alias: names for names in SPLIT_NAMES.values() for alias in names}
    if split is None:
        if len(found) > 1:
            raise DataError(f"{root}: holds the splits {', '.join(found)}; say which one (--split)")
        return entries
    for name in (split, *known.get(split, ())):
        if chosen := [
            entry for entry in entries if entry.name.split("-")[0].removesuffix(".parquet") == name
        ]:
            return chosen
    raise DataError(f"{root}: has no split {split!r}; found {', '.join(found)}")


def _read_class_folders(root: Path, folders: list[Path]) -> FileSource:
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        files += pictures
        labels += [label] * len(pictures)
    if not files:
        raise DataError(
            f"{root}: expected class folders with pictures (.jpg, .png, .webp, .npy), Parquet shards, "
            "or labels.tsv beside images/; found none"
        )
    return FileSource(files, labels, [folder.name for folder in folders])


def _read_list(root: Path) -> FileSource:
    """`labels.tsv`: `index`, then `file` or `wnid` for the picture in `images/`; `name` is the class's."""
    with (root / "labels.tsv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    if not rows or "index" not in rows[0] or not {"file", "wnid"} & rows[0].keys():
        raise DataError(
            f"{root / 'labels.tsv'}: expected columns index and file (or wnid), separated by tabs"
        )
    try:
        labels = [int(row["index"]) for row in rows]
    except (TypeError, ValueError) as error:
        raise DataError(f"{root / 'labels.tsv'}: expected whole numbers in column index: {error}") from None
    files = [root / "images" / (row["file"] if row.get("file") else f"{row['wnid']}.jpg") for row in rows]
    names = {label: row.get("name") or str(label) for label, row in zip(labels, rows, strict=True)}
    return FileSource(files, labels, [names.get(label, str(label)) for label in range(max(labels) + 1)])


def _check_labels(source: Source) -> None:
    for index in np.flatnonzero((source.labels < 0) | (source.labels >= len(source.class_names)))[
        :1
    ].tolist():
        last = len(source.class_names) - 1
        raise DataError(f"{source.name(index)}: expected a label of 0 to {last}, got {source.labels[index]}")


def _check_columns(shard: Path, columns: list[str]) -> None:
    if missing := {"image", "label"} - set(columns):
        raise DataError(
            f"{shard}: expected columns image and label, lacks {', '.join(sorted(missing))}; has {columns}"
        )


def _class_names(metadata: dict[bytes, bytes], labels: NDArray[np.int64]) -> tuple[str, ...]:
    try:
        features: Any = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(features["label"]["names"])
    except (KeyError, ValueError):
        return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))


def _digest(names: Sequence[str], labels: NDArray[np.int64], class_names: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps([list(names), list(class_names)]).encode())
    digest.update(labels.tobytes())
    return digest.hexdigest()[:16]
