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
    """An engine that sees every picture once in each slot and gives the mean (MUX-PLM, arXiv 2302.12441).

    It costs as much as no multiplexing at all; from one slot to the next a picture meets other pictures.

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
        runs = []
        for order_B in orders(len(batch_BCHW), self._mux_width):
            outputs = self._engine.run(batch_BCHW[order_B])
            back_B = np.argsort(order_B)
            runs.append([output[back_B] for output in outputs])
        return tuple(np.mean(parts, axis=0) for parts in zip(*runs, strict=True))


def orders(count: int, mux_width: int) -> Iterator[NDArray[np.int64]]:
    """`mux_width` orders of `count` pictures; each picture of a whole group is in every slot once.

    The column of slot m moves by m groups from one order to the next, so that groups are mixed anew; a rest
    that fills no group only changes its slots.
    """
    whole = count // mux_width * mux_width
    groups_GM = np.arange(whole).reshape(-1, mux_width)
    rest_B = np.arange(whole, count)
    for turn in range(mux_width):
        columns = [np.roll(groups_GM[:, slot], turn * slot) for slot in range(mux_width)]
        turned_GM = np.roll(np.stack(columns, axis=1), turn, axis=1)
        yield np.concatenate([turned_GM.ravel(), np.roll(rest_B, turn)])


def whole_groups(batch_size: int, mux_width: int) -> int:
    """A batch size rounded up to whole groups."""
    return -(-batch_size // mux_width) * mux_width


def dependence(manifest: Manifest) -> str:
    """What a user of a multiplexed model must know of its labels, in one line."""
    shared = f"{manifest.model.name} reads pictures in groups of {manifest.mux_width}"
    agreement = (manifest.accuracy or {}).get("agreement")
    if agreement is None:
        return f"{shared}: a label may depend on its group; `vitesse evaluate` measures how often"
    images = (manifest.accuracy or {})["images"]
    return f"{shared}: among other pictures {agreement:.1%} keep their label (measured on {images})"
