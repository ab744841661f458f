"""Training batches of pictures with boxes or label maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vitesse.data.dense import BoxSource, MapSource
from vitesse.data.joint import AugmentBoxes, AugmentMaps, BoxTarget
from vitesse.data.loader import TrainingBatches, seed_by, training_batches
from vitesse.data.sampler import Key, ShuffledKeys
from vitesse.errors import ImageError

Item = tuple[Any, int]
"""An augmented picture with its annotation, None for an unreadable one, and its source index."""


@dataclass(frozen=True)
class DenseBatch:
    """Augmented pictures with what is known of them.

    Attributes:
        images_BCHW: uint8.
        targets: a `BoxTarget` of each picture, or labels (B, H, W) uint8.
        indices_B: of the pictures in the source, int64.
        refused: indices of those that cannot be read.
    """

    images_BCHW: Tensor
    targets: tuple[BoxTarget, ...] | Tensor
    indices_B: Tensor
    refused: tuple[int, ...]

    def pin_memory(self) -> DenseBatch:
        """The same in page-locked memory, from where a GPU fetches while it computes."""
        targets = self.targets
        pinned = (
            targets.pin_memory()
            if isinstance(targets, Tensor)
            else tuple(one.pin_memory() for one in targets)
        )
        return DenseBatch(self.images_BCHW.pin_memory(), pinned, self.indices_B.pin_memory(), self.refused)


class AugmentedAnnotations(Dataset[Item]):
    """Pictures of a source with their annotations, augmented together; an unreadable one is None.

    The random state is set from the key, as for `AugmentedPictures`.
    """

    def __init__(
        self, source: BoxSource | MapSource, transform: AugmentBoxes | AugmentMaps, seed: int
    ) -> None:
        self.source, self.seed = source, seed
        self.transform: Callable[[bytes, Any], Any] = transform
        self.annotation: Callable[[int], Any] = source.boxes if hasattr(source, "boxes") else source.label_map

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Item:
        seed_by(self.seed, key)
        try:
            encoded, annotation = self.source.read(key.picture), self.annotation(key.picture)
            return self.transform(encoded, annotation), key.picture
        except (ImageError, OSError):
            return None, key.picture


def dense_batches(pictures: AugmentedAnnotations, keys: ShuffledKeys, workers: int) -> TrainingBatches:
    """Batches of `DenseBatch`, see `training_batches`."""
    return training_batches(pictures, keys, workers, collate)


def collate(items: list[Item]) -> DenseBatch:
    """Stack the readable pictures of a batch and name the others."""
    readable = [(*pair, index) for pair, index in items if pair is not None]
    images, targets, indices = zip(*readable, strict=True) if readable else ((), (), ())
    maps = bool(targets) and isinstance(targets[0], Tensor)
    return DenseBatch(
        images_BCHW=torch.stack(images) if images else torch.empty(0),
        targets=torch.stack(targets) if maps else tuple(targets),
        indices_B=torch.tensor(indices, dtype=torch.int64),
        refused=tuple(index for pair, index in items if pair is None),
    )
