"""Augmentation of pictures together with their boxes, masks or label maps, in worker processes.

Shape suffixes: N objects, 4 corners (left, top, right, bottom), H rows, W columns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from vitesse.data.dense import IGNORE, Boxes
from vitesse.data.masks import decode_masks
from vitesse.data.transforms import FILL
from vitesse.errors import ImageError
from vitesse.runtime.decode import DEFAULT_LIMITS, Decoded, decode

T = TypeVar("T", bound=Tensor)
Size = tuple[int, int]

CROP_SIDES = (0.3, 1.0)
"""Shares of a picture's sides that a random crop by overlap keeps (SSD, arXiv 1512.02325)."""
LEAST_PICTURE = 8
"""Pixels; of a smaller picture such a crop may be empty."""
LARGEST_ZOOM_OUT = 4.0
LEAST_SIDE = 1.0
"""Pixels that a box must keep in each direction."""
MASKS_AT_ONCE = 32


@dataclass(frozen=True)
class BoxTarget:
    """The objects of an augmented picture, in its pixels.

    Attributes:
        boxes_N4: float32.
        labels_N: int64.
        crowd_N: bool, see `Boxes`.
        masks_NHW: uint8, 0 or 1; None where masks are not known.
    """

    boxes_N4: Tensor
    labels_N: Tensor
    crowd_N: Tensor
    masks_NHW: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> BoxTarget:
        """The same on a device."""
        return self._each(lambda column: column.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> BoxTarget:
        """The same in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> BoxTarget:
        masks_NHW = None if self.masks_NHW is None else change(self.masks_NHW)
        return BoxTarget(change(self.boxes_N4), change(self.labels_N), change(self.crowd_N), masks_NHW)


@dataclass(frozen=True)
class Placement:
    """Which part of a picture is seen, how large, and where on the canvas.

    Attributes:
        window: top, left, height, width in the picture's pixels.
        resized: (height, width) of the window on the canvas.
        offset: its (top, left) there.
        canvas: (height, width) in pixels.
        flips: whether left and right of the window are exchanged, and whether top and bottom are.
    """

    window: tuple[int, int, int, int]
    resized: Size
    offset: Size
    canvas: Size
    flips: tuple[bool, bool]

    def seen(self, x: T) -> T:
        """A picture, masks or boxes cut, resized and maybe flipped."""
        mode = (
            InterpolationMode.BILINEAR if isinstance(x, tv_tensors.Image) else InterpolationMode.NEAREST_EXACT
        )
        cut: T = F.resize(F.crop(x, *self.window), list(self.resized), interpolation=mode, antialias=True)
        mirrored, upturned = self.flips
        cut = F.horizontal_flip(cut) if mirrored else cut
        return F.vertical_flip(cut) if upturned else cut

    def laid(self, x: T, fill: tuple[int, ...] | int = 0) -> T:
        """What was seen laid on the canvas, with `fill` around it."""
        top, left = self.offset
        right, bottom = self.canvas[1] - left - self.resized[1], self.canvas[0] - top - self.resized[0]
        padded: T = F.pad(x, [left, top, right, bottom], fill=fill)
        return padded


class AugmentBoxes:
    """Encoded picture and its objects to uint8 (3, H, W) and a `BoxTarget`.

    The picture keeps its proportions. `jitter` shows it between `scale[0]` and `scale[1]` of the size at
    which it fits: of a larger one a random part, a smaller one padded right and below. `overlap` shows, as
    often as not, either a part that overlaps an object by a random share (SSD), or the whole picture up to 4
    times smaller anywhere on the canvas. `none` shows the whole, padded right and below, as a model meets it
    later.

    Args:
        size: (height, width) in pixels.
        crop: which of these.
        scale: of `jitter` (large scale jitter, arXiv 2012.07177).
        hflip, vflip: probability of exchanging left and right, top and bottom.
        color_jitter: range of brightness, contrast and saturation, 0 is off.
        min_visible: least share of a box that must be seen for its object to stay.
        max_objects: where more stay, so many are drawn, others each time.
        masks: whether to give masks where they are known; without, large pictures are decoded faster.
    """

    def __init__(
        self,
        size: Size,
        *,
        crop: Literal["jitter", "overlap", "none"] = "jitter",
        scale: tuple[float, float] = (0.1, 2.0),
        hflip: float = 0.5,
        vflip: float = 0.0,
        color_jitter: float = 0.0,
        min_visible: float = 0.1,
        max_objects: int = 1000,
        masks: bool = True,
    ) -> None:
        self.size, self.crop, self.scale = size, crop, scale
        self.flips, self.min_visible, self.max_objects = (hflip, vflip), min_visible, max_objects
        self.jitter, self.masks = _color_jitter(color_jitter), masks
        self._overlapping = v2.RandomIoUCrop(*CROP_SIDES)

    def __call__(self, encoded: bytes, boxes: Boxes) -> tuple[Tensor, BoxTarget]:
        """
        Raises:
            ImageError: the picture cannot be read, or its size is not the one that its boxes are for.
        """
        if not self.masks:
            boxes = dataclasses.replace(boxes, masks=None)
        decoded = decode(encoded, DEFAULT_LIMITS, self._enough if boxes.masks is None else _all_of_it)
        check_size(decoded, boxes.size)
        image, size = decoded.image, (decoded.image.height, decoded.image.width)
        boxes_N4 = _boxes(boxes.boxes_N4 * np.divide(size, boxes.size)[[1, 0, 1, 0]], size)
        placement = self._placement(size, boxes_N4)
        x_CHW = placement.laid(self.jitter(placement.seen(_picture(image))), FILL)
        return x_CHW.as_subclass(Tensor), self._target(boxes, boxes_N4, placement)

    def _enough(self, height: int, width: int) -> Size:
        """The size of the whole picture of which every crop still has the pixels that it shows."""
        largest = {"jitter": self.scale[1], "overlap": 1 / CROP_SIDES[0], "none": 1.0}[self.crop]
        fit = largest * _fit((height, width), self.size)
        return math.ceil(fit * height), math.ceil(fit * width)

    def _placement(self, size: Size, boxes_N4: tv_tensors.BoundingBoxes) -> Placement:
        fit, flips = _fit(size, self.size), _drawn(self.flips)
        if self.crop == "none":
            return _scaled(size, self.size, fit, flips)
        if self.crop == "jitter":
            return _scaled(size, self.size, fit * _uniform(*self.scale), flips)
        if torch.rand(()) < 0.5 or not len(boxes_N4) or min(size) < LEAST_PICTURE:
            zoomed_out = _scaled(size, self.size, fit * _uniform(1 / LARGEST_ZOOM_OUT, 1), flips)
            return _anywhere(zoomed_out)
        found = self._overlapping.make_params([_nothing(size), boxes_N4])
        window = tuple(found.get(side, whole) for side, whole in zip(WINDOW, (0, 0, *size), strict=True))
        fit = _fit(window[2:], self.size)
        return Placement(window, _resized(window[2:], fit, self.size), (0, 0), self.size, flips)

    def _target(self, boxes: Boxes, boxes_N4: tv_tensors.BoundingBoxes, placement: Placement) -> BoxTarget:
        seen_N4 = _clamped(boxes_N4, placement.window)
        visible_N = _areas(seen_N4) / _areas(boxes_N4)
        moved_N4 = placement.laid(placement.seen(tv_tensors.wrap(seen_N4, like=boxes_N4)))
        moved_N4 = _clamped(moved_N4, (0, 0, *placement.canvas))  # by rounding they may lie outside
        sides_N2 = moved_N4[:, 2:] - moved_N4[:, :2]
        kept = ((visible_N >= self.min_visible) & (sides_N2 >= LEAST_SIDE).all(dim=1)).nonzero()[:, 0]
        if len(kept) > self.max_objects:
            kept = kept[torch.randperm(len(kept))[: self.max_objects]]
        masks_NHW = None
        if boxes.masks is not None:
            masks_NHW = _masks(boxes, kept, placement)
            filled = masks_NHW.flatten(1).any(dim=1).bool()
            kept, masks_NHW = kept[filled], masks_NHW[filled]
        return BoxTarget(
            boxes_N4=moved_N4[kept],
            labels_N=torch.from_numpy(boxes.labels_N)[kept],
            crowd_N=torch.from_numpy(boxes.crowd_N)[kept],
            masks_NHW=masks_NHW,
        )


class AugmentMaps:
    """Encoded picture and its label map to uint8 (3, H, W) and labels (H, W) uint8.

    A random part of the picture is shown at a random scale; where it is smaller than `size` it lies anywhere
    within, with `IGNORE` around it.

    Args:
        size: (height, width) in pixels.
        scale: smallest and largest, of the picture's own size or of that with `short_side`.
        short_side: in pixels; None for the picture's own size.
        hflip, vflip: probability of exchanging left and right, top and bottom.
        color_jitter: range of brightness, contrast and saturation, 0 is off.
    """

    def __init__(
        self,
        size: Size,
        *,
        scale: tuple[float, float] = (0.5, 2.0),
        short_side: int | None = None,
        hflip: float = 0.5,
        vflip: float = 0.0,
        color_jitter: float = 0.0,
    ) -> None:
        self.size, self.scale, self.short_side, self.flips = size, scale, short_side, (hflip, vflip)
        self.jitter = _color_jitter(color_jitter)

    def __call__(self, encoded: bytes, labels_HW: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """
        Raises:
            ImageError: the picture cannot be read, or its label map is of another size.
        """
        decoded = decode(encoded, DEFAULT_LIMITS, _all_of_it)
        check_size(decoded, labels_HW.shape)
        size = decoded.full_size
        scale = _uniform(*self.scale) * (self.short_side / min(size) if self.short_side else 1)
        placement = _anywhere(_scaled(size, self.size, scale, _drawn(self.flips)))
        x_CHW = placement.laid(self.jitter(placement.seen(_picture(decoded.image))), FILL)
        labels = tv_tensors.Mask(torch.from_numpy(labels_HW)[None])
        map_HW = placement.laid(placement.seen(labels), IGNORE)[0]
        return x_CHW.as_subclass(Tensor), map_HW.as_subclass(Tensor)


WINDOW = ("top", "left", "height", "width")


def check_size(decoded: Decoded, size: tuple[int, ...]) -> None:
    """Refuse annotations for a picture of another size.

    Raises:
        ImageError: they are.
    """
    if decoded.full_size != size:
        expected, found = (f"{width}x{height}" for height, width in (size, decoded.full_size))
        raise ImageError(f"expected {expected} pixels as its annotations are for, the picture has {found}")


def _scaled(size: Size, canvas: Size, scale: float, flips: tuple[bool, bool]) -> Placement:
    """A random part of a picture at a scale, as much of it as the canvas holds, at the left and top."""
    resized = _resized(size, scale, canvas)
    height, width = (
        max(1, min(whole, round(seen / scale))) for whole, seen in zip(size, resized, strict=True)
    )
    top, left = _below(size[0] - height), _below(size[1] - width)
    return Placement((top, left, height, width), resized, (0, 0), canvas, flips)


def _anywhere(placement: Placement) -> Placement:
    """The same at a random place of the canvas."""
    room = (whole - seen for whole, seen in zip(placement.canvas, placement.resized, strict=True))
    top, left = map(_below, room)
    return dataclasses.replace(placement, offset=(top, left))


def _resized(size: Size, scale: float, canvas: Size) -> Size:
    height, width = (max(1, min(most, round(side * scale))) for side, most in zip(size, canvas, strict=True))
    return height, width


def _fit(size: Size, canvas: Size) -> float:
    """The scale at which a picture fits a canvas."""
    return min(canvas[0] / size[0], canvas[1] / size[1])


def _masks(boxes: Boxes, kept: Tensor, placement: Placement) -> Tensor:
    """Masks (N, H, W) of the kept objects, decoded a few at a time: at full size they may be too many."""
    masks = [boxes.masks[at] for at in kept.tolist()] if boxes.masks is not None else []
    parts = [torch.zeros(0, *placement.canvas, dtype=torch.uint8)]
    for first in range(0, len(masks), MASKS_AT_ONCE):
        pixels = decode_masks(masks[first : first + MASKS_AT_ONCE], boxes.size)
        part = placement.laid(placement.seen(tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(pixels)))))
        parts.append(part.as_subclass(Tensor))
    return torch.cat(parts)


def _picture(image: Image.Image) -> tv_tensors.Image:
    return tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def _nothing(size: Size) -> tv_tensors.Image:
    return tv_tensors.Image(torch.empty(3, *size, device="meta"))


def _boxes(boxes_N4: NDArray[np.float32], size: Size) -> tv_tensors.BoundingBoxes:
    corners = torch.from_numpy(boxes_N4.astype(np.float32))
    return tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size, clamping_mode=None)


def _clamped(boxes_N4: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """What of each box lies in a window (top, left, height, width)."""
    top, left, height, width = window
    low, high = torch.tensor([left, top] * 2), torch.tensor([left + width, top + height] * 2)
    return boxes_N4.as_subclass(Tensor).clamp(low, high)


def _areas(boxes_N4: Tensor) -> Tensor:
    corners_N4 = boxes_N4.as_subclass(Tensor)
    return (corners_N4[:, 2:] - corners_N4[:, :2]).prod(dim=1)


def _color_jitter(strength: float) -> Any:
    return v2.ColorJitter(strength, strength, strength) if strength else v2.Identity()


def _all_of_it(height: int, width: int) -> None:
    return None


def _drawn(flips: tuple[float, float]) -> tuple[bool, bool]:
    mirrored, upturned = (share > 0 and bool(torch.rand(()) < share) for share in flips)
    return mirrored, upturned


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _below(most: int) -> int:
    """A whole number from 0 to `most`."""
    return int(torch.randint(most + 1, ()))
