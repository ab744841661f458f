"""Masks of objects as run lengths, the form that COCO's tools share.

Shape suffixes: N objects, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import require

Rle = dict[str, Any]
"""`{"size": [height, width], "counts": bytes}`, compressed as COCO does."""
Segment = Any
"""What annotations hold: polygons `[[x, y, x, y, …], …]` in pixels, or run lengths, compressed or not."""

REACH = 10
"""Sides of the picture beyond which corners of polygons are moved nearer."""
LEAST_POLYGON = 6
"""Numbers of a triangle."""


def encode_masks(masks_NHW: NDArray[np.bool_] | NDArray[np.uint8]) -> tuple[Rle, ...]:
    """Run lengths of masks (N, H, W)."""
    pixels_HWN = np.asfortranarray(masks_NHW.astype(np.uint8).transpose(1, 2, 0))
    return tuple(_codec().encode(pixels_HWN))


def decode_masks(masks: Sequence[Rle], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pixels 0 or 1, (N, H, W), of masks of pictures of `size` (height, width)."""
    if not masks:
        return np.zeros((0, *size), np.uint8)
    pixels_NHW: NDArray[np.uint8] = _codec().decode(list(masks)).transpose(2, 0, 1)
    return pixels_NHW


def mask_areas(masks: Sequence[Rle]) -> NDArray[np.float32]:
    """Pixels of each mask, float32 (N,)."""
    return np.asarray(_codec().area(list(masks)) if masks else [], np.float32)


def compressed(segmentation: Mapping[str, Any]) -> Rle:
    """Run lengths in the form of `results.run_lengths`, compressed."""
    mask: Rle = _codec().frPyObjects(dict(segmentation), *segmentation["size"])
    return mask


def read_segment(segment: Segment, size: tuple[int, int]) -> Rle | None:
    """An object's mask in a picture of `size` (height, width); None where it is no mask, or an empty one.

    Of polygons counts what is in the picture.
    """
    try:
        mask = _runs(segment, size) if isinstance(segment, dict) else _filled(segment, size)
        return mask if mask is not None and _codec().area(mask) > 0 else None
    except (KeyError, TypeError, ValueError, RuntimeError):
        return None


def box_mask(corners: Sequence[float], size: tuple[int, int]) -> Rle:
    """The rectangle (left, top, right, bottom) in whole pixels, in a picture of `size` (height, width)."""
    left, top, right, bottom = math.floor(corners[0]), math.floor(corners[1]), *map(math.ceil, corners[2:])
    codec = _codec()
    mask: Rle = codec.merge(codec.frPyObjects([[left, top, right, top, right, bottom, left, bottom]], *size))
    return mask


def segment_size(segment: Segment) -> tuple[int, int] | None:
    """The (height, width) that run lengths say they are for; polygons say none."""
    size = segment.get("size") if isinstance(segment, dict) else None
    return (size[0], size[1]) if isinstance(size, list | tuple) and len(size) == 2 else None


def _runs(segment: Rle, size: tuple[int, int]) -> Rle | None:
    """Run lengths, compressed."""
    if segment_size(segment) != size:
        return None
    if isinstance(counts := segment["counts"], list):
        return compressed(segment) if sum(counts) == math.prod(size) else None
    _codec().decode(segment)  # raises where the lengths are not those of the size
    return segment


def _filled(polygons: Segment, size: tuple[int, int]) -> Rle | None:
    height, width = size
    parts = []
    for polygon in polygons:
        points = np.asarray(polygon, np.float64)
        if points.ndim == 1 and _is_polygon(points):
            # filling one takes memory in proportion to its sides, however little of it is in the picture
            limits = REACH * np.tile([width, height], len(points) // 2)
            parts.append(points.clip(-limits, limits).tolist())
    codec = _codec()
    merged: Rle | None = codec.merge(codec.frPyObjects(parts, height, width)) if parts else None
    return merged


def _is_polygon(points: NDArray[np.float64]) -> bool:
    return points.size >= LEAST_POLYGON and points.size % 2 == 0 and bool(np.isfinite(points).all())


def _codec() -> Any:
    return require("faster_coco_eval.core.mask", "dense")
