"""WebDataset shards: what is indexed, where it is read from, and shards that are cut anywhere."""

from __future__ import annotations

import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vitesse.data.sources import open_source
from vitesse.errors import DataError


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def shard(path: Path, *labels: int | str) -> Path:
    members = {}
    for number, label in enumerate(labels):
        members[f"{number:03}.cls"] = str(label).encode()
        members[f"{number:03}.jpg"] = f"{path.name} {number} ".encode() * 200
    return write_tar(path, members)


def test_a_picture_and_its_label_are_joined_by_key(tmp_path: Path) -> None:
    members = {
        "./deep/a.b.png": b"not a picture: its suffix is .b.png",
        "deep/": b"",
        "deep/a.json": json.dumps({"label": "bee", "width": 3}).encode(),
        "deep/a.PNG": b"picture of a bee",
        "b.cls": b"ant\n",
        "b.webp": b"picture of an ant",
        "only.txt": b"no picture",
    }
    source = open_source(write_tar(tmp_path / "x.tar", members))
    assert source.class_names == ("ant", "bee")
    assert source.labels.tolist() == [1, 0]
    assert [source.read(0), source.read(1)] == [b"picture of a bee", b"picture of an ant"]
    assert source.name(0) == f"{tmp_path}/x.tar/deep/a"
    assert source.blocks == ()


def test_folders_patterns_and_splits_choose_shards(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"train-{number:06}.tar", 0, number)
    shard(tmp_path / "val-000000.tar", 2)
    assert open_source(tmp_path, "train").labels.tolist() == [0, 0, 0, 1, 0, 2]
    assert open_source(tmp_path, "test").labels.tolist() == [2]
    assert len(open_source(tmp_path / "train-{000001..000002}.tar")) == 4
    assert len(open_source(tmp_path / "train-*.tar", "train")) == 6
    with pytest.raises(DataError, match="holds the splits train, val"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=r"no file .*train-000003.tar"):
        open_source(tmp_path / "train-{000000..000003}.tar")
    assert len(open_source(tmp_path / "train-{000002..000002}.tar")) == 2
    with pytest.raises(DataError, match="expected numbers that rise"):
        open_source(tmp_path / "train-{000002..000001}.tar")
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"expected .tar or .parquet files, got .txt"):
        open_source(tmp_path / "*.txt")


def test_split_folders_may_hold_shards(tmp_path: Path) -> None:
    shard(tmp_path / "train" / "000.tar", 0, 1)
    shard(tmp_path / "val" / "000.tar", 1)
    assert open_source(tmp_path, "train").labels.tolist() == [0, 1]
    assert open_source(tmp_path, "val").labels.tolist() == [1]


@pytest.mark.parametrize(
    ("file", "text"), [("classes.txt", "zoo\nant\n"), ("classes.json", '["zoo", "ant"]')]
)
def test_a_file_of_classes_orders_them(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    shard(tmp_path / "names.tar", "ant")
    shard(tmp_path / "numbers.tar", 1)
    for name in ("names", "numbers"):
        source = open_source(tmp_path / f"{name}.tar")
        assert source.class_names == ("zoo", "ant")
        assert source.labels.tolist() == [1]
    shard(tmp_path / "wrong.tar", "zoo", "ants")
    with pytest.raises(DataError, match=r"wrong.tar/001: no such class 'ants'; did you mean ant"):
        open_source(tmp_path / "wrong.tar")
    shard(tmp_path / "far.tar", 2)
    with pytest.raises(DataError, match="expected a label of 0 to 1, got 2"):
        open_source(tmp_path / "far.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"x"}, "picture a has no a.cls"),
        ({"a.jpg": b"x", "a.json": b"{}"}, "picture a has no a.cls"),
        ({"a.jpg": b"x", "a.json": b"["}, "a.json: expected a label"),
        ({"a.jpg": b"x", "a.json": b'{"label": 1.5}'}, "as text or a whole number, got 1.5"),
        ({"a.jpg": b"x", "a.cls": b""}, "got ''"),
        ({"a.jpg": b"x", "a.png": b"y", "a.cls": b"1"}, "expected one picture of each key, found another"),
        ({"a.txt": b"x"}, "expected pictures"),
    ],
)
def test_a_sample_that_lacks_something_is_named(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_source(write_tar(tmp_path / "x.tar", members))
    assert "\n" not in str(caught.value)


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(DataError, match=r"expected a plain .tar, not compressed"):
        open_source(tmp_path / "x.tar")


def test_a_shard_cut_anywhere_loses_no_picture_silently(tmp_path: Path) -> None:
    whole = shard(tmp_path / "whole.tar", 0, 1, 2).read_bytes()
    end = whole.rstrip(b"\0")
    outcomes = set()
    for length in range(0, len(end), 256):
        cut = tmp_path / "cut.tar"
        cut.write_bytes(whole[:length])
        try:
            source = open_source(cut)
        except DataError:
            outcomes.add("refused")
            continue
        readable = [len(source.read(index)) for index in range(len(source) - 1)]
        assert len(set(readable)) <= 1
        with pytest.raises(OSError, match="the shard ends after"):
            source.read(len(source) - 1)
        outcomes.add("last unreadable")
    assert outcomes == {"refused", "last unreadable"}


def test_a_label_is_not_taken_from_a_cut_file(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": b"picture", "a.cls": b"123"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"123\0") + 1])
    with pytest.raises(DataError, match=r"cut short within a.cls"):
        open_source(path)


def test_a_damaged_header_in_the_middle_is_noticed(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", 0, 1)
    data = bytearray(path.read_bytes())
    data[data.index(b"001.cls") + 150] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"cut short or damaged after 000.jpg"):
        open_source(path)


def test_threads_and_forked_processes_read_the_same(tmp_path: Path) -> None:
    shard(tmp_path / "a-0.tar", *range(20))
    shard(tmp_path / "a-1.tar", *range(20))
    source = open_source(tmp_path)
    expected = [source.read(index) for index in range(len(source))]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.read, range(len(source)))) == expected
    child = os.fork()
    if not child:
        os._exit(any(source.read(index) != expected[index] for index in range(len(source))))
    assert [source.read(index) for index in reversed(range(len(source)))] == expected[::-1]
    assert os.waitpid(child, 0)[1] == 0
