"""COCO, YOLO and VOC as people write them: what is understood, and what is refused or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitesse.data.annotated import kind_of, open_boxes
from vitesse.data.coco import split_word
from vitesse.data.dense import Fault
from vitesse.data.voc import CLASSES as VOC_CLASSES
from vitesse.data.yolo import label_file
from vitesse.errors import DataError

WIDTH, HEIGHT = 40, 30


def paint(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path, "JPEG")


def refused(data: Path, message: str, split: str | None = None) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_boxes(data, split)
    assert "\n" not in str(caught.value)


# COCO

GOOD: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
    "annotations": [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 10], "area": 60}],
    "categories": [{"id": 3, "name": "cat"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    paint(tmp_path / "images" / "a.jpg")
    return tmp_path


def coco(folder: Path, name: str = "mine.json", **changes: Any) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**GOOD, **changes}))
    return path


def test_a_json_alone_is_data_without_splits(folder: Path) -> None:
    data = coco(folder)
    assert kind_of(data) == "detect"
    for split in (None, "train", "test"):
        boxes = open_boxes(data, split).boxes(0)
        assert boxes.boxes_N4.tolist() == [[1, 2, 11, 12]]
        assert boxes.area_N.tolist() == [60]


ANNOTATION = GOOD["annotations"][0]
LOST: list[tuple[dict[str, Any], Fault]] = [
    ({"image_id": 9}, Fault.NO_PICTURE),
    ({"bbox": None}, Fault.MALFORMED),
    ({"bbox": [1, 2, 3]}, Fault.MALFORMED),
    ({"bbox": [1, 2, 3, "wide"]}, Fault.MALFORMED),
    ({"bbox": [1, 2, 3, float("nan")]}, Fault.MALFORMED),
    ({"bbox": [1, 2, float("inf"), 3]}, Fault.MALFORMED),
    ({"category_id": [3]}, Fault.MALFORMED),
    ({"image_id": {}}, Fault.MALFORMED),
]


@pytest.mark.parametrize(("changes", "fault"), LOST)
def test_an_annotation_that_is_none_is_noted(folder: Path, changes: dict[str, Any], fault: Fault) -> None:
    source = open_boxes(coco(folder, annotations=[{**ANNOTATION, **changes, "id": 77}, ANNOTATION]))
    assert len(source.boxes(0)) == 1
    (note,) = source.notes
    assert note.fault is fault
    assert note.where.endswith("mine.json: annotation 77")


def test_an_unknown_category_is_a_fault_of_its_picture(folder: Path) -> None:
    source = open_boxes(coco(folder, annotations=[{**ANNOTATION, "category_id": 4}, ANNOTATION]))
    assert source.faults(0) == (Fault.NO_CLASS,)
    assert len(source.boxes(0)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "expected COCO's lists .*; images is absent or no list"),
        ({"annotations": {}}, "annotations is absent or no list"),
        ({"categories": ["cat"]}, "categories is absent or no list"),
        ({"categories": []}, "categories: expected some, found none"),
        ({"images": []}, "images: expected some, found none"),
        ({"images": GOOD["images"] * 2}, "images: expected an id of its own"),
        ({"images": [{"id": 1}]}, "expected an id of its own and a file_name"),
        ({"categories": [{"id": "3", "name": "cat"}]}, "expected an id of its own and a name"),
        ({"images": [{"id": 1, "file_name": "b.jpg"}]}, "none of its 1 pictures is there, such as"),
        ({"annotations": [{"segments_info": []}]}, "this is a panoptic file"),
    ],
)
def test_a_json_that_is_none_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    refused(coco(folder, **changes), message)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"text"', "[" * 100_000, '{"images": 3}', "\xff\xfe"])
def test_text_that_is_no_coco_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin-1")
    refused(path, "a.json: expected")


def test_pictures_that_are_missing_stay_and_cannot_be_read(folder: Path) -> None:
    images = [*GOOD["images"], {"id": 2, "file_name": "gone.jpg", "width": 5, "height": 5}]
    source = open_boxes(coco(folder, images=images))
    assert len(source) == 2
    with pytest.raises(OSError, match=r"gone\.jpg"):
        source.read(1)


@pytest.mark.parametrize("size", [{}, {"width": 0, "height": 0}, {"width": "40", "height": None}])
def test_a_size_that_is_not_written_is_the_picture_s(folder: Path, size: dict[str, Any]) -> None:
    source = open_boxes(coco(folder, images=[{"id": 1, "file_name": "a.jpg", **size}]))
    assert source.boxes(0).size == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("a.jpg", "instances.json"),
        ("images/train2017/a.jpg", "annotations/instances_train2017.json"),
        ("train/a.jpg", "annotations/train.json"),
        ("images/train/a.jpg", "annotations/my-train-set.json"),
        ("images/a.jpg", "instances_train.json"),
    ],
)
def test_pictures_are_found_where_they_usually_lie(tmp_path: Path, place: str, name: str) -> None:
    paint(tmp_path / place)
    coco(tmp_path, name)
    assert kind_of(tmp_path) == "detect"
    source = open_boxes(tmp_path, "train")
    assert source.name(0) == str(tmp_path / place)


def test_pictures_and_classes_are_in_the_order_of_their_ids(folder: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in (30, 4, 200)]
    paint(*(folder / "images" / image["file_name"] for image in images))
    categories = [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}]
    annotations = [{**ANNOTATION, "image_id": 200}]
    source = open_boxes(coco(folder, images=images, categories=categories, annotations=annotations))
    assert [Path(source.name(index)).stem for index in range(3)] == ["4", "30", "200"]
    assert [len(source.boxes(index)) for index in range(3)] == [0, 0, 1]
    assert (source.class_names, source.category_ids) == (("three", "seven"), (3, 7))


def test_names_with_folders_are_relative_to_the_pictures_folder(tmp_path: Path) -> None:
    paint(tmp_path / "images" / "cows" / "a.jpg")
    data = coco(tmp_path, images=[{"id": 1, "file_name": "cows/a.jpg"}])
    assert open_boxes(data).name(0).endswith("images/cows/a.jpg")


def test_files_of_other_kinds_beside_the_boxes_are_left_aside(folder: Path) -> None:
    for name in ("captions_val2017", "person_keypoints_val2017", "panoptic_val2017", "my_val2017"):
        coco(folder, f"annotations/{name}.json")
    assert len(open_boxes(folder, "val")) == 1
    coco(folder, "annotations/instances_val2017.json", categories=[{"id": 3, "name": "cow"}])
    assert open_boxes(folder, "val").class_names == ("cow",)


def test_two_files_of_one_split_must_be_told_apart(folder: Path) -> None:
    for name in ("small_val", "large_val"):
        coco(folder, f"annotations/{name}.json")
    refused(folder, r"several files may be meant; name one of annotations/large_val\.json, ", "val")


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("instances_val2017.json", "val"),
        ("a/train/_annotations.coco.json", "train"),
        ("x/validation-set.json", "validation"),
        ("annotations/contrast.json", ""),
    ],
)
def test_a_split_is_a_word_of_the_name(path: str, word: str) -> None:
    assert split_word(Path(path)) == word


# YOLO


def yolo(folder: Path, lines: str, yaml: str = "train: images\nnames: [cat, dog]\n") -> Path:
    paint(folder / "images" / "a.jpg", folder / "images" / "empty.jpg")
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / "a.txt").write_text(lines)
    (folder / "data.yaml").write_text(yaml)
    return folder


def test_boxes_and_polygons_may_be_mixed(tmp_path: Path) -> None:
    source = open_boxes(yolo(tmp_path, "1 0.5 0.5 0.5 1\n\n0 0 0 0.5 0 0.5 1\n"))
    boxes = source.boxes(0)
    assert boxes.boxes_N4.tolist() == [[10, 0, 30, 30], [0, 0, 20, 30]]
    assert boxes.labels_N.tolist() == [1, 0]
    assert source.has_masks
    assert source.faults(0) == (Fault.NO_MASK,)  # the box has none
    assert boxes.area_N.tolist() == pytest.approx([600, 300], rel=0.1)
    assert open_boxes(tmp_path, masks=False).boxes(0).masks is None


@pytest.mark.parametrize(
    "line",
    [
        "cat 0.5 0.5 0.1 0.1",
        "0 0.5 0.5 0.1",
        "0.5 0.5 0.5 0.1 0.1",
        "0 0.5 0.5 0.1 0.1 0.9",
        "0 nan 0 1 1",
        "0",
    ],
)
def test_a_line_that_is_no_object_is_noted_with_its_number(tmp_path: Path, line: str) -> None:
    source = open_boxes(yolo(tmp_path, f"0 0.5 0.5 0.1 0.1\n{line}\n"))
    assert len(source.boxes(0)) == 1
    (note,) = source.notes
    assert note.fault is Fault.MALFORMED
    assert note.where.endswith("a.txt: line 2")


@pytest.mark.parametrize("number", ["2", "-1", "99"])
def test_a_class_beyond_the_names_is_a_fault_of_its_picture(tmp_path: Path, number: str) -> None:
    source = open_boxes(yolo(tmp_path, f"{number} 0.5 0.5 0.1 0.1\n"))
    assert source.faults(0) == (Fault.NO_CLASS,)


def test_labels_in_pixels_are_no_area_in_the_picture(tmp_path: Path) -> None:
    source = open_boxes(yolo(tmp_path, "0 20 15 8 8\n"))
    assert source.faults(0) == (Fault.NO_AREA,)


def test_labels_without_a_picture_are_noted(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "labels" / "gone.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (note,) = open_boxes(tmp_path).notes
    assert note.fault is Fault.NO_PICTURE
    assert note.where.endswith("labels/gone.txt")


def test_a_picture_whose_labels_cannot_be_read_is_no_background(tmp_path: Path) -> None:
    yolo(tmp_path, "")
    (tmp_path / "labels" / "a.txt").write_bytes(b"\xff\xfe0 \x00")
    source = open_boxes(tmp_path)
    assert [Path(source.name(i)).name for i in range(len(source))] == ["empty.jpg"]
    assert [note.fault for note in source.notes] == [Fault.MALFORMED]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [cat]\n", "expected the keys train and val"),
        ("train: images\n", "names: expected a list, or names by number, got None"),
        ("train: images\nnames: []\n", "expected a list of class names"),
        ("train: images\nnames: cat\n", "names: expected a list, or names by number"),
        ("train: images\nnames: {a: cat}\n", "names by number"),
        ("train: images\nnames: {1: cat, 2: dog}\n", "numbers from 0 without gaps, got 1, 2"),
        ("train: images\nnames: [cat]\nnc: 2\n", "nc says 2 classes, names has 1"),
        ("train: pictures\nnames: [cat]\n", "no pictures in .*; set path"),
        ("train: labels\nnames: [cat]\n", r"expected pictures \(\.jpg"),
        ("- a\n- b\n", "expected a mapping"),
        ("a: [\n", "expected YAML"),
        ("\x00", "expected YAML"),
        ("", "expected a mapping"),
    ],
)
def test_a_yaml_file_that_says_too_little_is_refused(tmp_path: Path, yaml: str, message: str) -> None:
    refused(yolo(tmp_path, "", yaml) / "data.yaml", message)


def test_two_yaml_files_must_be_told_apart(tmp_path: Path) -> None:
    yolo(tmp_path, "")
    (tmp_path / "notes.yaml").write_text("author: me\n")
    assert len(open_boxes(tmp_path)) == 2
    (tmp_path / "other.yml").write_bytes((tmp_path / "data.yaml").read_bytes())
    refused(tmp_path, r"several YAML files describe data; name one of data\.yaml, other\.yml")


def test_folders_without_class_names_are_refused(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "data.yaml").unlink()
    refused(tmp_path, r"expected data\.yaml with names, train and val, or classes\.txt")


@pytest.mark.parametrize(
    ("picture", "labels"),
    [
        ("d/images/train/a.jpg", "d/labels/train/a.txt"),
        ("images/x/images/a.b.png", "images/x/labels/a.b.txt"),
        ("d/a.jpg", "d/a.txt"),
        ("d/images", "d/images.txt"),
    ],
)
def test_labels_lie_where_images_is_labels(picture: str, labels: str) -> None:
    assert label_file(Path(picture)) == Path(labels)


# VOC


def voc(folder: Path, *objects: str, size: str = f"<width>{WIDTH}</width><height>{HEIGHT}</height>") -> Path:
    paint(folder / "JPEGImages" / "a.jpg")
    (folder / "Annotations").mkdir(exist_ok=True)
    text = f"<annotation><size>{size}</size>{''.join(objects)}</annotation>"
    (folder / "Annotations" / "a.xml").write_text(text)
    return folder


def thing(name: str = "cow", corners: tuple[object, ...] = (1, 2, 11, 12), more: str = "") -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    inner = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name>{more}<bndbox>{inner}</bndbox></object>"


def test_voc_s_own_classes_keep_their_order(tmp_path: Path) -> None:
    source = open_boxes(voc(tmp_path, thing("cow"), thing("person")))
    assert source.class_names == VOC_CLASSES
    assert len(VOC_CLASSES) == 20
    assert source.boxes(0).labels_N.tolist() == [9, 14]
    assert source.boxes(0).boxes_N4[0].tolist() == [1, 2, 11, 12]


def test_other_classes_are_sorted_over_all_splits(tmp_path: Path) -> None:
    voc(tmp_path, thing("zebra"))
    (tmp_path / "Annotations" / "b.xml").write_text(f"<annotation>{thing('ant')}</annotation>")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    source = open_boxes(tmp_path, "train")
    assert source.class_names == ("ant", "zebra")
    assert source.boxes(0).labels_N.tolist() == [1]


def test_difficult_objects_are_not_asked_for(tmp_path: Path) -> None:
    source = open_boxes(voc(tmp_path, thing(more="<difficult>1</difficult>"), thing()))
    assert source.boxes(0).crowd_N.tolist() == [True, False]


@pytest.mark.parametrize(
    "size", ["", "<width>0</width><height>0</height>", "<width>nan</width><height>x</height>"]
)
def test_voc_s_size_may_be_missing(tmp_path: Path, size: str) -> None:
    assert open_boxes(voc(tmp_path, thing(), size=size)).boxes(0).size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("value", ["", "left", "nan", "inf"])
def test_an_object_without_corners_is_noted(tmp_path: Path, value: str) -> None:
    source = open_boxes(voc(tmp_path, thing(), thing(corners=(1, value, 3, 4))))
    assert len(source.boxes(0)) == 1
    assert [(note.fault, Path(note.where).name) for note in source.notes] == [
        (Fault.MALFORMED, "a.xml: object 2")
    ]


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize("text", ["", "<annotation>", "no XML", "\x00", f"{BOMB}]><a>&j;</a>"])
def test_a_picture_whose_xml_cannot_be_read_is_left_out_and_noted(tmp_path: Path, text: str) -> None:
    voc(tmp_path, thing())
    (tmp_path / "Annotations" / "b.xml").write_text(text)
    source = open_boxes(tmp_path)
    assert len(source) == 1
    assert [(note.fault, Path(note.where).name) for note in source.notes] == [(Fault.MALFORMED, "b.xml")]


def test_voc_without_an_object_is_refused(tmp_path: Path) -> None:
    refused(voc(tmp_path), "expected annotated objects with names, found none")


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    (voc(tmp_path, thing()) / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("\n")
    refused(tmp_path, r"train\.txt: expected a picture's name a line", "train")


# all


def test_what_has_no_boxes_is_refused_with_the_layouts(tmp_path: Path) -> None:
    refused(tmp_path, "expected boxes in COCO's json, YOLO's")
    refused(tmp_path / "none", "no such file or folder")
    paint(tmp_path / "cat" / "a.jpg")
    assert kind_of(tmp_path) == "classify"
    assert kind_of("cifar10:somewhere") == kind_of(object()) == "classify"


def test_an_opened_source_is_given_back(folder: Path) -> None:
    source = open_boxes(coco(folder))
    assert open_boxes(source, "train") is source
    assert kind_of(source) == "detect"
