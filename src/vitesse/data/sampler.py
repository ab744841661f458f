"""In which order pictures are trained on, by (seed, epoch) alone, so that a run can go on anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

WINDOW_BLOCKS = 16
"""Of data in blocks, so many are shuffled together; a reader that keeps as many reads each once an epoch."""


class Key(NamedTuple):
    """Which augmented picture: the `copy`-th of a source's `picture` in `epoch`."""

    epoch: int
    picture: int
    copy: int = 0


@dataclass(frozen=True, kw_only=True)
class Share:
    """What of every step one process computes, and in how many parts.

    Attributes:
        rank, world: which process, of how many.
        accumulate: parts that each process computes one after the other.
    """

    rank: int = 0
    world: int = 1
    accumulate: int = 1

    @property
    def parts(self) -> int:
        """Parts of a step, over all processes."""
        return self.world * self.accumulate


def epoch_order(num_images: int, seed: int, epoch: int, blocks: Sequence[int] = ()) -> NDArray[np.int64]:
    """A permutation of `num_images` indices.

    Args:
        blocks: lengths of the runs of indices that are cheap to read together; they are then drawn in random
            order and shuffled `WINDOW_BLOCKS` at a time. Without them everything is shuffled together.
    """
    generator = np.random.default_rng((seed, epoch))
    if not blocks:
        return generator.permutation(num_images)
    runs = np.split(np.arange(num_images), np.cumsum(blocks)[:-1])
    drawn = generator.permutation(len(runs))
    windows = [drawn[first : first + WINDOW_BLOCKS] for first in range(0, len(drawn), WINDOW_BLOCKS)]
    return np.concatenate(
        [generator.permutation(np.concatenate([runs[block] for block in window])) for window in windows]
    )


class ShuffledKeys(Sampler[list[Key]]):
    """Batches of keys from any step of an epoch on, for one process.

    A step takes `batch_size` pictures over all processes, whatever their number, so that every step sees the
    same pictures in any world. The last, incomplete step of an epoch is left out; another epoch draws other
    pictures for it.

    Args:
        num_images: pictures of the source.
        batch_size: pictures a step, a multiple of `share.parts`.
        repeats: so many differently augmented copies of a picture in a step, of accordingly fewer pictures an
            epoch (repeated augmentation, arXiv 1902.05509). Copies are spread over the parts of a step.
        blocks: see `epoch_order`.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        share: Share,
        repeats: int = 1,
        blocks: Sequence[int] = (),
    ) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.share, self.repeats, self.blocks = share, repeats, tuple(blocks)
        self.epoch = self.first_step = 0

    @property
    def steps_per_epoch(self) -> int:
        return self.num_images // self.batch_size

    def start_at(self, epoch: int, step: int = 0) -> None:
        """Let the next iteration begin at a step of an epoch."""
        self.epoch, self.first_step = epoch, step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.share.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        order_N = np.repeat(epoch_order(self.num_images, self.seed, self.epoch, self.blocks), self.repeats)
        copies_N = np.tile(np.arange(self.repeats), self.num_images)
        for step in range(self.first_step, self.steps_per_epoch):
            positions = self._spread(np.arange(step * self.batch_size, (step + 1) * self.batch_size))
            parts = positions.reshape(self.share.accumulate, self.share.world, -1)
            for part in parts[:, self.share.rank]:
                yield [Key(self.epoch, int(order_N[at]), int(copies_N[at])) for at in part]

    def _spread(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Copies of a picture apart from each other, since mixing blends neighbours."""
        return np.concatenate([positions[first :: self.repeats] for first in range(self.repeats)])
