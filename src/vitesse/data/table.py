"""Pictures in Arrow tables: the columns of the Hub's image layout, and data sets that `datasets` saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.contract import check_labels, digest, index_labels, numbered_classes
from vitesse.errors import DataError, require

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


class ArrowSource:
    """An Arrow table in the Hub's image layout, in memory or mapped from a file."""

    blocks: tuple[int, ...] = ()

    def __init__(self, where: str, table: Any, names: Sequence[str] = ()) -> None:
        image, label = find_columns(where, table.schema)
        if not len(table):
            raise DataError(f"{where}: expected pictures, its table has no rows")
        self.where = where
        self.labels, self.class_names = read_labels(table.column(label), table.schema, self.name, names)
        self._images = encoded_pictures(table.column(image))
        check_labels(self)
        self.fingerprint = digest([f"{len(table)}:{table.nbytes}"], self.labels, self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def read(self, index: int) -> bytes:
        encoded: bytes = self._images[index].as_py() or b""
        return encoded

    def sizes(self) -> NDArray[np.int64]:
        return encoded_sizes(self._images)


def open_saved(root: Path, shards: Sequence[Path]) -> ArrowSource:
    """What `datasets.Dataset.save_to_disk` wrote; its files are mapped, not read.

    Raises:
        DataError: a file is damaged, has other columns, or was saved with a selection that is not applied.
    """
    pyarrow = require("pyarrow", "train")
    try:
        if json.loads((root / "state.json").read_text(encoding="utf-8")).get("_indices_data_files"):
            raise DataError(f"{root}: its pictures were selected or shuffled: save dataset.flatten_indices()")
        tables = [pyarrow.ipc.open_stream(pyarrow.memory_map(str(shard))).read_all() for shard in shards]
        table = pyarrow.concat_tables(tables)
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{root}: cannot read what datasets saved: {one_line(error)}") from error
    return ArrowSource(str(root), table)


def open_dataset(dataset: Any) -> ArrowSource:
    """A `datasets.Dataset`.

    Raises:
        DataError: it is another object, such as an IterableDataset.
    """
    kind = type(dataset).__name__
    if not hasattr(dataset, "with_format"):
        raise DataError(f"expected a path, a URL or a datasets.Dataset, got {kind}")
    if not hasattr(dataset, "__len__"):
        raise DataError(
            f"{kind}: its order cannot be resumed exactly; give the URL of its Parquet files, such as "
            "hf://datasets/OWNER/NAME"
        )
    if not hasattr(dataset, "features"):
        raise DataError(f"{kind}: expected one split of it, such as its 'train'")
    label = next((column for column in LABEL_COLUMNS if column in dataset.features), "")
    names = getattr(dataset.features.get(label), "names", None) or ()
    return ArrowSource(kind, dataset.with_format("arrow")[:], names)


def find_columns(where: str, schema: Any) -> tuple[str, str]:
    """The names of the column of pictures and of the column of labels.

    Raises:
        DataError: one is absent.
    """
    found = [
        next((column for column in columns if column in schema.names), None)
        for columns in (IMAGE_COLUMNS, LABEL_COLUMNS)
    ]
    if missing := [
        columns[0] for columns, name in zip((IMAGE_COLUMNS, LABEL_COLUMNS), found, strict=True) if not name
    ]:
        raise DataError(
            f"{where}: expected columns image and label, lacks {', '.join(missing)}; has {schema.names}"
        )
    image, label = found
    return str(image), str(label)


def read_labels(
    column: Any, schema: Any, where: Callable[[int], str], names: Sequence[str] = ()
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class indices int64 (N,) and class names of a column of indices, or of names.

    Raises:
        DataError: a picture has no label, or one that is neither.
    """
    if column.null_count:
        first = column.is_null().to_numpy().argmax()
        raise DataError(f"{where(int(first))}: expected a label, found none ({column.null_count} have none)")
    class_names = tuple(names) or _class_names(schema.metadata or {})
    if str(column.type).startswith(("int", "uint")):
        labels = column.to_numpy().astype(np.int64)
        return labels, class_names or numbered_classes(labels, where)
    if str(column.type) not in ("string", "large_string"):
        raise DataError(f"{where(0)}: expected labels as whole numbers or text, got {column.type}")
    return index_labels(column.to_pylist(), where, class_names)


def encoded_pictures(column: Any) -> Any:
    """The bytes of a column of pictures: structs of `bytes` and `path`, or bytes alone."""
    chunks = [chunk.field("bytes") if chunk.type.num_fields else chunk for chunk in column.chunks]
    if len(chunks) == 1:
        return chunks[0]
    return require("pyarrow", "train").chunked_array(chunks, chunks[0].type if chunks else "binary")


def encoded_sizes(pictures: Any) -> NDArray[np.int64]:
    """Bytes of each of them, int64 (N,)."""
    compute = require("pyarrow.compute", "train")
    lengths = compute.fill_null(compute.binary_length(pictures), 0)
    return np.asarray(lengths, np.int64)


def one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(next(features[column] for column in LABEL_COLUMNS if column in features)["names"])
    except (KeyError, ValueError, StopIteration):
        return ()
