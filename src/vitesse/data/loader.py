"""Training batches whose order and augmentation depend only on (seed, epoch, index)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vitesse.data.sources import Source
from vitesse.errors import ImageError
from vitesse.runtime.imaging import read_image

Transform = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Batch:
    """Augmented pictures uint8 (B, C, H, W), their source indices int64 (B,), and the refused indices."""

    images_BCHW: Tensor
    indices_B: Tensor
    refused: tuple[int, ...]


class AugmentedPictures(Dataset[tuple[Tensor | None, int]]):
    """Pictures of a source, decoded and augmented; an unreadable one is None.

    An item's key is (epoch, index): the random state is set from it, so a worker's history never matters.
    """

    def __init__(self, source: Source, transform: Transform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | None, int]:
        epoch, index = key
        try:
            image = read_image(self.source.read(index))
        except (ImageError, OSError):
            return None, index
        seed = int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return self.transform(image), index


class ShuffledKeys(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), ordered by (seed, epoch) alone, from any batch on, for one of `world` ranks.

    The last, incomplete batch of an epoch is left out; another epoch draws other pictures for it.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world = rank, world
        self.epoch = self.first_batch = 0

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration begin at a batch of an epoch."""
        self.epoch, self.first_batch = epoch, batch

    def __len__(self) -> int:
        return self.num_images // (self.batch_size * self.world) - self.first_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_images)
        step = self.batch_size * self.world
        for batch in range(self.first_batch, self.num_images // step):
            start = batch * step + self.rank * self.batch_size
            yield [(self.epoch, int(index)) for index in order[start : start + self.batch_size]]


def collate(items: list[tuple[Tensor | None, int]]) -> Batch:
    """Stack the readable pictures of a batch and name the others."""
    readable = [(image, index) for image, index in items if image is not None]
    return Batch(
        images_BCHW=torch.stack([image for image, _ in readable]) if readable else torch.empty(0),
        indices_B=torch.tensor([index for _, index in readable], dtype=torch.int64),
        refused=tuple(index for image, index in items if image is None),
    )


def training_batches(pictures: AugmentedPictures, keys: ShuffledKeys, workers: int) -> DataLoader[Batch]:
    """Batches decoded by `workers` processes (0: in this one)."""
    return DataLoader(
        pictures,  # type: ignore[arg-type]
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=False,
        pin_memory=torch.cuda.is_available(),
    )
