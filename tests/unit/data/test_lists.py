"""Lists of picture files: columns, labels, splits, and the line that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitesse.data.sources import open_source
from vitesse.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def write(path: Path, text: str, *, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", 'file,label\r\nin/b.jpg,dog\r\n"in/a, 1.jpg",cat\r\n'),
        ("list.tsv", "label\tpath\ndog\tin/b.jpg\ncat\tin/a, 1.jpg\n"),
        (
            "list.jsonl",
            '{"image": "in/b.jpg", "label": "dog"}\n\n{"image": "in/a, 1.jpg", "label": "cat"}\n',
        ),
    ],
)
def test_the_three_kinds_of_list_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    touch(tmp_path, "in/a, 1.jpg", "in/b.jpg")
    source = open_source(write(tmp_path / name, text))
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [1, 0]
    assert [source.read(index) for index in range(2)] == [b"in/b.jpg", b"in/a, 1.jpg"]


def test_labels_that_are_numbers_are_class_indices(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    source = open_source(
        write(tmp_path / "list.csv", "file,label\na.jpg,10\nb.jpg,2\n", encoding="utf-8-sig")
    )
    assert source.labels.tolist() == [10, 2]
    assert source.class_names == tuple(str(label) for label in range(11))
    rows = [{"file": "a.jpg", "label": 1}, {"file": "b.jpg", "label": 0}]
    lines = "\n".join(map(json.dumps, rows))
    assert open_source(write(tmp_path / "list.jsonl", lines)).labels.tolist() == [1, 0]


def test_a_split_column_parts_the_list_and_classes_stay_those_of_all_lines(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    path = write(tmp_path / "list.csv", "file,label,split\na.jpg,ant,Train\nb.jpg,bee,val\nc.jpg,cow,train\n")
    train, val = open_source(path, "train"), open_source(path, "test")
    assert train.class_names == val.class_names == ("ant", "bee", "cow")
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 2], [1])
    with pytest.raises(DataError, match="holds the splits train, val; say which one"):
        open_source(path)
    whole = write(tmp_path / "whole.csv", "file,label\na.jpg,ant\n")
    assert open_source(whole, "train").fingerprint == open_source(whole, "test").fingerprint


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "expected one line a picture"),
        ("a.csv", "picture,class\nx.jpg,cat\n", r"expected columns file .* and label, got picture, class"),
        ("a.csv", "file,label\nx.jpg,cat\n,dog\n", "line 3: expected a value for file"),
        ("a.csv", "file,label\nx.jpg,cat\nx.jpg\n", "line 3: expected a value for label"),
        ("a.csv", "file,label\nx.jpg,cat\nx.jpg,dog,7\n", "line 3: expected 2 values, got more"),
        ("a.csv", "file,label\nx.jpg,0\nx.jpg,-1\n", "line 3: expected a class index of 0 to 99999, got -1"),
        ("a.csv", "file,label\nx.jpg,12345678\n", "line 2: expected a class index .* got 12345678"),
        ("a.csv", "file,label\ny.jpg,cat\n", "line 2: no file .*y.jpg, nor any other"),
        ("a.jsonl", '{"file": "x.jpg", "label": 0}\n{"file": ', "line 2: expected one JSON object"),
        ("a.jsonl", "[1]\n", "line 1: expected one JSON object, got list"),
        ("a.jsonl", '{"file": "x.jpg", "label": true}\n', "line 1: expected label as text"),
        ("a.jsonl", '{"file": 3, "label": 1}\n', "line 1: expected file as text, got 3"),
        ("a.csv", "file,label,split\nx.jpg,cat,train\n", "has no split 'test'; found train"),
    ],
)
def test_what_is_wrong_in_a_list_is_told_with_its_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    touch(tmp_path, "x.jpg")
    with pytest.raises(DataError, match=message) as caught:
        open_source(write(tmp_path / name, text), "test")
    assert "\n" not in str(caught.value)


def test_a_list_in_another_encoding_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a list in UTF-8"):
        open_source(write(tmp_path / "a.csv", "file,label\nx.jpg,größe\n", encoding="latin-1"))


def test_one_absent_file_among_others_is_left_to_the_reader(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    source = open_source(write(tmp_path / "list.csv", "file,label\ngone.jpg,cat\na.jpg,dog\n"))
    with pytest.raises(FileNotFoundError):
        source.read(0)
    assert source.read(1) == b"a.jpg"
