"""torchvision's data sets: tiny ones in the exact layout on disk, next to torchvision's reading."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from scipy.io import savemat
from torchvision.datasets import utils

from vitesse.data.sources import open_source
from vitesse.errors import DataError
from vitesse.runtime.bands import read_bands

SETS = ["cifar10", "cifar100", "flowers102", "pets", "cars", "imagenet"]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path.name.encode())


def batch(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def write_set(name: str, root: Path) -> None:
    """The set in miniature, as torchvision's download leaves it."""
    if name == "cifar10":
        folder = root / "cifar-10-batches-py"
        for number in range(1, 6):
            batch(
                folder / f"data_batch_{number}", {"data": pixels(2, number), "labels": [number, 10 - number]}
            )
        batch(folder / "test_batch", {"data": pixels(3, 9), "labels": [0, 9, 4]})
        batch(folder / "batches.meta", {"label_names": [f"thing {n}" for n in range(10)]})
    elif name == "cifar100":
        folder = root / "cifar-100-python"
        batch(folder / "train", {"data": pixels(3, 0), "fine_labels": [0, 99, 4], "coarse_labels": [0, 1, 2]})
        batch(folder / "test", {"data": pixels(1, 1), "fine_labels": [7], "coarse_labels": [0]})
        batch(folder / "meta", {"fine_label_names": [f"thing {n}" for n in range(100)]})
    elif name == "flowers102":
        folder = root / "flowers-102"
        for number in range(1, 7):
            picture(folder / "jpg" / f"image_{number:05}.jpg")
        savemat(folder / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 3, 3, 5]], np.uint8)})
        savemat(folder / "setid.mat", {"trnid": [[2, 6]], "valid": [[1, 4]], "tstid": [[5, 3]]})
    elif name == "pets":
        folder = root / "oxford-iiit-pet"
        listed = {
            "trainval": ["Abyssinian_1 1 1 1", "saint_bernard_2 2 2 1"],
            "test": ["saint_bernard_9 2 2 1", "Abyssinian_3 1 1 1"],
        }
        for split, lines in listed.items():
            for line in lines:
                picture(folder / "images" / f"{line.split()[0]}.jpg")
            (folder / "annotations").mkdir(exist_ok=True)
            (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    elif name == "cars":
        folder = root / "stanford_cars"
        (folder / "devkit").mkdir(parents=True)
        kinds = [("bbox_x1", "u1"), ("class", "u1"), ("fname", "O")]
        savemat(
            folder / "devkit" / "cars_meta.mat", {"class_names": np.array([["Audi A1", "BMW 2"]], object)}
        )
        for split, file in (
            ("train", "devkit/cars_train_annos.mat"),
            ("test", "cars_test_annos_withlabels.mat"),
        ):
            rows = np.array([(1, 2, "00001.jpg"), (1, 1, "00002.jpg")], kinds)
            savemat(folder / file, {"annotations": rows[None]})
            for row in rows:
                picture(folder / f"cars_{split}" / row["fname"])
    else:
        for split, count in (("train", 2), ("val", 1)):
            for wnid in ("n01440764", "n02012849"):
                for number in range(count):
                    picture(root / split / wnid / f"{split}_{number}.JPEG")
        torch.save(
            ({"n01440764": ("tench", "Tinca tinca"), "n02012849": ("crane",)}, ["n01440764"]),
            root / "meta.bin",
        )


def torchvisions(name: str, root: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """(array or bytes, label) of every picture as torchvision reads the set."""
    for module in ("cifar", "flowers102", "imagenet"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_: True)
    monkeypatch.setattr(utils, "check_integrity", lambda *_: True)

    def raw(path: Any) -> bytes:
        return Path(path).read_bytes()

    sets = torchvision.datasets
    if name.startswith("cifar"):
        found = (sets.CIFAR10 if name == "cifar10" else sets.CIFAR100)(root, train=split == "train")
        return [(np.asarray(image), label) for image, label in found]
    if name == "flowers102":
        parts = ("train", "val") if split == "train" else ("test",)
        return [pair for part in parts for pair in sets.Flowers102(root, part, loader=raw)]
    if name == "pets":
        pets = sets.OxfordIIITPet(root, "trainval" if split == "train" else "test")
        return [(raw(path), label) for path, label in zip(pets._images, pets._labels, strict=True)]
    if name == "cars":
        return list(sets.StanfordCars(root, split, loader=raw))
    return list(sets.ImageNet(root, "train" if split == "train" else "val", loader=raw))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", SETS)
def test_a_set_is_read_as_torchvision_reads_it(
    tmp_path: Path, name: str, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(name, tmp_path)
    source = open_source(f"{name}:{tmp_path}", split)
    expected = torchvisions(name, tmp_path, split, monkeypatch)
    assert source.labels.tolist() == [label for _, label in expected]
    for index, (content, _) in enumerate(expected):
        if isinstance(content, bytes):
            assert source.read(index) == content
        else:
            np.testing.assert_array_equal(read_bands(source.read(index)), content)
    assert len(source) == len(expected) > 0


@pytest.mark.parametrize(
    ("name", "label", "class_name"),
    [
        ("cifar10", 3, "thing 3"),
        ("cifar100", 99, "thing 99"),
        ("flowers102", 101, "blackberry lily"),
        ("pets", 1, "Saint Bernard"),
        ("cars", 1, "BMW 2"),
        ("imagenet", 0, "tench, Tinca tinca"),
    ],
)
def test_classes_have_names_for_people(tmp_path: Path, name: str, label: int, class_name: str) -> None:
    write_set(name, tmp_path)
    train, test = (open_source(f"{name}:{tmp_path}", split) for split in ("train", "val"))
    assert train.class_names == test.class_names
    assert train.class_names[label] == class_name


@pytest.mark.parametrize("name", SETS)
def test_an_absent_set_is_told_with_its_layout(tmp_path: Path, name: str) -> None:
    for split in ("train", "test", None):
        with pytest.raises(DataError, match=r"expected torchvision's layout ROOT/.*is absent") as caught:
            open_source(f"{name}:{tmp_path}", split)
        assert "\n" not in str(caught.value)


def test_a_set_without_a_split_is_refused(tmp_path: Path) -> None:
    write_set("pets", tmp_path)
    with pytest.raises(DataError, match="holds the splits train and test"):
        open_source(f"pets:{tmp_path}")


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    write_set("cifar100", tmp_path)
    write_set("flowers102", tmp_path)
    train = tmp_path / "cifar-100-python" / "train"
    train.write_bytes(train.read_bytes()[:2000])
    (tmp_path / "flowers-102" / "setid.mat").write_bytes(b"MATLAB 5.0" + bytes(300))
    for name in ("cifar100", "flowers102"):
        with pytest.raises(DataError, match="damaged, or not torchvision's layout") as caught:
            open_source(f"{name}:{tmp_path}", "train")
        assert "\n" not in str(caught.value)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("trap"),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_set("cifar100", tmp_path)
    batch(tmp_path / "cifar-100-python" / "train", {"data": Trap()})
    with pytest.raises(DataError, match="expected only arrays"):
        open_source(f"cifar100:{tmp_path}", "train")
    assert not (tmp_path / "trap").exists()
