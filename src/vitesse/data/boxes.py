"""Picture files with boxes: what every format of annotations becomes.

Shape suffixes: N objects, 4 corners (left, top, right, bottom).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitesse.data.contract import digest
from vitesse.data.dense import Boxes, Fault, Note, picture_size
from vitesse.data.files import PictureFiles
from vitesse.data.masks import Rle, Segment, box_mask, mask_areas, read_segment, segment_size

_ROUNDING = 1e-3
"""Pixels that a corner may be off by rounding alone, without being called outside."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One object as an annotation has it.

    Attributes:
        corners: left, top, right, bottom, in pixels or, in relative annotations, in shares of the sides.
        label: class index; -1 where the annotation names no class that exists.
        crowd: see `Boxes.crowd_N`.
        area: in square pixels; None where it is not written.
        segment: its mask as written, in the units of `corners`; None without.
    """

    corners: tuple[float, float, float, float]
    label: int
    crowd: bool = False
    area: float | None = None
    segment: Segment | None = None


class BoxFiles(PictureFiles):
    """Picture files with the objects drawn in them.

    Args:
        files: the pictures.
        drawn: the objects of each picture.
        class_names: name of each class index.
        category_ids: numbers of the classes in the annotations; by default their indices.
        sizes: (height, width) of each picture, None where it has to be read from the picture.
        relative: whether corners and polygons are shares of the picture's sides.
        masks: whether to keep masks; if not, only boxes are known.
        notes: faults met while the annotations were read.
    """

    def __init__(
        self,
        files: Sequence[Path],
        drawn: Sequence[Sequence[Drawn]],
        class_names: Sequence[str],
        *,
        category_ids: Sequence[int] | None = None,
        sizes: Sequence[tuple[int, int] | None] | None = None,
        relative: bool = False,
        masks: bool = True,
        notes: Sequence[Note] = (),
    ) -> None:
        super().__init__(Path(), [*map(str, files)], class_names)
        self.notes = tuple(notes)
        self.category_ids = tuple(range(len(class_names)) if category_ids is None else category_ids)
        self.relative = relative
        self._sizes = dict(enumerate(sizes or ()))
        self._tables = [_table(objects) for objects in drawn]
        # as text: a fraction of the memory of lists of numbers, and shared by processes that only read
        self._segments = [[_packed(one.segment) for one in objects] for objects in drawn] if masks else []
        self.has_masks = any(any(segments) for segments in self._segments)
        self.fingerprint = self._digest(files)

    def boxes(self, index: int) -> Boxes:
        """See `BoxSource`."""
        return self._cleaned(index)[0]

    def faults(self, index: int) -> tuple[Fault, ...]:
        """See `Annotated`."""
        return self._cleaned(index)[1]

    def _size(self, index: int) -> tuple[int, int]:
        size = self._sizes.get(index)
        if size is None:
            size = self._sizes[index] = picture_size(self.read(index))
        return size

    def _cleaned(self, index: int) -> tuple[Boxes, tuple[Fault, ...]]:
        size, table = self._size(index), self._tables[index]
        boxes_N4, kept_N, faults = _clipped(table, size, self.relative)
        boxes_N4 = boxes_N4[kept_N]
        masks = None
        if self.has_masks:
            segments = [self._segments[index][at] for at in np.flatnonzero(kept_N)]
            masks, unfit = _masks(segments, boxes_N4, size, self.relative)
            faults += unfit
        boxes = Boxes(
            boxes_N4=boxes_N4,
            labels_N=table.labels_N[kept_N],
            crowd_N=table.crowd_N[kept_N],
            area_N=_areas(table.area_N[kept_N], boxes_N4, masks),
            size=size,
            masks=masks,
        )
        return boxes, tuple(faults)

    def _digest(self, files: Sequence[Path]) -> str:
        rows = [np.column_stack([t.corners_N4, t.labels_N, t.crowd_N, t.area_N]) for t in self._tables]
        counts = [len(table.labels_N) for table in self._tables]
        segments = hashlib.sha256(b"\n".join(one for of in self._segments for one in of)).hexdigest()
        names = [file.name for file in files] + [str(count) for count in counts] + [segments]
        return digest(names, np.concatenate([np.zeros((0, 7)), *rows]), self.class_names)


@dataclass(frozen=True)
class _Table:
    """`Drawn` of one picture as columns; an area that is not written is NaN."""

    corners_N4: NDArray[np.float64]
    labels_N: NDArray[np.int64]
    crowd_N: NDArray[np.bool_]
    area_N: NDArray[np.float64]


def _table(objects: Sequence[Drawn]) -> _Table:
    return _Table(
        np.array([one.corners for one in objects], np.float64).reshape(-1, 4),
        np.array([one.label for one in objects], np.int64),
        np.array([one.crowd for one in objects], np.bool_),
        np.array([np.nan if one.area is None else one.area for one in objects], np.float64),
    )


def _clipped(
    table: _Table, size: tuple[int, int], relative: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[Fault]]:
    """Boxes (N, 4) in pixels of the picture, which of them to keep, and what was wrong with the others."""
    sides_4 = np.tile(size[::-1], 2)
    written_N4 = table.corners_N4 * sides_4 if relative else table.corners_N4
    clipped_N4 = written_N4.clip(0, sides_4)
    beyond_N = (np.abs(clipped_N4 - written_N4) > _ROUNDING).any(axis=1)
    boxes_N4 = clipped_N4.astype(np.float32)
    has_area_N = (boxes_N4[:, :2] < boxes_N4[:, 2:]).all(axis=1)
    has_class_N = table.labels_N >= 0
    kept_N = has_area_N & has_class_N
    faults = {
        Fault.NO_CLASS: ~has_class_N,
        Fault.NO_AREA: has_class_N & ~has_area_N,
        Fault.OUTSIDE: kept_N & beyond_N,
    }
    return boxes_N4, kept_N, [fault for fault, where_N in faults.items() for _ in range(where_N.sum())]


def _packed(segment: Segment | None) -> bytes:
    return json.dumps(segment, separators=(",", ":")).encode() if segment else b""


def _masks(
    segments: Sequence[bytes], boxes_N4: NDArray[np.float32], size: tuple[int, int], relative: bool
) -> tuple[tuple[Rle, ...], list[Fault]]:
    masks, faults = [], []
    for packed, corners in zip(segments, boxes_N4.tolist(), strict=True):
        segment = json.loads(packed) if packed else None
        if relative and segment is not None:
            segment = [(np.reshape(polygon, (-1, 2)) * size[::-1]).ravel().tolist() for polygon in segment]
        mask = None if segment is None else read_segment(segment, size)
        if mask is None:
            other = segment is not None and segment_size(segment) not in (None, size)
            faults.append(Fault.MASK_SIZE if other else Fault.NO_MASK)
            mask = box_mask(corners, size)
        masks.append(mask)
    return tuple(masks), faults


def _areas(
    written_N: NDArray[np.float64], boxes_N4: NDArray[np.float32], masks: Sequence[Rle] | None
) -> NDArray[np.float32]:
    """The areas as written, or where they are not those of the masks, or of the boxes."""
    if masks is None:
        sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
        measured_N = sides_N2.prod(axis=1)
    else:
        measured_N = mask_areas(masks)
    return np.where(written_N > 0, written_N, measured_N).astype(np.float32)
