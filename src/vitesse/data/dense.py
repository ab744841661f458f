"""What sources of boxes and of label maps are: pictures with what is known of their parts.

Shape suffixes: N objects, 4 corners (left, top, right, bottom), H rows, W columns, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vitesse.data.contract import Pictures
from vitesse.data.masks import Rle
from vitesse.errors import DataError
from vitesse.runtime.header import read_header

IGNORE = 255
"""The label of pixels of no class, which are neither learnt nor scored."""
MAX_MAP_CLASSES = IGNORE
COUNTED_DETECTIONS = 100
"""Detections of a class in a picture that COCO's metrics look at, the surest first."""


class Fault(Enum):
    """What may be wrong with annotations, and what becomes of them."""

    OUTSIDE = "boxes that reach outside their picture, clipped to it"
    NO_AREA = "boxes without area, left out"
    NO_CLASS = "objects of a class that does not exist, left out"
    MALFORMED = "annotations that cannot be read, left out"
    NO_PICTURE = "annotations of pictures that are not there, left out"
    NO_MASK = "objects without a mask, their box stands for it"
    MASK_SIZE = "masks of another size than their picture, the object's box stands for them"
    NO_MAP = "pictures without a label map, left out"
    NO_VALUE = "label maps with values of no class, ignored as if unlabelled"
    OTHER_SIZE = "pictures of another size than their annotations, refused"
    UNREADABLE = "pictures or label maps that cannot be read, refused"
    BACKGROUND = "pictures without anything annotated, kept as background"
    CROWDED = f"pictures with over {COUNTED_DETECTIONS} objects of a class, of which AP cannot count more"


class Note(NamedTuple):
    """A fault that was met when data was opened, and where."""

    fault: Fault
    where: str


class Annotated(Pictures, Protocol):
    """Pictures whose annotations may have faults: `notes` are those met when they were opened."""

    notes: tuple[Note, ...]

    def faults(self, index: int) -> tuple[Fault, ...]:
        """What was put right in the annotations of one picture, once for each object."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Boxes:
    """The objects of one picture, in pixels of the upright picture at its original size.

    Attributes:
        boxes_N4: corners inside the picture, left < right and top < bottom, float32.
        labels_N: class indices, int64.
        crowd_N: whether the object is a group, or too hard to ask for: neither asked for nor wrong to find.
        area_N: in square pixels, float32; of the mask where masks are known.
        size: (height, width) of the picture.
        masks: of all objects or none, as run lengths; `masks.decode_masks` gives pixels.

    Raises:
        DataError: shapes or types disagree, or a box is empty, not finite or outside the picture.
    """

    boxes_N4: NDArray[np.float32]
    labels_N: NDArray[np.int64]
    crowd_N: NDArray[np.bool_]
    area_N: NDArray[np.float32]
    size: tuple[int, int]
    masks: tuple[Rle, ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.labels_N)
        expected = {
            "boxes_N4": ((count, 4), np.float32),
            "labels_N": ((count,), np.int64),
            "crowd_N": ((count,), np.bool_),
            "area_N": ((count,), np.float32),
        }
        for name, (shape, kind) in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != kind:
                raise DataError(
                    f"{name}: expected {shape} of {np.dtype(kind)}, got {array.shape} of {array.dtype}"
                )
        if self.masks is not None and len(self.masks) != count:
            raise DataError(f"masks: expected {count}, one an object, got {len(self.masks)}")
        wrong = np.flatnonzero(~_inside(self.boxes_N4, self.size))
        if wrong.size:
            height, width = self.size
            raise DataError(
                f"box {wrong[0]}: expected corners inside {width}x{height} pixels, left before right and top "
                f"before bottom, got {self.boxes_N4[wrong[0]].tolist()}"
            )

    def __len__(self) -> int:
        return len(self.labels_N)


class BoxSource(Annotated, Protocol):
    """Pictures with boxes.

    Attributes:
        category_ids: numbers of the classes in the original annotations.
        has_masks: whether `boxes` gives masks, of all pictures.
    """

    category_ids: tuple[int, ...]
    has_masks: bool

    def boxes(self, index: int) -> Boxes:
        """The objects of a picture, none for background.

        Raises:
            ImageError, OSError: the annotations do not say the picture's size, and it cannot be read.
        """


class MapSource(Annotated, Protocol):
    """Pictures with a label for every pixel: `colours` (K, 3) uint8 are what classes are drawn in, if known.

    Label maps hold class indices, or `IGNORE`.
    """

    colours: NDArray[np.uint8] | None

    def label_map(self, index: int) -> NDArray[np.uint8]:
        """Class indices (H, W), `IGNORE` where there is none.

        Raises:
            ImageError, OSError: the file cannot be read, or holds no class numbers.
        """


def picture_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) in pixels of an encoded picture held upright.

    Raises:
        ImageError: it is no picture.
    """
    return read_header(encoded).size


def check_class_names(where: object, names: object) -> tuple[str, ...]:
    """Class names as they must be: texts, at least one.

    Raises:
        DataError: they are not.
    """
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: expected a list of class names, got {names!s:.60}")
    return tuple(names)


def _inside(boxes_N4: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    left, top, right, bottom = boxes_N4.T
    height, width = size
    inside_N: NDArray[np.bool_] = (left >= 0) & (left < right) & (right <= width)
    inside_N &= (top >= 0) & (top < bottom) & (bottom <= height)
    return inside_N
