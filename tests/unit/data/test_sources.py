"""Labelled pictures on disk: each layout, its splits, and what is refused."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitesse.data.sources import FileSource, hold_out, open_source, take
from vitesse.errors import DataError

PaintClasses = Callable[..., Path]


def write_shard(path: Path, labels: list[int], names: list[str] | None = None) -> None:
    images = [{"bytes": f"{path.name}:{row}".encode(), "path": None} for row in range(len(labels))]
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    if names is not None:
        features = {"info": {"features": {"label": {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path)


def test_class_folders_are_labelled_in_sorted_order(tmp_path: Path, paint_classes: PaintClasses) -> None:
    source = open_source(paint_classes(tmp_path, per_class=3))
    assert source.class_names == ("blue", "green", "red")
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert source.read(4) == (tmp_path / "green" / "001.png").read_bytes()
    assert source.name(4).endswith("green/001.png")


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (("10", "9", "0"), ("0", "9", "10")),
        (("010", "9", "2"), ("2", "9", "010")),
        (("10", "9", "x"), ("10", "9", "x")),
    ],
)
def test_folders_that_are_all_numbers_are_ordered_as_numbers(
    tmp_path: Path, names: tuple[str, ...], ordered: tuple[str, ...]
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(name.encode())
    source = open_source(tmp_path)
    assert source.class_names == ordered
    assert [source.read(index).decode() for index in range(3)] == list(ordered)


def test_an_empty_class_folder_stays_a_class_and_hidden_files_are_none(tmp_path: Path) -> None:
    for name in ("ant/a.jpg", "cow/._a.jpg", "cow/.cache.png", ".git/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = open_source(tmp_path)
    assert (source.class_names, source.labels.tolist()) == (("ant", "cow"), [0])


def test_pictures_outside_class_folders_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(
        DataError, match=r"1 pictures in no class folder; expected .*/CLASS/PICTURE"
    ) as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "b.jpg").touch()
    assert len(open_source(tmp_path)) == 1
    assert "1 pictures are in no class folder and are left out" in capsys.readouterr().err


@pytest.mark.parametrize(("folder", "split"), [("test", "test"), ("val", "test"), ("validation", "val")])
def test_split_folders_answer_to_their_aliases(
    tmp_path: Path, paint_classes: PaintClasses, folder: str, split: str
) -> None:
    paint_classes(tmp_path / "train", per_class=4)
    paint_classes(tmp_path / folder, per_class=1)
    assert len(open_source(tmp_path, "train")) == 12
    assert len(open_source(tmp_path, split)) == 3
    with pytest.raises(DataError, match="say which one"):
        open_source(tmp_path)


def test_parquet_shards_are_joined_in_order_and_keep_names(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-00000-of-00002.parquet", [1, 0], ["cat", "dog"])
    write_shard(tmp_path / "train-00001-of-00002.parquet", [1], ["cat", "dog"])
    write_shard(tmp_path / "test-00000-of-00001.parquet", [0], ["cat", "dog"])
    source = open_source(tmp_path, "train")
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [1, 0, 1]
    assert source.read(2) == b"train-00001-of-00002.parquet:0"
    assert source.name(2).endswith("train-00001-of-00002.parquet[0]")
    assert len(open_source(tmp_path, "validation")) == 1
    assert len(open_source(tmp_path / "test-00000-of-00001.parquet")) == 1


def test_labels_tsv_names_files_or_wnids(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.JPEG", "n02.jpg"):
        (tmp_path / "images" / name).write_bytes(name.encode())
    (tmp_path / "labels.tsv").write_text("file\tindex\tname\na.JPEG\t2\ttench\n")
    source = open_source(tmp_path, "test")
    assert (source.read(0), source.labels.tolist()) == (b"a.JPEG", [2])
    assert source.class_names == ("0", "1", "tench")
    (tmp_path / "labels.tsv").write_text("index\twnid\n0\tn02\n")
    assert open_source(tmp_path).read(0) == b"n02.jpg"


def test_the_real_sets_have_their_stated_sizes(data_dir: Path) -> None:
    train = open_source(data_dir / "cifar100", "train")
    assert (len(train), len(train.class_names)) == (50_000, 100)
    assert np.bincount(train.labels).tolist() == [500] * 100
    validation = open_source(data_dir / "in1k_val500", "test")
    assert (len(validation), len(np.unique(validation.labels))) == (500, 10)
    assert len(open_source(data_dir / "in1k_samples")) == 1000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "absent", "no such file or folder"),
        (lambda root: root, "expected class folders"),
        (lambda root: _write(root / "list.csv", "a,b"), "expected one line a picture"),
        (lambda root: _write(root / "a.parquet", "not parquet"), "cannot read Parquet"),
        (lambda root: _write(root / "labels.tsv", "file\tname\nx\ty\n").parent, "expected columns index"),
        (lambda root: _write(root / "labels.tsv", "file\tindex\nx\tone\n").parent, "whole numbers"),
    ],
)
def test_what_is_no_dataset_is_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_source(make(tmp_path))
    assert "\n" not in str(caught.value)


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_label_outside_the_classes_names_its_row(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [0, 7], ["cat", "dog"])
    with pytest.raises(DataError, match=r"a.parquet\[1\]: expected a label of 0 to 1, got 7"):
        open_source(tmp_path)


def test_parquet_of_another_layout_names_the_missing_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"pixels": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="lacks image, label"):
        open_source(tmp_path)


def test_an_absent_split_lists_those_that_exist(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.parquet", [0])
    with pytest.raises(DataError, match="no split 'test'; found train"):
        open_source(tmp_path, "test")


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    share=st.floats(0.05, 0.5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_holding_out_splits_every_class_and_loses_nothing(counts: list[int], share: float, seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    source = FileSource(
        Path("absent"), [*map(str, range(len(labels)))], labels, [*map(str, range(len(counts)))]
    )
    kept, held_out = hold_out(source, share, seed)
    names = [kept.name(i) for i in range(len(kept))] + [held_out.name(i) for i in range(len(held_out))]
    assert sorted(names) == sorted(source.name(i) for i in range(len(source)))
    assert np.bincount(held_out.labels, minlength=len(counts)).tolist() == [round(c * share) for c in counts]
    again = hold_out(source, share, seed)[1]
    assert again.fingerprint == held_out.fingerprint


def test_names_of_files_take_little_memory() -> None:
    files = [f"n{index % 100:08}/n{index % 100:08}_{index:07}.JPEG" for index in range(20_000)]
    labels = np.zeros(len(files), np.int64)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        source = FileSource(Path("train"), files, labels, ["a"])
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / len(files) < 64
    assert [source.name(i) for i in (0, 19_999)] == [f"train/{files[0]}", f"train/{files[-1]}"]


def test_any_name_of_a_file_will_do(tmp_path: Path) -> None:
    names = ["é 漢.png", os.fsdecode(b"\xff\xfe.png"), "deep/er/a.png", str(tmp_path / "elsewhere" / "b.png")]
    for index, name in enumerate(names):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_bytes(b"x" * (index + 1))
    unreal = ["\ud800.png", "a\0b.png", "absent.png", ""]
    source = FileSource(tmp_path / "root", [*names, *unreal], [0] * 8, ["a"])
    assert [source.read(index) for index in range(4)] == [b"x", b"xx", b"xxx", b"xxxx"]
    assert [source.name(index) for index in range(8)] == [str(tmp_path / "root" / n) for n in names + unreal]
    assert source.sizes()[:7].tolist() == [1, 2, 3, 4, 0, 0, 0]


def test_fingerprints_see_labels_and_limits(tmp_path: Path) -> None:
    source = FileSource(Path(), ["a", "b"], [0, 1], ["x", "y"])
    other = FileSource(Path(), ["a", "b"], [1, 0], ["x", "y"])
    assert source.fingerprint != other.fingerprint
    assert take(source, None) is source
    assert take(source, 1).fingerprint != source.fingerprint
    assert len(take(source, 1)) == 1
