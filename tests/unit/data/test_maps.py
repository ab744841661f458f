"""Label maps as people save them: values as stored, what they stand for, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitesse.data.annotated import kind_of, open_maps
from vitesse.data.dense import IGNORE, Fault
from vitesse.data.maps import ColouredMapError, Legend, read_values
from vitesse.errors import DataError, ImageError


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def png(width: int, height: int, depth: int, rows: bytes, colour: int = 0) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_greys_of_few_bits_keep_their_numbers(depth: int) -> None:
    values = [0, 1, 2**depth - 1, 1][: 8 // depth] if depth < 8 else [7]
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = bytes([0, int(bits.ljust(8, "0"), 2)])
    assert read_values(png(len(values), 1, depth, row), False).tolist() == [values]


def test_palettes_sixteen_bits_and_equal_channels_keep_their_numbers() -> None:
    numbers = np.array([[0, 3, 2], [1, 1, 255]], np.uint8)
    grey = Image.fromarray(numbers)
    indexed = Image.new("P", (3, 2))
    indexed.putdata(numbers.ravel().tolist())
    indexed.putpalette(bytes(range(255, -1, -1)) * 3)
    for image in (grey, indexed, Image.merge("RGB", [grey] * 3), Image.merge("RGBA", [grey] * 4)):
        np.testing.assert_array_equal(read_values(encoded(image), False), numbers)
    wide = np.array([[0, 40_000]], np.uint16)
    np.testing.assert_array_equal(read_values(encoded(Image.fromarray(wide)), False), wide)


def test_colours_are_packed_and_refused_as_numbers() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    assert read_values(encoded(image), True).tolist() == [[66051, 66051]]
    assert read_values(encoded(image.quantize(2)), True).tolist() == [[66051, 66051]]
    with pytest.raises(ColouredMapError, match="class numbers, got colours"):
        read_values(encoded(image), False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"text", "expected a JPEG, PNG or WebP"),
        (encoded(Image.new("L", (8, 8)), "JPEG"), "as PNG, got JPEG, which may change"),
        (encoded(Image.new("L", (64, 64)))[:60], "corrupt or cut short"),
        (png(50_000, 50_000, 8, b""), "at most 40 megapixels"),
    ],
)
def test_what_is_no_label_map_is_refused(data: bytes, message: str) -> None:
    for coloured in (False, True):
        with pytest.raises(ImageError, match=message):
            read_values(data, coloured)


@given(
    values=st.lists(st.integers(0, 70_000), min_size=1, max_size=20, unique=True),
    ignored=st.lists(st.integers(0, 70_000), max_size=4),
    kind=st.sampled_from([np.uint8, np.uint16, np.int32]),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_a_legend_says_what_each_value_means(
    values: list[int], ignored: list[int], kind: type, seed: int
) -> None:
    legend = Legend(class_names=tuple(map(str, values)), values=tuple(values), ignored=tuple(ignored))
    rng = np.random.default_rng(seed)
    pool = np.array([*values, *ignored, *rng.integers(0, 70_000, 3)]) % (int(np.iinfo(kind).max) + 1)
    drawn_HW = rng.choice(pool, (4, 5)).astype(kind)
    classes_HW, strange = legend.classes_of(drawn_HW)
    expected = [[values.index(v) if v in values else IGNORE for v in row] for row in drawn_HW.tolist()]
    assert classes_HW.tolist() == expected
    assert classes_HW.dtype == np.uint8
    assert strange == any(v not in (*values, *ignored) for v in drawn_HW.ravel().tolist())


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("cityscapes", 19, {0: ("road", 7, (128, 64, 128)), 18: ("bicycle", 33, (119, 11, 32))}),
        ("ade20k", 150, {0: ("wall", 1, (120, 120, 120)), 149: ("flag", 150, (92, 0, 255))}),
        ("camvid", 11, {0: ("Sky", 0, (128, 128, 128)), 10: ("Bicyclist", 10, (0, 128, 192))}),
    ],
)
def test_legends_of_well_known_sets(
    name: str, count: int, some: dict[int, tuple[str, int, tuple[int, int, int]]]
) -> None:
    legend = Legend.named(name)
    assert legend.colours is not None
    assert len(legend.class_names) == len(set(legend.class_names)) == len(legend.values) == count
    assert legend.colours.shape == (count, 3)
    for index, (label, value, colour) in some.items():
        assert (legend.class_names[index], legend.values[index]) == (label, value)
        assert tuple(legend.colours[index].tolist()) == colour


def test_a_legend_has_room_for_255_classes() -> None:
    names = tuple(map(str, range(255)))
    assert Legend(class_names=names, values=tuple(range(255))).classes_of(np.array([[254]]))[0] == 254
    with pytest.raises(DataError, match="at most 255 classes, got 256"):
        Legend(class_names=(*names, "more"), values=tuple(range(256)))
    with pytest.raises(DataError, match="a value of its own for each of 2"):
        Legend(class_names=("a", "b"), values=(1, 1))


def save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def folder(root: Path, yaml: str = "", mask: Any = ((0, 1), (1, 255))) -> Path:
    """One picture with its mask, and a YAML file `data.yaml` with these lines."""
    save(root / "images" / "a.png", np.zeros((2, 2, 3)))
    save(root / "masks" / "a.png", mask)
    (root / "data.yaml").write_text(yaml + "train: {images: images, masks: masks}\n")
    return root


def refused(data: Path, message: str, split: str | None = None) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_maps(data, split)
    assert "\n" not in str(caught.value)


def test_a_value_of_no_class_is_ignored_and_named(tmp_path: Path) -> None:
    source = open_maps(folder(tmp_path, "names: [a, b]\n", [[0, 1], [2, 255]]))
    assert source.label_map(0).tolist() == [[0, 1], [IGNORE, IGNORE]]
    assert source.faults(0) == (Fault.NO_VALUE,)
    assert open_maps(folder(tmp_path, "names: [a, b]\nignore: 2\n", [[0, 1], [2, 255]])).faults(0) == ()


def test_a_class_may_be_255_and_an_ignored_value_may_have_a_name(tmp_path: Path) -> None:
    source = open_maps(folder(tmp_path, "names: {0: no, 1: a, 255: b}\nignore: [0]\n"))
    assert source.class_names == ("a", "b")
    assert source.label_map(0).tolist() == [[IGNORE, 0], [0, 1]]


def test_pictures_without_masks_and_masks_without_pictures_are_noted(tmp_path: Path) -> None:
    folder(tmp_path, "names: [a, b]\n")
    save(tmp_path / "images" / "b.png", np.zeros((2, 2, 3)))
    save(tmp_path / "masks" / "c.png", np.zeros((2, 2)))
    source = open_maps(tmp_path)
    assert len(source) == 1
    assert [(note.fault, Path(note.where).name) for note in source.notes] == [
        (Fault.NO_MAP, "b.png"),
        (Fault.NO_PICTURE, "c.png"),
    ]


COLOURED = np.full((2, 2, 3), (9, 0, 0))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: []\n", "expected a list of class names"),
        ("names: {-1: a}\n", "names by number"),
        ("names: [a, b]\nignore: none\n", "ignore: expected whole numbers"),
        ("names: [a, b]\npalette: [[1, 2, 3]]\n", "a colour for each of 2 names, got 1"),
        ("names: [a]\npalette: [[1, 2]]\n", r"palette: expected a list of \[red, green, blue\]"),
        ("names: [a]\npalette: [[1, 2, 300]]\n", "palette: expected a list of"),
        ("names: [a]\npalette: red\n", "palette: expected a list of"),
        ("names: [a]\npalette: [[1, 2, 3]]\nignore: [5]\n", "ignore: expected a list of"),
        ("names: [a, b]\npalette: [[1, 2, 3], [1, 2, 3]]\n", "a value of its own"),
        ("names: [a]\nval: {images: images}\n", "val: expected images and masks"),
        ("names: [a]\nval: {images: images, masks: nowhere}\n", "val: no folder .*nowhere"),
    ],
)
def test_a_yaml_file_that_says_too_little_is_refused(tmp_path: Path, yaml: str, message: str) -> None:
    refused(folder(tmp_path, yaml) / "data.yaml", message, "train")


def test_coloured_masks_without_a_palette_are_refused_at_once(tmp_path: Path) -> None:
    refused(folder(tmp_path, "names: [a]\n", COLOURED), "got colours; say palette in a YAML file")
    assert open_maps(folder(tmp_path, "names: [a]\npalette: [[9, 0, 0]]\n", COLOURED)).label_map(0).max() == 0


def test_an_unreadable_first_mask_is_that_picture_s_matter(tmp_path: Path) -> None:
    (folder(tmp_path, "names: [a]\n") / "masks" / "a.png").write_bytes(b"nothing")
    source = open_maps(tmp_path)
    with pytest.raises(ImageError, match="expected a JPEG, PNG or WebP"):
        source.label_map(0)


def test_folders_without_classes_or_masks_are_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "data.yaml").unlink()
    refused(tmp_path, r"expected classes\.txt or a YAML file")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    assert len(open_maps(tmp_path)) == 1
    (tmp_path / "masks" / "a.png").unlink()
    refused(tmp_path, "none of its 1 pictures has its label map, such as .*masks/a.png")
    (tmp_path / "images" / "a.png").unlink()
    refused(tmp_path, r"expected pictures \(\.jpg")


def test_camvid_s_lists(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / "train" / f"{name}.png", np.zeros((2, 2, 3)))
        save(tmp_path / "trainannot" / f"{name}.png", np.full((2, 2), 11))
    assert kind_of(tmp_path) == "segment"
    assert len(open_maps(tmp_path, "train")) == 2
    (tmp_path / "train.txt").write_text("train/b.png trainannot/b.png\n\n")
    source = open_maps(tmp_path, "train")
    assert [Path(source.name(i)).name for i in range(len(source))] == ["b.png"]
    assert (source.label_map(0) == IGNORE).all()
    (tmp_path / "train.txt").write_text("train/b.png\n")
    refused(tmp_path, r"train\.txt: line 1: expected a picture and its label map, got train/b\.png", "train")


def test_camvid_as_it_is(data_dir: Path) -> None:
    counts = {split: len(open_maps(data_dir / "camvid", split)) for split in ("train", "val", "test")}
    assert counts == {"train": 367, "val": 101, "test": 233}
    source = open_maps(data_dir / "camvid", "val")
    labels_HW = source.label_map(0)
    assert labels_HW.shape == (360, 480)
    assert set(np.unique(labels_HW)) <= {*range(11), IGNORE}
    assert source.class_names[:4] == ("Sky", "Building", "Pole", "Road")


def test_what_has_no_label_maps_is_refused_with_the_layouts(tmp_path: Path) -> None:
    refused(tmp_path, "expected label maps in a YAML file with images and masks")
    refused(tmp_path / "none", "no such file or folder")
    (tmp_path / "leftImg8bit").mkdir()
    (tmp_path / "gtFine").mkdir()
    refused(tmp_path, "expected leftImg8bit/train and leftImg8bit/val")


def test_an_opened_source_is_given_back(tmp_path: Path) -> None:
    source = open_maps(folder(tmp_path, "names: [a, b]\n"))
    assert open_maps(source, "train") is source
    assert kind_of(source) == "segment"
