"""A class for every pixel of a picture, from the logits of overlapping windows.

Shape suffixes: K classes, H and W rows and columns of the picture, h and w of a window's logits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import EngineError
from vitesse.results import regions
from vitesse.runtime.imaging import input_size, place
from vitesse.runtime.postprocess import nearest
from vitesse.runtime.sources import Size
from vitesse.runtime.windows import Tiling, Window
from vitesse.spec import PreprocessSpec

SHARPNESS = -0.75
"""The free parameter of the cubic kernel that enlarges logits inside an artefact, too."""
VALUES_AT_ONCE = 2**22
"""Logits in pixels of the picture that are held at a time: 16 MiB."""


class MapMerge:
    """The classes of one picture, of `size`: for each pixel the largest mean of the logits of its windows.

    Logits are enlarged bicubically to pixels of the input, as in the artefact, and from there on the nearest
    is taken, as for pictures in one piece. Windows come row by row, and what they are enough for is computed
    at once: of the logits, no more is held than of the windows that share a row of pixels.
    """

    def __init__(self, size: Size, tiling: Tiling, spec: PreprocessSpec, class_names: Sequence[str]) -> None:
        self._classes_HW = np.zeros(size, np.min_scalar_type(len(class_names) - 1))
        placement = place(tiling.windows(size)[0].size, spec)
        self._class_names, self._image_size = class_names, input_size(placement.shown, spec)
        self._pixels = nearest(placement)
        self._open: list[tuple[Window, NDArray[np.float32]]] = []
        self._done = 0

    def add(self, window: Window, outcome: Mapping[str, Any]) -> None:
        """The `logits_Khw` of the next window.

        Raises:
            EngineError: they are not of as many classes as the model has.
        """
        logits_Khw = outcome["logits_Khw"]
        if logits_Khw.ndim != 3 or len(logits_Khw) != len(self._class_names):
            raise EngineError(f"expected logits ({len(self._class_names)}, h, w), got {logits_Khw.shape}")
        self._finish(window.top)
        self._open.append((window, np.ascontiguousarray(logits_Khw.transpose(1, 2, 0))))

    def result(self) -> dict[str, Any]:
        """The map (H, W) of class indices, and the classes that it holds."""
        self._finish(len(self._classes_HW))
        return {"classes_HW": self._classes_HW, "predictions": regions(self._classes_HW, self._class_names)}

    def _finish(self, until: int) -> None:
        """All rows above `until`, whose windows have all come."""
        if until == self._done:
            return
        for cell in _cells([window for window, _ in self._open], self._done, until, len(self._class_names)):
            parts = (self._enlarged(*one, cell) for one in self._open if cell.is_inside(one[0]))
            total_HWK = functools.reduce(np.add, parts)
            self._classes_HW[cell.top : cell.bottom, cell.left : cell.right] = total_HWK.argmax(axis=2)
        self._open = [one for one in self._open if one[0].bottom > until]
        self._done = until

    def _enlarged(self, window: Window, logits_hwK: NDArray[np.float32], cell: Window) -> NDArray[np.float32]:
        """A window's logits (H, W, K) in the pixels of a cell inside it."""
        size = logits_hwK.shape[:2]
        factor = cell_size(self._image_size, size)
        rows, columns = (
            cubic_weights((pixels[start : start + count] + 0.5) / factor - 0.5, cells)
            for pixels, start, count, cells in zip(
                self._pixels, (cell.top - window.top, cell.left - window.left), cell.size, size, strict=True
            )
        )
        (near_h, rows_Hh), (near_w, columns_Ww) = _used(rows), _used(columns)
        wide_hWK = columns_Ww @ logits_hwK[near_h, near_w]
        return np.tensordot(rows_Hh, wide_hWK, axes=1)


def cell_size(image_size: Size, cells: Size) -> int:
    """Pixels of the input a cell of the logits, a power of two; the last cells may reach beyond the input."""
    side = max(-(-pixels // count) for pixels, count in zip(image_size, cells, strict=True))
    return 1 << (side - 1).bit_length()


def cubic_weights(positions_P: NDArray[np.floating[Any]], cells: int) -> NDArray[np.float32]:
    """What each of a row of cells adds to positions among them, (P, cells); cell 0 is at 0.

    Cubic convolution (Keys 1981); beyond the ends the row goes on as its last cells are.
    """
    first_P = np.floor(positions_P).astype(np.intp) - 1
    weights_PC = np.zeros((len(positions_P), cells))
    for cell_P in (first_P, first_P + 1, first_P + 2, first_P + 3):
        distance_P = np.abs(positions_P - cell_P)
        near_P = ((SHARPNESS + 2) * distance_P - (SHARPNESS + 3)) * distance_P**2 + 1
        far_P = SHARPNESS * (((distance_P - 5) * distance_P + 8) * distance_P - 4)
        weights_P = np.where(distance_P <= 1, near_P, far_P)
        np.add.at(weights_PC, (np.arange(len(cell_P)), cell_P.clip(0, cells - 1)), weights_P)
    return weights_PC.astype(np.float32)


def _used(weights_PC: NDArray[np.float32]) -> tuple[slice, NDArray[np.float32]]:
    """The cells from the first to the last that add anything, and their weights."""
    used = np.flatnonzero(weights_PC.any(axis=0))
    cells = slice(int(used[0]), int(used[-1]) + 1)
    return cells, weights_PC[:, cells]


def _cells(windows: Sequence[Window], start: int, end: int, classes: int) -> Iterator[Window]:
    """The rows from `start` to `end` in parts, each covered by the same windows throughout."""
    sides = {side for window in windows for side in (window.top, window.bottom) if start < side < end}
    for top, bottom in pairwise(sorted({start, end, *sides})):
        here = [window for window in windows if window.top <= top < window.bottom]
        for left, right in pairwise(
            sorted({side for window in here for side in (window.left, window.right)})
        ):
            step = max(1, VALUES_AT_ONCE // (classes * (right - left)))
            for row in range(top, bottom, step):
                yield Window(row, left, min(step, bottom - row), right - left)
