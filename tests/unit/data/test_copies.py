"""Data that is split here keeps copies of a picture together, whatever kind of source they are in."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vitesse.data.check as check
from vitesse.data.sources import (
    ArrowSource,
    FileSource,
    ParquetSource,
    Relabelled,
    Source,
    Subset,
    TarSource,
    hold_out,
    open_source,
    take,
)
from vitesse.data.torchvision_sets import ArraySource


class Texts:
    """A source whose pictures are texts; it counts what is read."""

    blocks: tuple[int, ...] = ()

    def __init__(self, texts: list[str], labels: list[int]) -> None:
        self.texts, self.labels = texts, np.asarray(labels, np.int64)
        self.class_names = tuple(map(str, range(max(labels, default=0) + 1)))
        self.fingerprint = repr((texts, labels))
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.texts)

    def name(self, index: int) -> str:
        return f"{index}"

    def read(self, index: int) -> bytes:
        self.reads.append(index)
        return self.texts[index].encode()

    def sizes(self) -> np.ndarray:
        return np.array([len(text) for text in self.texts], np.int64)


def texts_of(part: Source) -> list[str]:
    return [part.read(index).decode() for index in range(len(part))]


def drawn_alone(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """What is held out of pictures of which no two are alike."""
    rng, held_out = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out[members[: round(len(members) * share)]] = True
    return np.flatnonzero(held_out)


PICTURES = st.lists(
    st.tuples(st.text("ab", min_size=1, max_size=3), st.integers(0, 2)), min_size=1, max_size=60
)


@given(PICTURES, st.floats(0.05, 0.5), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_copies_fall_on_the_same_side_and_count_once(
    pictures: list[tuple[str, int]], share: float, seed: int
) -> None:
    texts, labels = [text for text, _ in pictures], [label for _, label in pictures]
    kept, held_out = hold_out(Texts(texts, labels), share, seed)
    assert not set(texts_of(kept)) & set(texts_of(held_out))
    assert sorted(texts_of(kept) + texts_of(held_out)) == sorted(texts)
    firsts = sorted({text: index for index, text in reversed([*enumerate(texts)])}.values())
    chosen = drawn_alone(np.asarray(labels)[firsts], share, seed)
    assert set(texts_of(held_out)) == {texts[firsts[index]] for index in chosen}
    again = hold_out(Texts(texts, labels), share, seed)
    assert [part.fingerprint for part in again] == [kept.fingerprint, held_out.fingerprint]


def test_without_copies_the_split_is_that_of_the_labels_alone_and_little_is_read() -> None:
    source = Texts([*("x" * length for length in range(1, 41)), "y", "z"], [0, 1] * 21)
    _, held_out = hold_out(source, 0.2, 5)
    assert isinstance(held_out, Subset)
    assert held_out.indices.tolist() == drawn_alone(source.labels, 0.2, 5).tolist()
    assert sorted(source.reads) == [0, 40, 41], "only pictures of the same size are read"


@pytest.mark.parametrize(("limit", "value"), [("MAX_READ", 59), ("MAX_COMPARED", 19)])
def test_where_too_much_were_to_be_read_nothing_is(
    limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Texts(["abc"] * 20, [0] * 20)
    assert {len(part) for part in hold_out(source, 0.1, 0)} == {0, 20}
    assert len(source.reads) == 20
    monkeypatch.setattr(check, limit, value)
    assert [len(part) for part in hold_out(source, 0.1, 0)] == [18, 2]
    assert len(source.reads) == 20


def test_what_cannot_be_read_is_no_copy(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    files = ["empty.png", *(f"absent {index}.png" for index in range(19))]
    assert [len(part) for part in hold_out(FileSource(tmp_path, files, [0] * 20, ["a"]), 0.1, 0)] == [18, 2]


def files(folder: Path, pictures: list[bytes]) -> Source:
    for index, picture in enumerate(pictures):
        (folder / "a" / f"{index}.png").parent.mkdir(exist_ok=True)
        (folder / "a" / f"{index}.png").write_bytes(picture)
    return open_source(folder)


def shard(folder: Path, pictures: list[bytes]) -> Source:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for index, picture in enumerate(pictures):
            for name, content in ((f"{index}.png", picture), (f"{index}.cls", b"0")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return TarSource([folder / "a.tar"])


def table(folder: Path, pictures: list[bytes]) -> pa.Table:
    return pa.table({"image": [*pictures[:-1], pictures[-1] or None], "label": [0] * len(pictures)})


def parquet(folder: Path, pictures: list[bytes], memory: int = 2**20) -> Source:
    pq.write_table(table(folder, pictures), folder / "a.parquet", row_group_size=2)
    return ParquetSource([folder / "a.parquet"], memory)


def arrays(folder: Path, pictures: list[bytes]) -> Source:
    images_NHWC = np.arange(len(pictures) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3)
    return ArraySource("set", images_NHWC, np.zeros(len(pictures), np.int64), ["a"])


KINDS: dict[str, Callable[[Path, list[bytes]], Source]] = {
    "files": files,
    "shard": shard,
    "arrow": lambda folder, pictures: ArrowSource("saved", table(folder, pictures)),
    "parquet": parquet,
    "arrays": arrays,
    "a part": lambda folder, pictures: take(files(folder, pictures), 3),
    "other labels": lambda folder, pictures: Relabelled(
        files(folder, pictures), np.zeros(len(pictures), np.int64), ("b",)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_tells_how_large_its_pictures_are(kind: str, tmp_path: Path) -> None:
    source = KINDS[kind](tmp_path, [b"x" * length for length in (4, 7, 1, 3, 0)])
    sizes = source.sizes()
    assert sizes is not None
    assert sizes.dtype == np.int64
    assert sizes.tolist() == [len(source.read(index)) for index in range(len(source))]


def test_parquet_that_is_not_in_memory_does_not_tell(tmp_path: Path) -> None:
    source = parquet(tmp_path, [b"abcdef"] * 20, memory=50)
    assert source.sizes() is None
    assert [len(part) for part in hold_out(source, 0.1, 0)] == [18, 2]
    assert take(source, 10).sizes() is None
