"""What is said of data before training: each fault is put there and found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vitesse.data.check as check
from vitesse.data.check import (
    DataCheck,
    check_data,
    check_trainable,
    class_balance,
    find_duplicates,
    find_unreadable,
)
from vitesse.data.sources import FileSource, Source, open_source
from vitesse.errors import DataError

PaintClasses = Callable[..., Path]


@pytest.fixture
def photos(tmp_path: Path, paint_classes: PaintClasses) -> Path:
    """`train` with 6 and `val` with 2 pictures a class, no two alike."""
    paint_classes(tmp_path / "train", per_class=6)
    paint_classes(tmp_path / "val", per_class=2, size=24)
    return tmp_path


def checked(photos: Path, **options: bool) -> DataCheck:
    return check_data(open_source(photos, "train"), open_source(photos, "val"), workers=2, **options)


def copy(photos: Path, source: str, target: str) -> None:
    (photos / target).write_bytes((photos / source).read_bytes())


def names_of(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def test_good_data_needs_two_lines(photos: Path) -> None:
    found = checked(photos)
    assert found.lines() == ["balance: 6 pictures in each of 3 classes", "every picture can be decoded"]
    assert (found.train_counts, found.val_counts) == ((6, 6, 6), (2, 2, 2))
    assert found.duplicates == found.leaked == found.conflicting == found.unreadable == ()


def test_every_fault_is_found_and_said_once(photos: Path) -> None:
    copy(photos, "train/blue/000.png", "train/blue/copy.png")
    copy(photos, "train/red/001.png", "val/red/leak.png")
    copy(photos, "train/green/002.png", "train/red/wrong.png")
    (photos / "train" / "green" / "000.png").write_bytes(b"no picture")
    (photos / "train" / "green" / "001.png").write_bytes(b"")
    (photos / "train" / "green" / "004.png").write_bytes(b"")
    (photos / "train" / "green" / "003.png").unlink()
    (photos / "train" / "green" / "003.png").symlink_to("nowhere.png")
    (photos / "train" / "empty").mkdir()
    (photos / "val" / "empty").mkdir()
    found = checked(photos, decode=True)
    assert found.class_names == ("blue", "empty", "green", "red")
    assert found.train_counts == (7, 0, 6, 7)
    assert found.duplicates is not None
    assert sorted(len(same.train) + len(same.val) for same in found.duplicates) == [2, 2, 2]
    (leaked,), (conflicting,) = found.leaked, found.conflicting
    assert [Path(name).name for name in leaked.train + leaked.val] == ["001.png", "leak.png"]
    assert conflicting.classes == ("green", "red")
    assert [Path(bad.name).name for bad in found.unreadable] == ["000.png", "001.png", "003.png", "004.png"]
    lines = found.lines()
    assert len(lines) <= 8
    assert lines[0] == ("balance: 0 to 7 pictures a class, median 6.5; fewest: 'empty' (0)")
    for text in (
        "1 class has no training picture: 'empty'",
        "1 class has no validation picture: 'empty'",
        "3 pictures are a copy of another, the first is",
        "1 picture is in both training and validation data, the first is",
        "1 picture is there under several classes, the first is",
        "4 pictures cannot be read, the first is",
    ):
        assert sum(line.startswith(text) for line in lines) == 1, text


def test_a_check_is_plain_json(photos: Path) -> None:
    copy(photos, "train/red/001.png", "val/red/leak.png")
    record = json.loads(json.dumps(checked(photos, decode=False).to_dict()))
    assert record["train_counts"] == [6, 6, 6]
    assert record["leaked"] == record["duplicates"]
    assert record["leaked"][0]["classes"] == ["red"]
    assert (record["decoded"], record["conflicting"], record["unreadable"]) == (False, [], [])


def test_what_cannot_be_read_is_named_without_decoding_too(photos: Path) -> None:
    (photos / "train" / "green" / "001.png").write_bytes(b"")
    (photos / "train" / "green" / "002.png").write_bytes(b"not decoded")
    (bad,) = checked(photos, decode=False).unreadable
    assert (Path(bad.name).name, bad.reason) == ("001.png", "it holds no bytes")


def test_duplicates_of_too_many_pictures_are_left_out_and_that_is_said(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "MAX_COMPARED", 23)
    found = checked(photos, decode=False)
    assert found.duplicates is None
    assert found.leaked == ()
    assert found.lines()[1:] == ["duplicates: left out, there is too much to compare"]


class Counting(FileSource):
    """Pictures of a split that remember which of them were read."""

    def __init__(self, photos: Path, split: str) -> None:
        found = open_source(photos, split)
        super().__init__(photos, names_of(found), found.labels, found.class_names)
        self.reads: list[str] = []

    def read(self, index: int) -> bytes:
        self.reads.append(self.name(index))
        return super().read(index)


class Remote(Counting):
    def sizes(self) -> None:  # type: ignore[override]
        return None


def test_to_decode_them_each_picture_is_read_once(photos: Path) -> None:
    train, val = Counting(photos, "train"), Remote(photos, "val")
    assert check_data(train, val, workers=3).duplicates == ()
    assert sorted(train.reads + val.reads) == sorted(names_of(train) + names_of(val))


def test_without_decoding_only_what_may_be_a_copy_is_read(photos: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    for number, file in enumerate(files):
        file.write_bytes(bytes(number + 1))
    copy(photos, "train/red/001.png", "val/red/leak.png")
    train, val = Counting(photos, "train"), Counting(photos, "val")
    (same,) = check_data(train, val, decode=False).leaked
    assert train.reads + val.reads == [*same.train, *same.val]
    train, val = Counting(photos, "train"), Remote(photos, "val")
    assert check_data(train, val, decode=False).duplicates is None
    assert train.reads + val.reads == []


def test_a_check_ends_when_told(photos: Path) -> None:
    def stop() -> None:
        if train.reads:
            raise InterruptedError

    train = Counting(photos, "train")
    with pytest.raises(InterruptedError):
        check_data(train, open_source(photos, "val"), workers=1, check=stop)
    assert len(train.reads) == 1


def test_the_parts_answer_alone(photos: Path) -> None:
    copy(photos, "train/blue/000.png", "train/red/copy.png")
    (photos / "train" / "blue" / "005.png").write_bytes(b"no picture")
    source = open_source(photos, "train")
    assert class_balance(source).tolist() == [6, 6, 7]
    (same,) = find_duplicates(source, workers=2)
    assert same.conflicting
    assert not same.leaked
    (bad,) = find_unreadable(source, workers=2)
    assert bad.name.endswith("blue/005.png")


def test_data_of_other_classes_is_not_compared(photos: Path) -> None:
    (photos / "val" / "cyan").mkdir()
    with pytest.raises(DataError, match="hold different classes, such as cyan"):
        checked(photos)


def test_arrays_are_decoded_as_arrays(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", np.zeros((4, 4, 5), np.uint8) + ord(name))
    np.save(tmp_path / "b" / "y.npy", np.array([{}]), allow_pickle=True)
    (bad,) = find_unreadable(open_source(tmp_path))
    assert bad.name.endswith("b/y.npy")


def test_one_class_is_refused_for_training(tmp_path: Path, paint_classes: PaintClasses) -> None:
    source = open_source(paint_classes(tmp_path, per_class=2))
    check_trainable(source)
    for name in ("green", "red"):
        for file in (tmp_path / name).iterdir():
            file.unlink()
    with pytest.raises(DataError, match="at least two classes, all 2 are 'blue'"):
        check_trainable(open_source(tmp_path))
