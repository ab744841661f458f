"""Held-out pictures with what was found in them, for the report.

Shape suffixes: N objects found, M objects that are there, H rows, W columns.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitesse.data.dense import IGNORE, Boxes, BoxSource, MapSource
from vitesse.data.masks import decode_masks
from vitesse.errors import ImageError
from vitesse.metrics.dense import WORST, BoxesFound, MapsCounted, Objects
from vitesse.results import Detections, SemanticMap, regions, run_lengths
from vitesse.runtime.imaging import read_image
from vitesse.runtime.overlay import draw_detections, draw_map
from vitesse.runtime.postprocess import Segmentation, as_detections
from vitesse.train.report import Shown

SURE, OVERLAP = 0.3, 0.5
"""The score from which on an object counts as found, and how far it must overlap with one that is there."""
WIDTH = 640
GAP = 8
"""Pixels."""


def worst_boxes(found: BoxesFound, source: BoxSource) -> tuple[Shown, ...]:
    """The pictures with the most objects missed or wrongly found, with the boxes that were found."""
    judged = {
        picture: _matched(objects, source.boxes(picture)) for picture, objects in found.by_picture.items()
    }
    order = sorted(judged, key=lambda picture: judged[picture][0] - sum(judged[picture][1:]))
    drawn = (_drawn_boxes(found, source, picture, judged[picture]) for picture in order[:WORST])
    return tuple(one for one in drawn if one is not None)


def worst_maps(found: MapsCounted, source: MapSource) -> tuple[Shown, ...]:
    """The pictures with the fewest pixels right: what was found, beside it what is there."""
    drawn = (_drawn_maps(source, *one) for one in found.worst)
    return tuple(one for one in drawn if one is not None)


def _drawn_boxes(
    found: BoxesFound, source: BoxSource, picture: int, counts: tuple[int, int, int]
) -> Shown | None:
    image = _read(source, picture)
    if image is None:
        return None
    size, (boxes_N4, scores_N, labels_N, masks) = (image.height, image.width), found.by_picture[picture]

    def segmentation(at: int) -> Segmentation | None:
        return None if masks is None else run_lengths(decode_masks([masks[at]], size)[0] > 0)

    objects = as_detections(boxes_N4, scores_N, labels_N, source.class_names, SURE, segmentation)
    record = Detections(source=source.name(picture), model="", size=size, predictions=objects)
    right, missed, wrong = counts
    text = f"{right} of {right + missed} found, {wrong} wrong: {source.name(picture)}"
    return Shown(jpeg=_jpeg(draw_detections(image, record)), text=text)


def _drawn_maps(source: MapSource, right: float, picture: int, classes_HW: NDArray[np.uint8]) -> Shown | None:
    image = _read(source, picture)
    if image is None:
        return None
    labels_HW = source.label_map(picture)
    names = (*source.class_names, "unlabelled")
    truth_HW = np.where(labels_HW == IGNORE, len(source.class_names), labels_HW)
    maps = [
        SemanticMap(source="", model="", classes_HW=map_HW, predictions=regions(map_HW, names))
        for map_HW in (classes_HW, truth_HW)
    ]
    panels = [draw_map(image, one) for one in maps]
    canvas = Image.new("RGB", (sum(p.width for p in panels) + GAP, max(p.height for p in panels)))
    canvas.paste(panels[0], (0, 0))
    canvas.paste(panels[1], (panels[0].width + GAP, 0))
    text = f"{right:.1%} of the pixels right; found left, labelled right: {source.name(picture)}"
    return Shown(jpeg=_jpeg(canvas), text=text)


def _matched(found: Objects, there: Boxes) -> tuple[int, int, int]:
    """Objects found, missed and wrongly found; the surest take theirs first."""
    boxes_N4, scores_N, labels_N, _ = found
    sure = np.flatnonzero(scores_N >= SURE)
    sure = sure[np.argsort(-scores_N[sure], kind="stable")]
    asked = np.flatnonzero(~there.crowd_N)
    free, right = set(asked.tolist()), 0
    overlaps_NM = _overlaps(boxes_N4[sure], there.boxes_N4)
    for row, label in zip(overlaps_NM, labels_N[sure].tolist(), strict=True):
        fitting = [m for m in free if there.labels_N[m] == label and row[m] >= OVERLAP]
        if fitting:
            free.remove(max(fitting, key=row.__getitem__))
            right += 1
    return right, len(asked) - right, len(sure) - right


def _overlaps(boxes_N4: NDArray[np.float64], boxes_M4: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union (N, M)."""
    first_NM2 = np.maximum(boxes_N4[:, None, :2], boxes_M4[:, :2])
    last_NM2 = np.minimum(boxes_N4[:, None, 2:], boxes_M4[:, 2:])
    both_NM = np.clip(last_NM2 - first_NM2, 0, None).prod(axis=2)
    areas_N, areas_M = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes_N4, boxes_M4))
    return np.asarray(both_NM / np.maximum(areas_N[:, None] + areas_M - both_NM, 1e-9))


def _read(source: BoxSource | MapSource, picture: int) -> Image.Image | None:
    try:
        return read_image(source.read(picture))
    except (ImageError, OSError):
        return None


def _jpeg(image: Image.Image) -> bytes:
    image.thumbnail((WIDTH, WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
