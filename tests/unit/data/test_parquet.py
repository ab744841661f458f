"""Parquet that does not fit in memory, behind URLs, in workers; and what `datasets` saves."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfFileSystem
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from vitesse.data.parquet import ParquetSource
from vitesse.data.sources import ArrowSource, Subset, hold_out, open_source, take
from vitesse.errors import DataError

ROWS, GROUP = 50, 8
NAMES = ["ant", "bee", "cow"]


def picture(shard: int, row: int) -> bytes:
    return f"{shard}/{row} ".encode() * 100


def table(shard: int = 0, rows: int = ROWS, *, column: str = "image", label: str = "label") -> pa.Table:
    images = [{"bytes": picture(shard, row), "path": None} for row in range(rows)]
    found = pa.table({column: images, label: pa.array([row % 3 for row in range(rows)], pa.int64())})
    features = {"info": {"features": {label: {"names": NAMES}}}}
    return found.replace_schema_metadata({"huggingface": json.dumps(features)})


def write(target: Any, shard: int = 0, **options: Any) -> Any:
    pq.write_table(table(shard, **options), target, row_group_size=GROUP)
    return target


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"train-{shard}.parquet", shard) for shard in range(2)]


@pytest.fixture
def memory() -> Iterator[Callable[[str, int], None]]:
    """A function that puts a shard at a path of fsspec's file system in memory."""
    system = fsspec.filesystem("memory")

    def put(path: str, shard: int = 0) -> None:
        with system.open(path, "wb") as stream:
            write(stream, shard)

    yield put
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def everything(source: Any, order: Any = None) -> list[bytes]:
    return [source.read(int(index)) for index in (range(len(source)) if order is None else order)]


def test_what_fits_stays_in_memory_and_any_order_is_cheap(shards: list[Path]) -> None:
    source = ParquetSource(shards)
    for shard in shards:
        shard.unlink()
    assert source.blocks == ()
    assert everything(source) == [picture(shard, row) for shard in range(2) for row in range(ROWS)]


def test_what_does_not_fit_is_read_a_row_group_at_a_time(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ParquetSource(shards)
    source = ParquetSource(shards, memory=8000)
    assert source.blocks == (8, 8, 8, 8, 8, 8, 2) * 2
    assert (source.fingerprint, source.class_names) == (whole.fingerprint, ("ant", "bee", "cow"))
    loads: list[int] = []
    load = source._load
    monkeypatch.setattr(source, "_load", lambda group: loads.append(group) or load(group))
    assert everything(source) == everything(whole)
    assert loads == list(range(14))
    loads.clear()
    order = np.random.default_rng(0).permutation(len(source))
    assert everything(source, order) == everything(whole, order)
    assert len(loads) > 14
    assert 0 < sum(source._sizes[group] for group in source._held) <= 8000


def test_a_row_group_larger_than_the_memory_is_still_read(shards: list[Path]) -> None:
    source = ParquetSource(shards, memory=1)
    assert source.read(99) == picture(1, 49)
    assert len(source._held) == 1
    assert source.name(99) == f"{shards[1]}[49]"


@pytest.mark.parametrize("budget", [1, 10**9])
def test_workers_threads_and_copies_read_the_same(shards: list[Path], budget: int) -> None:
    source = ParquetSource(shards, memory=budget)
    source.read(0)
    expected = [picture(shard, row) for shard in range(2) for row in range(ROWS)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.read, range(100))) == expected
    assert everything(pickle.loads(pickle.dumps(source))) == expected
    loader = DataLoader(Readings(source), batch_size=10, num_workers=2, multiprocessing_context="fork")
    assert [data for batch in loader for data in batch] == expected


class Readings:
    """What a worker of a DataLoader sees of a source."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> bytes:
        return self.source.read(index)


def test_a_fork_while_a_thread_reads_does_not_hang(shards: list[Path], monkeypatch: Any) -> None:
    source = ParquetSource(shards, memory=1)
    inside, leave = threading.Event(), threading.Event()
    load = source._load
    monkeypatch.setattr(source, "_load", lambda group: (inside.set(), leave.wait(20), load(group))[2])
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(source.read, 0)
        assert inside.wait(10)
        monkeypatch.setattr(source, "_load", load)
        loader = DataLoader(
            Readings(source), batch_size=50, num_workers=1, multiprocessing_context="fork", timeout=10
        )
        assert sum(len(batch) for batch in loader) == 100
        leave.set()
        assert reading.result() == picture(0, 0)


def test_a_damaged_row_group_is_an_unreadable_picture(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    chunk = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)
    for budget in (1, 10**9):
        source = ParquetSource([path], memory=budget)
        assert (source.read(7), source.read(16)) == (picture(0, 7), picture(0, 16))
        for row in range(8, 16):
            with pytest.raises(OSError, match=r"a.parquet: cannot read row group 1: \w") as caught:
                source.read(row)
            assert "\n" not in str(caught.value)


def test_a_url_streams_its_splits(memory: Callable[..., None]) -> None:
    memory("/owner/name/data/train-00000-of-00002.parquet", 0)
    memory("/owner/name/data/train-00001-of-00002.parquet", 1)
    memory("/owner/name/data/test-00000-of-00001.parquet", 2)
    train = open_source("memory://owner/name", "train")
    assert everything(train) == [picture(shard, row) for shard in range(2) for row in range(ROWS)]
    assert train.name(50) == "memory:///owner/name/data/train-00001-of-00002.parquet[0]"
    assert everything(open_source(Path("memory://owner/name"), "val")) == [picture(2, r) for r in range(ROWS)]
    assert len(open_source("memory://owner/name/data/train-00000-of-00002.parquet")) == ROWS
    assert len(open_source("memory://owner/name/data/train-{00000..00001}-of-00002.parquet")) == 2 * ROWS
    assert len(open_source("memory://owner/name/data/t*.parquet", "train")) == 2 * ROWS
    streamed = ParquetSource(["memory:///owner/name/data/test-00000-of-00001.parquet"], memory=1)
    assert everything(streamed) == [picture(2, row) for row in range(ROWS)]
    with pytest.raises(DataError, match="holds the splits test, train"):
        open_source("memory://owner/name")


def test_split_folders_behind_a_url_count_and_two_data_sets_do_not_mix(memory: Callable[..., None]) -> None:
    for config in ("plain", "large"):
        for split in ("train", "test"):
            memory(f"/set/{config}/{split}/0000.parquet")
    with pytest.raises(DataError, match=r"holds 2 folders .* such as memory:///set/large/train or"):
        open_source("memory://set", "train")
    assert len(open_source("memory://set/plain", "train")) == ROWS


@pytest.fixture
def hub_of_data(hub: Any) -> Iterator[Any]:
    """The hub, whose listings were not seen before and are not seen afterwards."""
    HfFileSystem.clear_instance_cache()
    yield hub
    HfFileSystem.clear_instance_cache()


def test_a_data_set_of_the_hub_streams(hub_of_data: Any, tmp_path: Path) -> None:
    for shard, name in enumerate(("train-0", "train-1", "test-0")):
        content = write(tmp_path / "shard.parquet", shard).read_bytes()
        hub_of_data.add("datasets/owner/name", f"data/{name}.parquet", content)
    train = open_source("hf://datasets/owner/name", "train")
    assert everything(train) == [picture(shard, row) for shard in range(2) for row in range(ROWS)]
    streamed = ParquetSource(["hf://datasets/owner/name/data/test-0.parquet"], memory=1)
    hub_of_data.ranges.clear()
    assert streamed.read(30) == picture(2, 30)
    chunk = pq.read_metadata(tmp_path / "shard.parquet").row_group(3).column(0)
    assert hub_of_data.ranges == [chunk.total_compressed_size]
    loader = DataLoader(Readings(streamed), batch_size=10, num_workers=2, multiprocessing_context="fork")
    assert [data for batch in loader for data in batch] == [picture(2, row) for row in range(ROWS)]
    with pytest.raises(DataError, match=r"hf://datasets/owner/absent: cannot be opened") as caught:
        open_source("hf://datasets/owner/absent", "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://absent", "expected Parquet files, found none|cannot be opened"),
        ("nonsense://absent", "cannot be opened: Protocol not known"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused_in_one_line(url: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_source(url, "train")
    assert "\n" not in str(caught.value)


def test_a_file_url_is_a_path(shards: list[Path]) -> None:
    assert len(open_source(f"file://{shards[0]}")) == ROWS


def test_columns_of_other_names_and_kinds(tmp_path: Path) -> None:
    write(tmp_path / "hub.parquet", column="img", label="fine_label")
    source = open_source(tmp_path / "hub.parquet")
    assert (source.class_names, source.read(1)) == (("ant", "bee", "cow"), picture(0, 1))
    pq.write_table(pa.table({"image": [b"one", b"two"], "label": ["dog", "cat"]}), tmp_path / "plain.parquet")
    source = open_source(tmp_path / "plain.parquet")
    assert (source.class_names, source.labels.tolist()) == (("cat", "dog"), [1, 0])
    assert everything(source) == [b"one", b"two"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None], r"a.parquet\[1\]: expected a label, found none"),
        ([0.5, 1.0], "whole numbers or text, got double"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, labels: list[Any], message: str) -> None:
    pq.write_table(pa.table({"image": [b"one", b"two"], "label": labels}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        open_source(tmp_path)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows=0)
    save(tmp_path / "saved", table(rows=0))
    for name in ("a.parquet", "saved"):
        with pytest.raises(DataError, match="its table has no rows"):
            open_source(tmp_path / name)


def test_shards_without_a_split_s_name_are_one_data_set(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"part{number}.parquet", number)
    assert len(open_source(tmp_path, "train")) == len(open_source(tmp_path)) == 2 * ROWS


@given(
    blocks=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    drawn=st.randoms(use_true_random=False),
    ordered=st.booleans(),
)
def test_the_blocks_of_a_subset_are_runs_of_one_block(blocks: list[int], drawn: Any, ordered: bool) -> None:
    class Fake:
        labels, class_names, fingerprint = np.zeros(sum(blocks), np.int64), ("x",), ""

    source = Fake()
    source.blocks = tuple(blocks)
    indices = drawn.sample(range(sum(blocks)), drawn.randint(1, sum(blocks)))
    subset = Subset(source, np.array(sorted(indices) if ordered else indices, np.int64))
    assert sum(subset.blocks) == len(subset)
    block_of = np.repeat(np.arange(len(blocks)), blocks)[subset.indices]
    runs = np.split(block_of, np.cumsum(subset.blocks)[:-1])
    assert all(len(set(run.tolist())) == 1 for run in runs)
    assert all(left[-1] != right[0] for left, right in pairwise(runs))


def test_parts_of_a_source_in_blocks_keep_them(shards: list[Path]) -> None:
    source = ParquetSource(shards, memory=1)
    assert [sum(part.blocks) for part in hold_out(source, 0.2, 0)] == [80, 20]
    assert sum(take(source, 60).blocks) == 60
    assert take(ParquetSource(shards), 60).blocks == ()


def save(folder: Path, saved: pa.Table, indices: list[str] | None = None) -> Path:
    """What `datasets.Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"_indices_data_files": indices}))
    path = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, saved.schema) as stream:
        stream.write_table(saved, 7)
    return folder


def test_a_saved_dataset_is_mapped(tmp_path: Path) -> None:
    save(tmp_path / "train", table(0))
    save(tmp_path / "test", table(1, rows=9))
    train = open_source(tmp_path, "train")
    assert everything(train) == [picture(0, row) for row in range(ROWS)]
    assert (train.class_names, train.blocks) == (("ant", "bee", "cow"), ())
    assert len(open_source(tmp_path / "test")) == 9
    with pytest.raises(DataError, match="flatten_indices"):
        open_source(save(tmp_path / "picked", table(0), ["indices.arrow"]))
    (tmp_path / "test" / "data-00000-of-00001.arrow").write_bytes(b"no Arrow")
    with pytest.raises(DataError, match="cannot read what datasets saved"):
        open_source(tmp_path, "test")


class FakeFeature:
    names = tuple(NAMES)


class FakeIterable:
    features = MappingProxyType({"label": FakeFeature})

    def with_format(self, _: str) -> FakeIterable:
        return self

    def __getitem__(self, column: Any) -> Any:
        return iter(())


class FakeDataset(FakeIterable):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, rows: slice) -> pa.Table:
        return table(0).replace_schema_metadata(None)[rows]


def test_a_dataset_object_is_a_source_and_an_iterable_one_is_not() -> None:
    source = open_source(FakeDataset())
    assert isinstance(source, ArrowSource)
    assert (source.class_names, source.read(2)) == (("ant", "bee", "cow"), picture(0, 2))
    with pytest.raises(DataError, match="FakeIterable: its order cannot be resumed exactly; give the URL"):
        open_source(FakeIterable())
    with pytest.raises(DataError, match=r"expected a path, a URL or a datasets.Dataset, got int"):
        open_source(3)
