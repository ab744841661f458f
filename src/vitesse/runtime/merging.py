"""Objects that were found in overlapping views of one picture, each of them once.

Shape suffixes: N objects, 4 corners (left, top, right, bottom), P pairs of objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitesse.results import Detection
from vitesse.runtime.sources import Size
from vitesse.runtime.windows import Tiling, Window

SAME = 0.5
"""Two boxes show one object where this share is common: of both together, or of the smaller."""
MARGIN = 0.02
"""Share of a tile's side: a box that ends so close to where the tile was cut may be cut too."""
COARSE, PARTIAL = 0.5, 0.1
"""What scores count beside others of the same object: in the scaled down picture, and of parts."""
PAIRS_AT_ONCE = 2**20


class Sighting(NamedTuple):
    """An object as one view shows it.

    Attributes:
        detection: in pixels of the picture.
        view: number of the view.
        trust: how well the view shows the object, up to 1; `PARTIAL` where another is sure to show it better.
    """

    detection: Detection
    view: int
    trust: float

    @property
    def weight(self) -> float:
        """By which it competes with others."""
        return self.detection.score * self.trust


class ObjectMerge:
    """The objects of one picture, of `size`, from those of its windows and of the whole picture, scaled down.

    In a window, what reaches a side that was cut through the picture is a part of an object. In the whole
    picture, what some window shows whole and larger counts no more than a part, and the rest less than what a
    window shows whole.
    """

    def __init__(self, size: Size, tiling: Tiling) -> None:
        self._size, self._tiling = size, tiling
        self._sightings: list[Sighting] = []
        self._views = 0

    def add(self, window: Window, outcome: Mapping[str, Any]) -> None:
        """The `predictions` of a window, in its own pixels."""
        for found in outcome["predictions"]:
            placed = found.moved(window.top, window.left, self._size)
            self._sightings.append(Sighting(placed, self._views, self._trust(placed, window)))
        self._views += 1

    def result(self) -> dict[str, Any]:
        """The predictions, highest score first, and the size of the picture."""
        return {"predictions": merged(self._sightings), "size": self._size}

    def _trust(self, found: Detection, window: Window) -> float:
        if window.size == self._size:
            return PARTIAL if self._is_small(found) else COARSE
        return PARTIAL if self._is_cut(found, window) else 1

    def _is_small(self, found: Detection) -> bool:
        return found.bbox[3] <= self._tiling.shared[0] and found.bbox[2] <= self._tiling.shared[1]

    def _is_cut(self, found: Detection, window: Window) -> bool:
        left, top, width, height = found.bbox
        near_y, near_x = (MARGIN * side for side in self._tiling.tile)
        return (
            0 < window.top >= top - near_y
            or 0 < window.left >= left - near_x
            or self._size[0] > window.bottom <= top + height + near_y
            or self._size[1] > window.right <= left + width + near_x
        )


def merged(sightings: Sequence[Sighting]) -> tuple[Detection, ...]:
    """Each object once, highest score first, whatever the order of the sightings.

    Of sightings that show one object the one of the greatest weight stays, as in greedy suppression. Of two
    of one class in different views the lesser goes where more than `SAME` of their union is common to both,
    or of the smaller if the lesser is partial. What one view shows side by side stays.

    Tiles with the whole picture as a further view, and the intersection over the smaller, are those of SAHI
    (Akyon et al., arXiv 2202.06934); here the latter is for parts alone, as objects may lie in one another.
    """
    ranked = sorted(sightings, key=lambda s: (-s.weight, -s.detection.score, s.detection.bbox, s.view))
    classes_N = np.array([s.detection.index for s in ranked], np.int64)
    is_lost_N = np.zeros(len(ranked), np.bool_)
    for index in np.unique(classes_N):
        members = np.flatnonzero(classes_N == index)
        is_lost_N[members] = _repetitions([ranked[member] for member in members.tolist()])
    kept = [s.detection for s, is_lost in zip(ranked, is_lost_N.tolist(), strict=True) if not is_lost]
    return tuple(sorted(kept, key=lambda detection: -detection.score))


def _repetitions(ranked: Sequence[Sighting]) -> NDArray[np.bool_]:
    """Which of the sightings of a class, greatest weight first, show what one that stays shows."""
    boxes_N4 = np.array([s.detection.bbox for s in ranked])
    boxes_N4[:, 2:] += boxes_N4[:, :2]
    views_N = np.array([s.view for s in ranked])
    partial_N = np.array([s.trust <= PARTIAL for s in ranked])
    rivals = []
    for one_P, other_P in _side_by_side(boxes_N4):
        meet_P = (boxes_N4[one_P, 1] < boxes_N4[other_P, 3]) & (boxes_N4[other_P, 1] < boxes_N4[one_P, 3])
        pairs_P2 = np.stack([one_P, other_P], axis=1)[meet_P & (views_N[one_P] != views_N[other_P])]
        pairs_P2.sort(axis=1)
        rivals.append(pairs_P2[_is_same(boxes_N4[pairs_P2], partial_N[pairs_P2[:, 1]])])
    is_lost = [False] * len(ranked)
    for greater, lesser in sorted(np.concatenate(rivals).tolist(), key=itemgetter(1)) if rivals else ():
        is_lost[lesser] |= not is_lost[greater]
    return np.array(is_lost)


def _is_same(boxes_P24: NDArray[np.float64], partial_P: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether pairs show one object; `partial_P`: whether the lesser one is partial."""
    low_P2, high_P2 = boxes_P24[..., :2].max(axis=1), boxes_P24[..., 2:].min(axis=1)
    common_P = (high_P2 - low_P2).clip(0).prod(axis=1)
    areas_P2 = (boxes_P24[..., 2:] - boxes_P24[..., :2]).prod(axis=2)
    whole_P = np.where(partial_P, areas_P2.min(axis=1), areas_P2.sum(axis=1) - common_P)
    same_P: NDArray[np.bool_] = common_P > SAME * whole_P
    return same_P


def _side_by_side(boxes_N4: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """All pairs of boxes that share a column, some at a time: the indices of the one and of the other."""
    order_N = np.argsort(boxes_N4[:, 0], kind="stable")
    ends_N = np.searchsorted(boxes_N4[order_N, 0], boxes_N4[order_N, 2])
    counts_N = (ends_N - np.arange(1, len(order_N) + 1)).clip(0)
    groups_N = np.cumsum(counts_N) // PAIRS_AT_ONCE
    for members in np.split(np.arange(len(order_N)), np.flatnonzero(np.diff(groups_N)) + 1):
        counts = counts_N[members]
        one_P = np.repeat(members, counts)
        nth_P = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        yield order_N[one_P], order_N[one_P + 1 + nth_P]
