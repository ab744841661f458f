"""Training batches: pictures decoded and augmented by worker processes that no signal takes away."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitesse.data.sampler import Key, ShuffledKeys
from vitesse.data.sources import Source
from vitesse.errors import ImageError

Transform = Callable[[bytes], Tensor]


@dataclass(frozen=True)
class Batch:
    """Augmented pictures uint8 (B, C, H, W), their source indices int64 (B,), and the refused indices."""

    images_BCHW: Tensor
    indices_B: Tensor
    refused: tuple[int, ...]

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from where a GPU fetches while it computes."""
        return Batch(self.images_BCHW.pin_memory(), self.indices_B.pin_memory(), self.refused)


class AugmentedPictures(Dataset[tuple[Tensor | None, int]]):
    """Pictures of a source, decoded and augmented; an unreadable one is None.

    The random state is set from the key, so a worker's history never matters.
    """

    def __init__(self, source: Source, transform: Transform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> tuple[Tensor | None, int]:
        seed_by(self.seed, key)
        try:
            return self.transform(self.source.read(key.picture)), key.picture
        except (ImageError, OSError):
            return None, key.picture


def seed_by(seed: int, key: Key) -> None:
    """Set the random states of this process by a key alone."""
    state = int(np.random.SeedSequence((seed, key.epoch, key.picture, key.copy)).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.default_generator.manual_seed(state)  # torch.manual_seed seeds GPUs too, in 0.1 ms


def collate(items: list[tuple[Tensor | None, int]]) -> Batch:
    """Stack the readable pictures of a batch and name the others."""
    readable = [(image, index) for image, index in items if image is not None]
    return Batch(
        images_BCHW=torch.stack([image for image, _ in readable]) if readable else torch.empty(0),
        indices_B=torch.tensor([index for _, index in readable], dtype=torch.int64),
        refused=tuple(index for image, index in items if image is None),
    )


def training_batches(
    pictures: Dataset[Any], keys: ShuffledKeys, workers: int, collate: Callable[[list[Any]], Any] = collate
) -> TrainingBatches:
    """Batches decoded by `workers` processes that live as long as the loader (0: in this one)."""
    return TrainingBatches(
        pictures,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_ignore_signals,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


class TrainingBatches(DataLoader[Any]):
    """A loader that tells of a killed worker where a batch is waited for, and not in the midst of a step."""

    def __iter__(self) -> Any:
        if not self.num_workers or threading.current_thread() is not threading.main_thread():
            return super().__iter__()
        before = signal.getsignal(signal.SIGCHLD)
        batches = super().__iter__()  # it installs a handler that raises whatever the process is doing
        signal.signal(signal.SIGCHLD, before)
        return batches

    def close(self) -> None:
        """End the worker processes; they ignore the signal by which the interpreter ends them at exit."""
        if self._iterator is not None:
            self._iterator._shutdown_workers()  # type: ignore[attr-defined]
            self._iterator = None


def _ignore_signals(_: int) -> None:
    """A signal to the whole group must not take the workers from a run that is about to save itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
