"""What a user names as data, as a source of labelled pictures."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any, cast

from vitesse.data.contract import ALIASES, Source, is_url, leading_word, of_split
from vitesse.data.files import (
    LIST_SUFFIXES,
    FileSource,
    is_picture,
    read_class_folders,
    read_index_list,
    read_list,
    subfolders,
)
from vitesse.data.parquet import ParquetSource, find_shards
from vitesse.data.subset import (
    HELD_OUT_SHARE,
    Relabelled,
    Subset,
    hold_out,
    seen_in_training,
    take,
    unseen,
)
from vitesse.data.table import ArrowSource, open_dataset, open_saved
from vitesse.data.tar import TarSource
from vitesse.data.torchvision_sets import SETS, open_set
from vitesse.errors import DataError

__all__ = [
    "HELD_OUT_SHARE",
    "ArrowSource",
    "FileSource",
    "ParquetSource",
    "Relabelled",
    "Source",
    "Subset",
    "TarSource",
    "hold_out",
    "open_pictures",
    "open_source",
    "seen_in_training",
    "take",
    "unseen",
]


def open_source(path: str | Path | Any, split: str | None = None) -> Source:
    """The labelled pictures at `path`.

    Args:
        path: a folder of class folders, or of split folders of those; a `.csv`, `.tsv` or `.jsonl` list; a
            folder with `labels.tsv` and `images/`; Parquet or `.tar` shards: a file, a folder or a pattern
            (`shards-{000000..000009}.tar`), named after their split where there are several; a URL of
            Parquet (`hf://datasets/OWNER/NAME`); a set of torchvision's (`cifar10:ROOT`, see
            `torchvision_sets.SETS`); a `datasets.Dataset`, or the folder it was saved to; an opened source,
            which is given back.
        split: `train` or `test`; `val`, `valid` and `validation` count as `test`. Data without splits is
            the same whichever is asked for. None takes everything there is, or refuses where there are
            several splits, so that training data is never scored by accident.

    Raises:
        DataError: the path does not exist, its layout is not one of these, or it lacks the split.
        MissingExtraError: Parquet is asked for and pyarrow is not installed.
    """
    if hasattr(path, "fingerprint") and hasattr(path, "read"):
        return cast(Source, path)
    if not isinstance(path, str | Path):
        return open_dataset(path)
    name, _, rest = str(path).partition(":")
    if name in SETS and rest:
        return open_set(name, Path(rest).expanduser(), split)
    place = _as_written(str(path))
    if is_url(place):
        return ParquetSource([shard for url in _braces(place) for shard in find_shards(url, split)])
    if Path(place).is_dir():
        return _open_folder(Path(place), split)
    if Path(place).is_file():
        return _open_file(Path(place), split)
    if _braces(place) != [place] or glob.has_magic(place):
        return _open_pattern(place, split)
    raise DataError(f"{place}: no such file or folder")


def open_pictures(path: str | Path | Any, split: str | None = None) -> Source:
    """As `open_source`, for work that needs no labels: also a folder with nothing but pictures right in it.

    Raises:
        DataError, MissingExtraError: see `open_source`.
    """
    if isinstance(path, str | Path) and Path(path).is_dir() and not subfolders(Path(path)):
        files = [entry.name for entry in sorted(Path(path).iterdir()) if is_picture(entry)]
        if files:
            return FileSource(Path(path), files, [0] * len(files), ["picture"])
    return open_source(path, split)


def _as_written(place: str) -> str:
    """A URL whose second slash `pathlib` took away, as it was; a `file:` URL as a path."""
    if (url := re.fullmatch(r"([a-z][a-z0-9+.]+):/+(.*)", place)) is None:
        return place
    return f"/{url[2]}" if url[1] == "file" else f"{url[1]}://{url[2]}"


def _braces(pattern: str) -> list[str]:
    """`a-{08..10}` as `a-08`, `a-09`, `a-10`."""
    if (found := re.search(r"\{(\d+)\.\.(\d+)\}", pattern)) is None:
        return [pattern]
    start, end = pattern[: found.start()], pattern[found.end() :]
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [text for number in numbers for text in _braces(f"{start}{number:0{len(found[1])}d}{end}")]


def _open_pattern(pattern: str, split: str | None) -> Source:
    files: list[Path] = []
    for part in _braces(pattern):
        found = sorted(glob.glob(part)) if glob.has_magic(part) else [part]  # noqa: PTH207  (may be absolute)
        if not found or not Path(found[0]).exists():
            raise DataError(f"{pattern}: no file {part}")
        files += map(Path, found)
    kinds = {file.suffix for file in files}
    if not kinds:
        raise DataError(f"{pattern}: expected numbers that rise, such as {{000000..000009}}")
    if kinds not in ({".tar"}, {".parquet"}):
        raise DataError(f"{pattern}: expected .tar or .parquet files, got {', '.join(sorted(kinds))}")
    return _open_shards(pattern, files, split)


def _open_file(file: Path, split: str | None) -> Source:
    if file.suffix in LIST_SUFFIXES:
        return read_list(file, split)
    if file.suffix not in (".tar", ".parquet"):
        raise DataError(
            f"{file}: expected a folder of pictures or a .parquet, .tar, .csv, .tsv or .jsonl file"
        )
    return _open_shards(file, [file], None)


def _open_folder(root: Path, split: str | None) -> Source:
    if (source := _open_contents(root, split)) is not None:
        return source
    folders = subfolders(root)
    if not ALIASES.keys() & {folder.name for folder in folders}:
        return read_class_folders(root)
    chosen = of_split(root, folders, split, lambda folder: folder.name)[0]
    source = _open_contents(chosen, None)
    return read_class_folders(chosen) if source is None else source


def _open_contents(root: Path, split: str | None) -> Source | None:
    """What shards or a list right in a folder hold; None where there are only other folders."""
    for pattern in ("*.parquet", "data/*.parquet", "*.tar"):
        if shards := sorted(root.glob(pattern)):
            return _open_shards(root, shards, split)
    if (root / "state.json").is_file() and (shards := sorted(root.glob("*.arrow"))):
        return open_saved(root, shards)
    return read_index_list(root) if (root / "labels.tsv").is_file() else None


def _open_shards(where: object, shards: list[Path], split: str | None) -> Source:
    chosen = of_split(where, shards, split, lambda shard: leading_word(shard.name))
    return TarSource(chosen) if chosen[0].suffix == ".tar" else ParquetSource(chosen)
