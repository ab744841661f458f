"""What every reader of boxes and of label maps must do, whatever the layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from vitesse.data.annotated import kind_of, open_boxes, open_maps
from vitesse.data.check_dense import check_boxes, check_maps
from vitesse.data.dense import IGNORE, Fault
from vitesse.data.maps import Legend
from vitesse.data.subset import hold_out, part_of, take
from vitesse.errors import DataError
from vitesse.runtime.imaging import read_image

CLASSES = ("cat", "dog", "fox")
SPLITS = {"train": 5, "val": 3}


class Scene(NamedTuple):
    """A picture with its size (width, height) and objects: class, left, top, right, bottom."""

    name: str
    size: tuple[int, int]
    objects: tuple[tuple[int, ...], ...]


def scenes(split: str) -> list[Scene]:
    """The last is background; sizes differ, and all classes are there."""
    rng = np.random.default_rng(len(split))
    made = []
    for number in range(SPLITS[split]):
        width, height = int(rng.integers(40, 90)), int(rng.integers(30, 70))
        objects = tuple(_object(rng, (number + at) % 3, width, height) for at in range(3))
        objects = () if number == SPLITS[split] - 1 else objects
        made.append(Scene(f"{split}_{number}", (width, height), objects))
    return made


def _object(rng: np.random.Generator, label: int, width: int, height: int) -> tuple[int, ...]:
    left, right = sorted(rng.choice(width + 1, 2, replace=False).tolist())
    top, bottom = sorted(rng.choice(height + 1, 2, replace=False).tolist())
    return label, left, top, right, bottom


def paint(path: Path, size: tuple[int, int], kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 150)).save(path, kind)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def coco_of(split: str) -> str:
    images = [
        {"id": 7 * n, "file_name": f"{s.name}.jpg", "width": s.size[0], "height": s.size[1]}
        for n, s in enumerate(scenes(split))
    ]
    annotations = [
        {"image_id": 7 * n, "category_id": 10 * (c + 1), "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
        for n, s in enumerate(scenes(split))
        for c, x0, y0, x1, y1 in s.objects
    ]
    categories = [{"id": 10 * (c + 1), "name": name} for c, name in enumerate(CLASSES)]
    numbered = [{"id": n, **one} for n, one in enumerate(annotations)]
    return json.dumps({"images": images, "annotations": numbered, "categories": categories[::-1]})


def write_coco(root: Path) -> Path:
    for split in SPLITS:
        write(root / "annotations" / f"instances_{split}2017.json", coco_of(split))
        for scene in scenes(split):
            paint(root / f"{split}2017" / f"{scene.name}.jpg", scene.size)
    return root


def write_coco_beside(root: Path) -> Path:
    for split in SPLITS:
        write(root / split / "_annotations.coco.json", coco_of(split))
        for scene in scenes(split):
            paint(root / split / f"{scene.name}.jpg", scene.size)
    return root


def yolo_lines(scene: Scene) -> str:
    width, height = scene.size
    return "".join(
        f"{c} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} {(x1 - x0) / width} {(y1 - y0) / height}\n"
        for c, x0, y0, x1, y1 in scene.objects
    )


def write_yolo(root: Path, pattern: str = "{kind}/{split}") -> Path:
    for split in SPLITS:
        for scene in scenes(split):
            paint(root / pattern.format(kind="images", split=split) / f"{scene.name}.jpg", scene.size)
            if scene.objects:  # background has no file
                labels = root / pattern.format(kind="labels", split=split)
                write(labels / f"{scene.name}.txt", yolo_lines(scene))
    write(root / "classes.txt", "\n".join(CLASSES) + "\n")
    return root


def write_yolo_yaml(root: Path) -> Path:
    write_yolo(root, "{split}/{kind}")
    (root / "classes.txt").unlink()
    names = "".join(f"  {n}: {name}\n" for n, name in enumerate(CLASSES))
    write(root / "data.yaml", f"train: ../train/images\nval: val/images\nnc: 3\nnames:\n{names}")
    return root


def write_yolo_lists(root: Path) -> Path:
    write_yolo(root, "{kind}")
    for split in SPLITS:
        write(root / f"{split}.txt", "".join(f"./images/{scene.name}.jpg\n" for scene in scenes(split)))
    write(root / "mine.yml", f"path: {root}\ntrain: [train.txt]\ntest: val.txt\nnames: {list(CLASSES)}\n")
    return root / "mine.yml"


def write_voc(root: Path) -> Path:
    for split in SPLITS:
        for name, (width, height), objects in scenes(split):
            paint(root / "JPEGImages" / f"{name}.jpg", (width, height))
            found = "".join(
                f"<object><name>{CLASSES[c]}</name><difficult>0</difficult><bndbox><xmin>{x0}</xmin>"
                f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
                for c, x0, y0, x1, y1 in objects
            )
            size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
            write(root / "Annotations" / f"{name}.xml", f"<annotation>{size}{found}</annotation>")
        write(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(s.name for s in scenes(split)) + "\n")
        write(root / "ImageSets" / "Main" / f"cat_{split}.txt", "")
    return root


BOX_WRITERS = [write_coco, write_coco_beside, write_yolo, write_yolo_yaml, write_yolo_lists, write_voc]
Writer = Callable[[Path], Path]


@pytest.mark.parametrize("writer", BOX_WRITERS)
class TestBoxes:
    def test_objects_are_where_they_were_drawn(self, tmp_path: Path, writer: Writer) -> None:
        data = writer(tmp_path)
        assert kind_of(data) == "detect"
        for split in SPLITS:
            source = open_boxes(data, split)
            assert source.class_names == CLASSES
            drawn = {scene.name: scene for scene in scenes(split)}
            assert sorted(Path(source.name(i)).stem for i in range(len(source))) == sorted(drawn)
            for index in range(len(source)):
                scene, boxes = drawn[Path(source.name(index)).stem], source.boxes(index)
                assert boxes.labels_N.tolist() == [c for c, *_ in scene.objects]
                expected = np.reshape([corners for _, *corners in scene.objects], (-1, 4))
                np.testing.assert_allclose(boxes.boxes_N4, expected, atol=1e-3)
                sides = boxes.boxes_N4[:, 2:] - boxes.boxes_N4[:, :2]
                np.testing.assert_allclose(boxes.area_N, sides.prod(axis=1), rtol=1e-5)
                assert boxes.size == scene.size[::-1]
                assert not boxes.crowd_N.any()
                assert read_image(source.read(index)).size == scene.size

    def test_the_only_fault_is_background(self, tmp_path: Path, writer: Writer) -> None:
        found = check_boxes(open_boxes(writer(tmp_path), "train"), strict=True)
        assert found.counts() == {Fault.BACKGROUND: 1}
        assert found.class_counts == tuple(np.bincount([c for s in scenes("train") for c, *_ in s.objects]))

    def test_a_fingerprint_is_that_of_the_annotations(self, tmp_path: Path, writer: Writer) -> None:
        data = writer(tmp_path)
        train, val = open_boxes(data, "train"), open_boxes(data, "val")
        assert train.fingerprint == open_boxes(data, "train").fingerprint != val.fingerprint
        moved = _first_annotation(tmp_path, "train")
        moved.write_text(_nudged(moved.read_text()))
        assert open_boxes(data, "train").fingerprint != train.fingerprint

    def test_parts_of_it_are_sources(self, tmp_path: Path, writer: Writer) -> None:
        source = open_boxes(writer(tmp_path), "train")
        train, held_out = hold_out(source, 0.4, seed=3)
        names = [[part.name(i) for i in range(len(part))] for part in (train, held_out)]
        assert sorted(names[0] + names[1]) == [source.name(i) for i in range(len(source))]
        assert len(held_out) == 2
        few = take(source, 2, seed=1)
        assert few.category_ids == source.category_ids
        for index in range(2):
            original = next(i for i in range(len(source)) if source.name(i) == few.name(index))
            np.testing.assert_array_equal(few.boxes(index).boxes_N4, source.boxes(original).boxes_N4)
            assert few.faults(index) == source.faults(original)
        assert few.fingerprint not in (source.fingerprint, take(source, 2, seed=2).fingerprint)

    def test_a_split_must_be_asked_for_and_be_there(self, tmp_path: Path, writer: Writer) -> None:
        data = writer(tmp_path)
        with pytest.raises(DataError, match=r"holds the splits .*say which one"):
            open_boxes(data)
        with pytest.raises(DataError, match="has no split 'night'"):
            open_boxes(data, "night")
        assert open_boxes(data, "validation").fingerprint == open_boxes(data, "val").fingerprint


def _first_annotation(root: Path, split: str) -> Path:
    """A file of annotations that holds an object of the split."""
    candidates = [file for file in sorted(root.rglob("*")) if file.suffix in (".json", ".xml", ".txt")]
    named = [
        file for file in candidates if split in str(file.relative_to(root)) and "ImageSets" not in str(file)
    ]
    return next(file for file in named if file.name != "train.txt" and len(file.read_text()) > 10)


def _nudged(text: str) -> str:
    """Another class for the first object."""
    for old, new in (('"category_id": 10', '"category_id": 20'), ("<name>cat", "<name>dog"), ("0 ", "1 ")):
        if old in text:
            return text.replace(old, new, 1)
    raise AssertionError(text)


COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


def pattern(split: str, number: int, classes: int) -> np.ndarray:
    """A label map with some unlabelled pixels, of another size for each picture."""
    rng = np.random.default_rng((len(split), number))
    labels_HW = rng.integers(0, classes, (20 + number, 30 + number)).astype(np.uint8)
    labels_HW[rng.random(labels_HW.shape) < 0.1] = IGNORE
    return labels_HW


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_all(root: Path, picture: str, label_map: str, values: np.ndarray) -> None:
    """Every picture with its pattern; `values` (256,) or (256, 3) stand for labels."""
    for split in SPLITS:
        for number in range(SPLITS[split]):
            labels_HW = pattern(split, number, len(np.unique(values, axis=0)) - 1)
            place = {"split": split, "long": LONG[split], "name": f"{split}_{number}"}
            paint(root / picture.format(**place), labels_HW.shape[::-1], "PNG")
            save(root / label_map.format(**place), values[labels_HW])


LONG = {"train": "training", "val": "validation"}


def table(values: Any, ignored: Any) -> np.ndarray:
    found = np.full((256, *np.shape(ignored)), ignored, np.uint8)
    found[: len(values)] = values
    return found


def write_masks(root: Path) -> Path:
    save_all(root, "images/{split}/{name}.png", "masks/{split}/{name}.png", table([0, 1, 2], 255))
    write(root / "classes.txt", "\n".join(CLASSES) + "\n")
    return root


def write_mask_yaml(root: Path) -> Path:
    """Values with gaps, one of which stands for nothing, in a folder's own YAML file."""
    save_all(root, "{split}/a/{name}.png", "{split}/b/{name}.png", table([40, 7, 9], 3))
    folders = "".join(f"{split}: {{images: {split}/a, masks: {split}/b}}\n" for split in SPLITS)
    write(root / "data.yaml", f"names: {{3: nothing, 7: dog, 9: fox, 40: cat}}\nignore: 3\n{folders}")
    return root


def write_mask_colours(root: Path) -> Path:
    save_all(root, "p/{split}/{name}.png", "m/{split}/{name}.png", table(COLOURS, (9, 9, 9)))
    folders = "".join(f"{split}: {{images: p/{split}, masks: m/{split}}}\n" for split in SPLITS)
    palette = [list(colour) for colour in COLOURS]
    write(root / "c.yaml", f"names: {list(CLASSES)}\npalette: {palette}\nignore: [[9, 9, 9]]\n{folders}")
    return root / "c.yaml"


def write_cityscapes(root: Path, kind: str = "labelIds", values: np.ndarray | None = None) -> Path:
    picture, label_map = "{split}/ulm/{name}_leftImg8bit.png", f"{{split}}/ulm/{{name}}_gtFine_{kind}.png"
    values = table(Legend.named("cityscapes").values, 1) if values is None else values
    save_all(root, f"leftImg8bit/{picture}", f"gtFine/{label_map}", values)
    (root / "leftImg8bit" / "test").mkdir()
    return root


def write_cityscapes_train_ids(root: Path) -> Path:
    return write_cityscapes(root, "labelTrainIds", table(range(19), 255))


def write_ade20k(root: Path) -> Path:
    picture, label_map = "images/{long}/ADE_{name}.png", "annotations/{long}/ADE_{name}.png"
    save_all(root, picture, label_map, table(range(1, 151), 0))
    return root


def write_camvid(root: Path) -> Path:
    save_all(root, "{split}/{name}.png", "{split}annot/{name}.png", table(range(11), 11))
    for split in SPLITS:
        names = [f"{split}_{number}.png" for number in range(SPLITS[split])]
        lines = [f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n" for name in names]
        write(root / f"{split}.txt", "".join(lines))
    return root


MAP_WRITERS = [
    write_masks,
    write_mask_yaml,
    write_mask_colours,
    write_cityscapes,
    write_cityscapes_train_ids,
    write_ade20k,
    write_camvid,
]


@pytest.mark.parametrize("writer", MAP_WRITERS)
class TestMaps:
    def test_labels_are_as_they_were_drawn(self, tmp_path: Path, writer: Writer) -> None:
        data = writer(tmp_path)
        assert kind_of(data) == "segment"
        for split, count in SPLITS.items():
            source = open_maps(data, split)
            assert len(source) == count
            drawn = _in_their_order(source.class_names)
            for index in range(count):
                expected = pattern(split, index, len(source.class_names))
                labels_HW = source.label_map(index)
                assert labels_HW.dtype == np.uint8
                np.testing.assert_array_equal(labels_HW, drawn[expected])
                assert read_image(source.read(index)).size == labels_HW.shape[::-1]

    def test_it_has_no_fault(self, tmp_path: Path, writer: Writer) -> None:
        source = open_maps(writer(tmp_path), "val")
        found = check_maps(source, strict=True)
        assert found.counts() == {}
        labelled = sum(int((source.label_map(index) != IGNORE).sum()) for index in range(len(source)))
        assert sum(found.class_counts) == labelled

    def test_a_fingerprint_is_that_of_the_annotations(self, tmp_path: Path, writer: Writer) -> None:
        data = writer(tmp_path)
        train = open_maps(data, "train")
        assert train.fingerprint == open_maps(data, "train").fingerprint != open_maps(data, "val").fingerprint
        changed = next(file for file in sorted(tmp_path.rglob("*train_1*.png")) if _is_map(file))
        save(changed, np.asarray(Image.open(changed))[::2])
        assert open_maps(data, "train").fingerprint != train.fingerprint

    def test_parts_of_it_are_sources(self, tmp_path: Path, writer: Writer) -> None:
        source = open_maps(writer(tmp_path), "train")
        assert [len(part) for part in hold_out(source, 0.4, seed=3)] == [3, 2]
        few = part_of(source, np.array([3, 1]))
        assert few.class_names == source.class_names
        assert few.colours is source.colours
        for index, original in enumerate((3, 1)):
            assert few.name(index) == source.name(original)
            np.testing.assert_array_equal(few.label_map(index), source.label_map(original))

    def test_a_split_must_be_asked_for_and_be_there(self, tmp_path: Path, writer: Writer) -> None:
        data = writer(tmp_path)
        with pytest.raises(DataError, match=r"holds the splits .*say which one"):
            open_maps(data)
        with pytest.raises(DataError, match="has no split 'night'"):
            open_maps(data, "night")
        assert open_maps(data, "test").fingerprint == open_maps(data, "val").fingerprint


def _in_their_order(class_names: tuple[str, ...]) -> np.ndarray:
    """Indices of the classes as drawn: a YAML file may give them in another order."""
    order = [class_names.index(name) for name in CLASSES] if set(class_names) == set(CLASSES) else range(255)
    return table(order, IGNORE)


def _is_map(file: Path) -> bool:
    return any(part in ("masks", "b", "m", "gtFine", "annotations", "trainannot") for part in file.parts)
