"""Picture files on disk: class folders, and lists of files with their labels."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.contract import (
    IMAGE_SUFFIXES,
    check_labels,
    digest,
    index_labels,
    numbered_classes,
    of_split,
)
from vitesse.errors import DataError
from vitesse.progress import say

LIST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})
FILE_COLUMNS = ("file", "path", "image", "file_name")
NAME_CODEC = ("utf-8", "surrogatepass")
"""Of a file's name as Python has it, also where its bytes are no text."""

Row = tuple[int, dict[str, Any]]
"""A line number, from 1, and the line's values by column."""


class PictureFiles:
    """Picture files, whatever is known of them.

    Names lie in one piece of memory, which processes that read share: a million takes 50 MB, and would take
    300 MB as an object each.

    Args:
        root: a folder.
        files: relative to it, or absolute.
    """

    blocks: tuple[int, ...] = ()

    def __init__(self, root: Path, files: Sequence[str], class_names: Sequence[str]) -> None:
        self.root, self.class_names = root, tuple(class_names)
        encoded = [file.encode(*NAME_CODEC) for file in files]
        self._names, self._ends = b"".join(encoded), np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def name(self, index: int) -> str:
        return str(self._path(index))

    def read(self, index: int) -> bytes:
        return self._path(index).read_bytes()

    def sizes(self) -> NDArray[np.int64]:
        return np.fromiter(map(self._bytes, range(len(self))), np.int64, len(self))

    def _path(self, index: int) -> Path:
        return self.root / self._names[self._ends[index] : self._ends[index + 1]].decode(*NAME_CODEC)

    def _bytes(self, index: int) -> int:
        try:
            return self._path(index).stat().st_size
        except (OSError, ValueError):  # ValueError: no file can have such a name
            return 0


class FileSource(PictureFiles):
    """Picture files with a list of labels; arguments as of `PictureFiles`."""

    def __init__(
        self, root: Path, files: Sequence[str], labels: Sequence[int], class_names: Sequence[str]
    ) -> None:
        super().__init__(root, files, class_names)
        self.labels = np.asarray(labels, dtype=np.int64)
        check_labels(self)
        names = [*map(os.path.basename, files)]
        self.fingerprint = digest(names, self.labels, self.class_names)


def subfolders(root: Path) -> list[Path]:
    """Folders by name, hidden ones left out; where all names are numbers, by number."""
    folders = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if all(folder.name.isascii() and folder.name.isdigit() for folder in folders):
        return sorted(folders, key=lambda folder: (int(folder.name), folder.name))
    return sorted(folders)


def read_class_folders(root: Path) -> FileSource:
    """One folder a class; a folder without pictures stays a class.

    Raises:
        DataError: there are no class folders, or no picture in any of them.
    """
    files: list[str] = []
    labels: list[int] = []
    folders = subfolders(root)
    for label, folder in enumerate(folders):
        pictures = sorted(filter(is_picture, folder.rglob("*")))
        files += [folder.name + str(picture)[len(str(folder)) :] for picture in pictures]
        labels += [label] * len(pictures)
    loose = sum(map(is_picture, root.iterdir()))
    if not files:
        raise DataError(
            f"{root}: holds {loose} pictures in no class folder; expected {root.name}/CLASS/PICTURE, "
            "or a list FILE.csv with columns file and label"
            if loose
            else f"{root}: expected class folders with pictures (.jpg, .png, .webp, .npy), Parquet or .tar "
            "shards, or labels.tsv beside images/; found none"
        )
    if loose:
        say(f"{root}: {loose} pictures are in no class folder and are left out")
    return FileSource(root, files, labels, [folder.name for folder in folders])


def read_list(path: Path, split: str | None = None) -> FileSource:
    """A CSV, TSV or JSONL file: `file` (or `path`, `image`), `label`, and `split` where there are several.

    Files are relative to the list's folder. A label is a class index, or a class name; names get their index
    in sorted order over all splits.

    Raises:
        DataError: a line lacks a value or is malformed, with its number; no file is there, or no such split.
    """
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"{path}: expected one line a picture with columns file and label, found none")
    column = next((name for name in FILE_COLUMNS if name in rows[0][1]), None)
    if column is None or "label" not in rows[0][1]:
        raise DataError(
            f"{path}: expected columns file (or path, image) and label, got {', '.join(rows[0][1])}"
        )
    values = [_cell(path, row, "label", (str, int)) for row in rows]
    labels, class_names = index_labels(values, lambda position: f"{path}: line {rows[position][0]}")
    files = [_cell(path, row, column, (str,)) for row in rows]
    chosen = of_split(path, range(len(rows)), split, lambda position: _split_of(rows[position]))
    if not any((path.parent / files[position]).is_file() for position in chosen):
        line, first = rows[chosen[0]][0], path.parent / files[chosen[0]]
        raise DataError(
            f"{path}: line {line}: no file {first}, nor any other; files are relative to the list's folder"
        )
    return FileSource(path.parent, [files[i] for i in chosen], labels[chosen].tolist(), class_names)


def read_index_list(root: Path) -> FileSource:
    """`labels.tsv`: `index`, then `file` or `wnid` for the picture in `images/`; `name` is the class's.

    Raises:
        DataError: a column is absent, or an index is no whole number.
    """
    path = root / "labels.tsv"
    rows = list(_rows(path))
    if not rows or "index" not in rows[0][1] or not {"file", "wnid"} & rows[0][1].keys():
        raise DataError(f"{path}: expected columns index and file (or wnid), separated by tabs")
    try:
        labels = np.array([int(row["index"]) for _, row in rows], np.int64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: expected whole numbers in column index: {error}") from None
    class_names = list(numbered_classes(labels, lambda position: f"{path}: line {rows[position][0]}"))
    for label, (_, row) in zip(labels.tolist(), rows, strict=True):
        class_names[label] = row.get("name") or class_names[label]
    files = [row["file"] if row.get("file") else f"{row['wnid']}.jpg" for _, row in rows]
    return FileSource(root / "images", files, labels.tolist(), class_names)


def is_picture(file: Path) -> bool:
    """Whether a file's name says that it is a picture; hidden ones are none."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def _rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            yield from _json_rows(path, stream) if path.suffix == ".jsonl" else _table_rows(path, stream)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a list in UTF-8: {error}") from error


def _json_rows(path: Path, stream: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number}: expected one JSON object: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: expected one JSON object, got {type(row).__name__}")
        yield number, row


def _table_rows(path: Path, stream: Iterator[str]) -> Iterator[Row]:
    table = csv.DictReader(stream, delimiter="," if path.suffix == ".csv" else "\t", restkey="")
    for row in table:
        if "" in row:
            expected = len(table.fieldnames or ())
            raise DataError(f"{path}: line {table.line_num}: expected {expected} values, got more")
        yield table.line_num, row


def _cell(path: Path, row: Row, column: str, kinds: tuple[type, ...]) -> Any:
    number, values = row
    value = values.get(column)
    if value is None or value == "":
        raise DataError(f"{path}: line {number}: expected a value for {column}, found none")
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise DataError(f"{path}: line {number}: expected {column} as text, got {value!r}")
    return value


def _split_of(row: Row) -> str:
    return str(row[1].get("split") or "").lower()
