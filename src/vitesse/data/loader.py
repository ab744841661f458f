"""Training batches: pictures decoded and augmented by worker processes that no signal takes away."""

from __future__ import annotations

import dataclasses
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

from vitesse.data.contract import Pictures
from vitesse.data.joint import BoxTarget
from vitesse.data.sampler import Key, ShuffledKeys
from vitesse.errors import ImageError

Item = tuple[tuple[Tensor, Any] | None, int]
"""An augmented picture with its annotation, None for an unreadable one, and its source index."""


@dataclass(frozen=True)
class Batch:
    """Augmented pictures with what is known of them beside their class.

    Attributes:
        images_BCHW: uint8.
        annotations: nothing for pictures with a class each; else a `BoxTarget` of each picture, or labels
            (B, H, W) uint8.
        indices_B: of the pictures in the source, int64.
        refused: indices of those that cannot be read.
    """

    images_BCHW: Tensor
    indices_B: Tensor
    refused: tuple[int, ...] = ()
    annotations: tuple[BoxTarget, ...] | Tensor = ()

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from where a GPU fetches while it computes."""
        return self._each(lambda part: part.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def twice(self) -> Batch:
        """Of a batch of one, the same picture two times."""
        annotations = self.annotations
        return dataclasses.replace(
            self,
            images_BCHW=self.images_BCHW.expand(2, -1, -1, -1),
            indices_B=self.indices_B.expand(2),
            annotations=annotations.expand(2, -1, -1) if isinstance(annotations, Tensor) else annotations * 2,
        )

    def _each(self, change: Callable[[Any], Any]) -> Batch:
        annotations = self.annotations
        return dataclasses.replace(
            self,
            images_BCHW=change(self.images_BCHW),
            indices_B=change(self.indices_B),
            annotations=change(annotations)
            if isinstance(annotations, Tensor)
            else tuple(map(change, annotations)),
        )


class AugmentedPictures(Dataset[Item]):
    """Pictures of a source, decoded and augmented together with their boxes or label maps.

    The random state is set from the key, so a worker's history never matters.

    Args:
        transform: of the encoded picture, or of that and its annotation.
    """

    def __init__(self, source: Pictures, transform: Callable[..., Any], seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Item:
        seed_by(self.seed, key)
        try:
            return self._augmented(self.source.read(key.picture), key.picture), key.picture
        except (ImageError, OSError):
            return None, key.picture

    def _augmented(self, encoded: bytes, index: int) -> tuple[Tensor, Any]:
        source: Any = self.source
        if hasattr(source, "boxes"):
            return self.transform(encoded, source.boxes(index))  # type: ignore[no-any-return]
        if hasattr(source, "label_map"):
            return self.transform(encoded, source.label_map(index))  # type: ignore[no-any-return]
        return self.transform(encoded), None


def seed_by(seed: int, key: Key) -> None:
    """Set the random states of this process by a key alone."""
    state = int(np.random.SeedSequence((seed, key.epoch, key.picture, key.copy)).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.default_generator.manual_seed(state)  # torch.manual_seed seeds GPUs too, in 0.1 ms


def collate(items: list[Item]) -> Batch:
    """Stack the readable pictures of a batch and name the others."""
    readable = [(*found, index) for found, index in items if found is not None]
    images, annotations, indices = zip(*readable, strict=True) if readable else ((), (), ())
    known = tuple(annotation for annotation in annotations if annotation is not None)
    return Batch(
        images_BCHW=torch.stack(images) if images else torch.empty(0),
        indices_B=torch.tensor(indices, dtype=torch.int64),
        refused=tuple(index for found, index in items if found is None),
        annotations=torch.stack(known) if known and isinstance(known[0], Tensor) else known,
    )


def training_batches(pictures: AugmentedPictures, keys: ShuffledKeys, workers: int) -> TrainingBatches:
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


class TrainingBatches(DataLoader[Item]):
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
