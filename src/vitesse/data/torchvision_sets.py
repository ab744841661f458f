"""Data sets that the user has on disk as torchvision's `datasets` lay them out; nothing is downloaded.

The files are read here: torchvision's own classes refuse every copy whose checksums are not the original's,
and unpickle what they find.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.contract import SPLIT_NAMES, Source, check_labels, digest
from vitesse.data.files import FileSource, read_class_folders
from vitesse.data.subset import Relabelled
from vitesse.errors import DataError, require

CIFAR_SIDE = 32


class ArraySource:
    """Pictures uint8 (N, H, W, C) in memory, read as `.npy` files."""

    blocks: tuple[int, ...] = ()

    def __init__(
        self, where: str, images_NHWC: NDArray[np.uint8], labels: NDArray[np.int64], class_names: list[str]
    ) -> None:
        self.where, self.images_NHWC, self.labels = where, images_NHWC, labels
        self.class_names = tuple(class_names)
        check_labels(self)
        self.fingerprint = digest([str(images_NHWC.shape)], labels, class_names)
        header = io.BytesIO()
        np.save(header, images_NHWC[:1][0])
        self._header = header.getvalue()[: -images_NHWC[0].nbytes]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def read(self, index: int) -> bytes:
        return bytes(self._header + self.images_NHWC[index].tobytes())

    def sizes(self) -> NDArray[np.int64]:
        return np.full(len(self), len(self._header) + self.images_NHWC[0].nbytes)


def open_set(name: str, root: Path, split: str | None) -> Source:
    """The `train` or `test` split of one of `SETS`.

    Raises:
        DataError: no split is asked for, there is no such one, or a file of the layout is absent or damaged.
    """
    wanted = next((known for known, aliases in SPLIT_NAMES.items() if split in aliases), None)
    if wanted is None:
        open_set(name, root, "train")
        raise DataError(f"{name}:{root}: holds the splits train and test, expected one of them, got {split}")
    try:
        return SETS[name](root, wanted)
    except FileNotFoundError as error:
        raise DataError(
            f"{name}:{root}: expected torchvision's layout {LAYOUTS[name]}; {error.filename} is absent"
        ) from None
    except (OSError, KeyError, IndexError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise DataError(
            f"{name}:{root}: damaged, or not torchvision's layout {LAYOUTS[name]}: {error}"
        ) from error


def _cifar(
    folder: str, batches: dict[str, list[str]], meta: str, label: str, root: Path, split: str
) -> Source:
    found = [_unpickle(root / folder / batch) for batch in batches[split]]
    planes_NCHW = np.concatenate([batch["data"] for batch in found]).reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    labels = np.concatenate([np.asarray(batch[f"{label}s"], np.int64) for batch in found])
    names = _unpickle(root / folder / meta)[f"{label}_names"]
    images_NHWC = np.ascontiguousarray(planes_NCHW.transpose(0, 2, 3, 1))
    return ArraySource(f"{root / folder}/{split}", images_NHWC, labels, names)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles lists, texts and NumPy arrays; code of others is never run."""

    def find_class(self, module: str, name: str) -> Any:
        rebuild = np.zeros(0).__reduce__()[0]
        allowed = {"_reconstruct": rebuild, "ndarray": np.ndarray, "dtype": np.dtype, "encode": _encode}
        if module.partition(".")[0] not in ("numpy", "_codecs") or name not in allowed:
            raise pickle.UnpicklingError(f"expected only arrays, found {module}.{name}")
        return allowed[name]


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArraysOnly(file, encoding="latin1").load()


def _flowers(root: Path, split: str) -> Source:
    folder = root / "flowers-102"
    parts = _matlab(folder / "setid.mat")
    numbers = np.concatenate(
        [parts[part] for part in (("trnid", "valid") if split == "train" else ("tstid",))]
    )
    labels = _matlab(folder / "imagelabels.mat")["labels"].astype(np.int64)[numbers - 1] - 1
    names = require("torchvision.datasets", "train").Flowers102.classes
    files = [f"image_{number:05d}.jpg" for number in numbers.tolist()]
    return FileSource(folder / "jpg", files, labels.tolist(), names)


def _pets(root: Path, split: str) -> Source:
    folder = root / "oxford-iiit-pet"
    listed = folder / "annotations" / ("trainval.txt" if split == "train" else "test.txt")
    rows = [line.split() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    labels = [int(label) - 1 for _, label, *_ in rows]
    breeds = {label: row[0].rpartition("_")[0] for label, row in zip(labels, rows, strict=True)}
    names = [breeds[label].replace("_", " ").title() for label in range(len(breeds))]
    return FileSource(folder / "images", [f"{row[0]}.jpg" for row in rows], labels, names)


def _cars(root: Path, split: str) -> Source:
    folder = root / "stanford_cars"
    listed = "devkit/cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
    rows = np.atleast_1d(_matlab(folder / listed)["annotations"])
    labels = rows["class"].astype(np.int64) - 1
    names = np.atleast_1d(_matlab(folder / "devkit" / "cars_meta.mat")["class_names"]).tolist()
    return FileSource(folder / f"cars_{split}", [str(name) for name in rows["fname"]], labels.tolist(), names)


def _imagenet(root: Path, split: str) -> Source:
    source = read_class_folders(root / ("train" if split == "train" else "val"))
    meta, _ = require("torch", "train").load(root / "meta.bin", weights_only=True)
    return Relabelled(source, source.labels, tuple(", ".join(meta[wnid]) for wnid in source.class_names))


def _matlab(path: Path) -> Any:
    with path.open("rb") as file:
        return require("scipy.io", "train").loadmat(file, squeeze_me=True)


SETS: dict[str, Callable[[Path, str], Source]] = {
    "cifar10": partial(
        _cifar,
        "cifar-10-batches-py",
        {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
        "batches.meta",
        "label",
    ),
    "cifar100": partial(
        _cifar, "cifar-100-python", {"train": ["train"], "test": ["test"]}, "meta", "fine_label"
    ),
    "flowers102": _flowers,
    "pets": _pets,
    "cars": _cars,
    "imagenet": _imagenet,
}
LAYOUTS = {
    "cifar10": "ROOT/cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}",
    "cifar100": "ROOT/cifar-100-python/{train,test,meta}",
    "flowers102": "ROOT/flowers-102/{jpg/,imagelabels.mat,setid.mat}",
    "pets": "ROOT/oxford-iiit-pet/{images/,annotations/{trainval,test}.txt}",
    "cars": "ROOT/stanford_cars/{cars_train/,cars_test/,devkit/,cars_test_annos_withlabels.mat}",
    "imagenet": "ROOT/{train/,val/,meta.bin}",
}
