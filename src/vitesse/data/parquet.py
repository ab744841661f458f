"""Parquet shards, on disk or behind a URL: labels up front, pictures a row group at a time."""

from __future__ import annotations

import contextlib
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.contract import ALIASES, check_labels, digest, is_url, leading_word, of_split
from vitesse.data.table import encoded_pictures, encoded_sizes, find_columns, one_line, read_labels
from vitesse.errors import DataError, VitesseError, require
from vitesse.progress import track

MEMORY_BYTES = 256 * 2**20
"""Pictures that a process keeps of a source. All of a source that is no larger stay in memory."""

REMOTE_THREADS = 16

_LOCKS: dict[int, threading.Lock] = {}
"""By process: a lock that another thread held when the process was forked would never be released."""


@dataclass(frozen=True)
class Shard:
    """A Parquet file: its path or URL, its size in bytes, its footer."""

    place: str
    size: int
    footer: Any


class ParquetSource:
    """Parquet shards in the Hub's image layout: `image` (struct of bytes and path) and `label`.

    Files are opened anew for every row group, so that threads and forked workers share nothing.

    Args:
        shards: files, or URLs that fsspec opens.
        memory: bytes of pictures that a process keeps; see `MEMORY_BYTES`.

    Raises:
        DataError: a file cannot be read, or has other columns.
    """

    def __init__(self, shards: Sequence[Path | str], memory: int = MEMORY_BYTES) -> None:
        pyarrow = require("pyarrow", "train")
        opened = _open_all([str(shard) for shard in shards])
        self._shards = [shard for shard, _ in opened]
        footers = [shard.footer for shard in self._shards]
        if not sum(footer.num_rows for footer in footers):
            raise DataError(f"{self._shards[0].place}: expected pictures, its table has no rows")
        schema = footers[0].schema.to_arrow_schema()
        self._image, _ = find_columns(self._shards[0].place, schema)
        self._column = f"{self._image}.bytes" if schema.field(self._image).type.num_fields else self._image
        self._groups = [(s, g) for s, footer in enumerate(footers) for g in range(footer.num_row_groups)]
        self._sizes = [_encoded_bytes(footers[s].row_group(g), self._column) for s, g in self._groups]
        lengths = [footers[s].row_group(g).num_rows for s, g in self._groups]
        self._starts = np.cumsum([0, *lengths]).tolist()
        self._shard_starts = np.cumsum([0, *(footer.num_rows for footer in footers)]).tolist()
        self._memory, self._held = memory, dict[int, Any]()
        labels = pyarrow.chunked_array([chunk for _, column in opened for chunk in column.chunks])
        self.labels, self.class_names = read_labels(labels, schema, self.name)
        check_labels(self)
        self.fingerprint = digest(
            [f"{shard.place.rpartition('/')[2]}:{shard.size}" for shard in self._shards],
            self.labels,
            self.class_names,
        )
        fits = sum(self._sizes) <= memory
        self.blocks: tuple[int, ...] = () if fits else tuple(lengths)
        for group in range(len(self._groups) if fits else 0):
            with contextlib.suppress(OSError):  # its pictures are refused one by one
                self._pictures(group)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        shard = bisect_right(self._shard_starts, index) - 1
        return f"{self._shards[shard].place}[{index - self._shard_starts[shard]}]"

    def read(self, index: int) -> bytes:
        group = bisect_right(self._starts, index) - 1
        encoded: bytes = self._pictures(group)[index - self._starts[group]].as_py() or b""
        return encoded

    def sizes(self) -> NDArray[np.int64] | None:
        with contextlib.suppress(OSError):
            if not self.blocks:
                return np.concatenate([encoded_sizes(self._pictures(g)) for g in range(len(self._groups))])
        return None

    def _pictures(self, group: int) -> Any:
        """The encoded pictures of a row group, kept until newer ones need the room."""
        if (held := self._held.get(group)) is not None:
            return held
        with _LOCKS.setdefault(os.getpid(), threading.Lock()):
            if (held := self._held.get(group)) is None:
                held = self._load(group)
                while (
                    self._held and self._sizes[group] + sum(self._sizes[g] for g in self._held) > self._memory
                ):
                    del self._held[next(iter(self._held))]
                self._held[group] = held
        return held

    def _load(self, group: int) -> Any:
        shard, number = self._shards[self._groups[group][0]], self._groups[group][1]
        try:
            with _opened(shard.place, shard.footer) as (file, _):
                table = file.read_row_group(number, columns=[self._column], use_threads=False)
        except Exception as error:  # every file system has errors of its own
            raise OSError(f"{shard.place}: cannot read row group {number}: {one_line(error)}") from error
        return encoded_pictures(table.column(self._image))


def find_shards(url: str, split: str | None) -> list[str]:
    """The Parquet files of a split behind a URL: of one file, of a pattern, or of a folder to any depth.

    Raises:
        DataError: nothing is there, or Parquet files of several data sets.
    """
    fsspec = require("fsspec", "train")
    try:
        system, root = fsspec.core.url_to_fs(url)
        found = system.glob(root) if has_magic(root) else system.find(root)
    except Exception as error:  # every file system has errors of its own
        raise DataError(f"{url}: cannot be opened: {one_line(error)}") from error
    shards = sorted(path for path in found if path.endswith(".parquet"))
    if not shards:
        raise DataError(f"{url}: expected Parquet files, found none; of other data download a copy")
    chosen = of_split(url, shards, split, lambda path: _split_in(path.removeprefix(root)))
    if len(folders := sorted({path.rpartition("/")[0] for path in chosen})) > 1:
        urls = " or ".join(system.unstrip_protocol(folder) for folder in folders[:2])
        raise DataError(
            f"{url}: holds {len(folders)} folders of Parquet files; give the URL of one, such as {urls}"
        )
    return [system.unstrip_protocol(path) for path in chosen]


def _split_in(path: str) -> str:
    """A split's name in `data/train-0001.parquet` or `default/train/0001.parquet`."""
    *folders, name = path.split("/")
    word = leading_word(name)
    return next((part for part in (word, *reversed(folders)) if part in ALIASES), word)


def _open_all(places: list[str]) -> list[tuple[Shard, Any]]:
    if not any(map(is_url, places)):
        return [_open(place) for place in places]
    with ThreadPoolExecutor(REMOTE_THREADS) as pool:
        return [*track(pool.map(_open, places), "read labels", len(places))]


def _open(place: str) -> tuple[Shard, Any]:
    """A shard and its column of labels."""
    try:
        with _opened(place) as (file, size):
            _, label = find_columns(place, file.schema_arrow)
            return Shard(place, size, file.metadata), file.read(columns=[label]).column(label)
    except VitesseError:
        raise
    except Exception as error:  # every file system has errors of its own
        raise DataError(f"{place}: cannot read Parquet: {one_line(error)}") from error


@contextlib.contextmanager
def _opened(place: str, footer: Any = None) -> Iterator[tuple[Any, int]]:
    """A `pyarrow.parquet.ParquetFile` and its size in bytes; a request reads a column of a row group."""
    parquet = require("pyarrow.parquet", "train")
    if not is_url(place):
        with parquet.ParquetFile(place, metadata=footer, memory_map=True) as file:
            yield file, Path(place).stat().st_size
        return
    system, path = require("fsspec", "train").core.url_to_fs(place)
    with system.open(path, cache_type="none") as stream, parquet.ParquetFile(stream, metadata=footer) as file:
        yield file, stream.seek(0, os.SEEK_END)


def _encoded_bytes(group: Any, column: str) -> int:
    chunks = (group.column(number) for number in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
