"""What is said of annotations: each fault is put there, found, counted and named once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitesse.data.annotated import open_boxes, open_maps
from vitesse.data.boxes import BoxFiles, Drawn
from vitesse.data.check_dense import DenseCheck, check_boxes, check_maps, check_same_classes
from vitesse.data.dense import Fault
from vitesse.errors import DataError

SIZE = (40, 30)
RUNS = {"size": [30, 40], "counts": [0, 1200]}


def paint(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A COCO json with every fault that boxes may have."""
    for name in ("good", "empty", "larger"):
        paint(tmp_path / "images" / f"{name}.jpg", (80, 60) if name == "larger" else SIZE)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no picture")
    names = ("good", "empty", "larger", "broken", "gone")
    images = [
        {"id": n, "file_name": f"{name}.jpg", "width": 40, "height": 30} for n, name in enumerate(names)
    ]
    things: list[dict[str, Any]] = [
        {"image_id": 0, "bbox": [1, 1, 9, 9], "segmentation": RUNS},
        {"image_id": 0, "bbox": [30, 1, 20, 9], "segmentation": RUNS},
        {"image_id": 0, "bbox": [-5, 1, 9, 9], "segmentation": {**RUNS, "size": [15, 20]}},
        {"image_id": 0, "bbox": [1, 1, 0, 9]},
        {"image_id": 0, "bbox": [1, 1, 9, 9], "category_id": 8},
        {"image_id": 0, "bbox": "here"},
        {"image_id": 2, "bbox": [1, 1, 9, 9]},
        {"image_id": 99, "bbox": [1, 1, 9, 9]},
    ]
    annotations = [{"id": n, "category_id": 1, **thing} for n, thing in enumerate(things)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    return tmp_path / "mine.json"


def test_every_fault_is_found_counted_and_said_once(faulty: Path) -> None:
    found = check_boxes(open_boxes(faulty))
    assert found.counts() == {
        Fault.MALFORMED: 1,
        Fault.NO_PICTURE: 1,
        Fault.OUTSIDE: 2,
        Fault.MASK_SIZE: 1,
        Fault.NO_AREA: 1,
        Fault.NO_CLASS: 1,
        Fault.BACKGROUND: 1,
        Fault.NO_MASK: 1,
        Fault.OTHER_SIZE: 1,
        Fault.UNREADABLE: 2,
    }
    assert found.class_counts == (4, 0)
    assert found.pictures == 5
    lines = found.lines()
    assert len(lines) == len(found.counts()) + 1
    for text in (
        "boxes that reach outside their picture, clipped to it: 2, the first is ",
        "images/good.jpg",
        "annotations of pictures that are not there, left out: 1, the first is ",
        "mine.json: annotation 7",
        "broken.jpg: expected a JPEG, PNG or WebP picture",
        "classes that are nowhere: 'dog'",
    ):
        assert sum(text in line for line in lines) >= 1, text
    assert not any("\n" in line for line in lines)


def test_strict_refuses_with_one_line(faulty: Path) -> None:
    with pytest.raises(
        DataError, match=r"^11 faults, such as .*annotation 5: annotations that cannot be read"
    ):
        check_boxes(open_boxes(faulty), strict=True)


def test_a_check_ends_when_told(faulty: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_boxes(open_boxes(faulty), check=stop)


def test_the_record_names_every_one(faulty: Path) -> None:
    record = json.loads(json.dumps(check_boxes(open_boxes(faulty)).to_dict()))
    assert record["pictures"] == 5
    assert record["classes"] == {"cat": 4, "dog": 0}
    assert [Path(where.split(": ")[0]).name for where in record["faults"]["unreadable"]] == [
        "broken.jpg",
        "gone.jpg",
    ]


def test_a_cut_picture_is_found_only_by_decoding(tmp_path: Path) -> None:
    whole = paint(tmp_path / "a.png", (200, 200)).read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    drawn = [[Drawn(corners=(1, 1, 9, 9), label=0)]]
    source = BoxFiles([tmp_path / "a.png"], drawn, ["cat"])
    assert check_boxes(source).counts() == {Fault.UNREADABLE: 1}
    assert check_boxes(source, decode=False).counts() == {}


@pytest.mark.parametrize(
    ("count", "faults"), [(100, {}), (101, {Fault.CROWDED: 1}), (10_000, {Fault.CROWDED: 1})]
)
def test_more_objects_than_a_score_can_count_are_told(
    tmp_path: Path, count: int, faults: dict[Fault, int]
) -> None:
    drawn = [[Drawn(corners=(1, 1, 9, 9), label=1)] * count + [Drawn(corners=(1, 1, 9, 9), label=0)] * 60]
    found = check_boxes(BoxFiles([paint(tmp_path / "a.png")], drawn, ["cat", "dog"]), strict=True)
    assert found.counts() == faults
    assert found.class_counts == (60, count)


def test_good_data_needs_no_line(data_dir: Path) -> None:
    found = check_boxes(open_boxes(data_dir / "bccd", "test"), strict=True, decode=False)
    assert (found.lines(), found.class_counts, found.pictures) == ([], (805, 71, 69), 72)


def mapped(root: Path, *masks: np.ndarray) -> DenseCheck:
    (root / "masks").mkdir()
    for number, mask_HW in enumerate(masks):
        paint(root / "images" / f"{number}.png")
        Image.fromarray(mask_HW).save(root / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("cat\ndog\n")
    return check_maps(open_maps(root))


def test_every_fault_of_label_maps_is_found(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    paint(tmp_path / "images" / "alone.png")
    good, blank = np.zeros((30, 40), np.uint8), np.full((30, 40), 255, np.uint8)
    found = mapped(tmp_path, good, good[:15, :20], blank, good + 9)
    assert found.counts() == {
        Fault.NO_MAP: 1,
        Fault.OTHER_SIZE: 1,
        Fault.BACKGROUND: 2,
        Fault.NO_VALUE: 1,
    }
    assert found.class_counts == (30 * 40 + 15 * 20, 0)
    (tmp_path / "masks" / "0.png").write_bytes(b"")
    assert check_maps(open_maps(tmp_path)).counts()[Fault.UNREADABLE] == 1


def test_splits_of_other_classes_are_refused(tmp_path: Path) -> None:
    def source(*names: str) -> BoxFiles:
        return BoxFiles([tmp_path], [[]], names)

    check_same_classes(source("cat", "dog"), source("cat", "dog"))
    with pytest.raises(DataError, match=r"different classes: cow, dog$"):
        check_same_classes(source("cat", "dog"), source("cat", "cow"))
    with pytest.raises(DataError, match=r"different classes: their order$"):
        check_same_classes(source("cat", "dog"), source("dog", "cat"))
