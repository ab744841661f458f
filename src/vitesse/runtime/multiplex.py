"""Multiplexed models: several pictures of a batch share one pass, a group of `mux_width` in their order.

Shape suffixes: B pictures, C channels, H height, W width, G groups, M pictures of a group (slots).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import ConfigError
from vitesse.runtime.engines import Engine
from vitesse.spec import Manifest


class EnsembledEngine:
    """An engine that sees every picture in each slot and gives the mean (MUX-PLM, arXiv 2302.12441).

    It costs at least as much as no multiplexing at all. From one slot to the next a picture meets others, as
    far as the batch holds any; what fills the last group are pictures of the batch once more.

    Raises:
        ConfigError: `mux_width` is 1.
    """

    def __init__(self, engine: Engine, mux_width: int) -> None:
        if mux_width == 1:
            raise ConfigError("ensemble: expected a multiplexed model, this one takes every picture alone")
        self.name = engine.name
        self._engine, self._mux_width = engine, mux_width

    def run(self, batch_BCHW: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """See `Engine.run`."""
        count = len(batch_BCHW)
        filled = np.arange(whole_groups(count, self._mux_width)) % count
        runs = []
        for order in orders(len(filled), self._mux_width):
            outputs = self._engine.run(batch_BCHW[filled[order]])
            back_B = np.argsort(order)[:count]
            runs.append([output[back_B] for output in outputs])
        return tuple(np.mean(parts, axis=0) for parts in zip(*runs, strict=True))


def orders(count: int, mux_width: int) -> Iterator[NDArray[np.int64]]:
    """`mux_width` orders of `count` pictures in whole groups, so that each is in every slot once.

    The column of slot m moves by m groups from one order to the next, which mixes the groups.
    """
    groups_GM = np.arange(count).reshape(-1, mux_width)
    for turn in range(mux_width):
        columns = [np.roll(groups_GM[:, slot], turn * slot) for slot in range(mux_width)]
        yield np.roll(np.stack(columns, axis=1), turn, axis=1).ravel()


def whole_groups(batch_size: int, mux_width: int) -> int:
    """A batch size rounded up to whole groups."""
    return -(-batch_size // mux_width) * mux_width


def dependence(manifest: Manifest) -> str:
    """What a user of a multiplexed model must know of its labels, in one line."""
    accuracy = manifest.accuracy or {}
    if "agreement" in accuracy:
        known = f"beside other pictures {accuracy['agreement']:.1%} of {accuracy['images']} kept their label"
    else:
        known = "a label may depend on the others of its group; `vitesse evaluate` measures how often"
    return f"{manifest.model.name} reads pictures in groups of {manifest.mux_width}: {known}"
