"""Windows that cover a picture, and what lies in them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from vitesse.errors import ConfigError
from vitesse.runtime.sources import Pixels, Size, size_of

MIN_TILE, OVERLAP, MAX_OVERLAP = 16, 0.2, 0.9
MAX_WINDOWS = 100_000
"""Of one picture: more of them is a mistake of thousands of times its own work."""


class Window(NamedTuple):
    """A part of a picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.height, self.width

    @property
    def bottom(self) -> int:
        """The first row below."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The first column beside."""
        return self.left + self.width

    def is_inside(self, other: Window) -> bool:
        """Whether another window shows all of it."""
        return (
            other.top <= self.top
            and other.left <= self.left
            and self.bottom <= other.bottom
            and self.right <= other.right
        )

    def cut_from(self, pixels: Pixels) -> Pixels:
        """What a picture shows there: of an array a view, of a part of an opened picture a copy."""
        if self.size == size_of(pixels):
            return pixels
        if isinstance(pixels, Image.Image):
            return pixels.crop((self.left, self.top, self.right, self.bottom))
        return pixels[self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class Tiling:
    """How pictures that are larger than a tile are cut.

    Attributes:
        tile: (height, width) of a window in pixels of the picture, at least `MIN_TILE`.
        overlap: of two neighbours, the least share of a tile that both show, 0 to `MAX_OVERLAP`.

    Raises:
        ConfigError: a tile or overlap out of its range.
    """

    tile: Size
    overlap: float = OVERLAP

    def __post_init__(self) -> None:
        if min(self.tile) < MIN_TILE:
            raise ConfigError(f"tile: expected at least {MIN_TILE} pixels, got {self.tile[0]}x{self.tile[1]}")
        if not 0 <= self.overlap <= MAX_OVERLAP:
            raise ConfigError(f"overlap: expected 0 to {MAX_OVERLAP}, got {self.overlap}")

    @property
    def shared(self) -> Size:
        """Rows and columns that neighbours share at least: what is no larger is whole in some window."""
        height, width = (math.ceil(self.overlap * side) for side in self.tile)
        return height, width

    def cuts(self, size: Size) -> bool:
        """Whether a picture of this size is larger than a tile."""
        return size[0] > self.tile[0] or size[1] > self.tile[1]

    def windows(self, size: Size) -> tuple[Window, ...]:
        """As few windows as cover a picture of this size, spread evenly, row by row, each from the left.

        All are of one size: the tile's, or a shorter picture's. The last ones end with the picture.

        Raises:
            ConfigError: they would be more than `MAX_WINDOWS`.
        """
        height, width = (min(sides) for sides in zip(self.tile, size, strict=True))
        tops, lefts = (_starts(*sides) for sides in zip(size, self.tile, self.shared, strict=True))
        if (count := len(tops) * len(lefts)) > MAX_WINDOWS:
            raise ConfigError(
                f"expected at most {MAX_WINDOWS} windows, {size[1]}x{size[0]} pixels would have {count}: "
                "take a larger tile or a smaller overlap"
            )
        return tuple(Window(top, left, height, width) for top, left in itertools.product(tops, lefts))


def _starts(side: int, tile: int, shared: int) -> Sequence[int]:
    """Where the windows along a side begin."""
    steps = math.ceil((side - tile) / (tile - shared))
    return [step * (side - tile) // steps for step in range(steps + 1)] if steps > 0 else [0]
