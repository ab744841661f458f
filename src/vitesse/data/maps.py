"""Picture files with label maps: what every layout of them becomes.

Shape suffixes: K classes, H rows, W columns.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from vitesse.data.contract import digest
from vitesse.data.dense import IGNORE, MAX_MAP_CLASSES, Fault, Note
from vitesse.data.files import PictureFiles
from vitesse.errors import DataError, ImageError
from vitesse.runtime.decode import DEFAULT_LIMITS, check_pixels, read_bytes
from vitesse.runtime.header import read_header

DEPTH_BYTE, COLOUR_BYTE = 24, 25
"""Where a PNG says how many bits a value has, and whether it is a grey (0)."""


class ColouredMapError(ImageError):
    """A label map has colours where class numbers are expected."""


@dataclass(frozen=True, kw_only=True)
class Legend:
    """What the values of a label map mean.

    Attributes:
        class_names: name of each class index.
        values: the value of each class; colours as red * 65536 + green * 256 + blue.
        ignored: values of pixels that are no class, without being wrong.
        coloured: whether values are colours.
        colours: what classes are drawn in, (K, 3) uint8, if known.
    """

    class_names: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = (IGNORE,)
    coloured: bool = False
    colours: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if len(self.class_names) > MAX_MAP_CLASSES:
            raise DataError(
                f"label maps: expected at most {MAX_MAP_CLASSES} classes, got {len(self.class_names)}"
            )
        if len(set(self.values)) != len(self.class_names):
            raise DataError(
                f"label maps: expected a value of its own for each of {len(self.class_names)} classes"
            )

    @classmethod
    def named(cls, name: str) -> Legend:
        """That of a well-known data set: `ade20k`, `camvid` or `cityscapes`."""
        text = resources.files("vitesse.data").joinpath(f"label_maps/{name}.json").read_text(encoding="utf-8")
        known = json.loads(text)
        names, values, colours = zip(*known["classes"], strict=True)
        return cls(
            class_names=names,
            values=values,
            ignored=(*known["ignored"], IGNORE),
            colours=np.array(colours, np.uint8),
        )

    def classes_of(self, values_HW: NDArray[Any]) -> tuple[NDArray[np.uint8], bool]:
        """Class indices (H, W), `IGNORE` where there is none, and whether some values are neither."""
        if values_HW.dtype != np.uint8:
            classes_HW, known_HW = self._looked_up(values_HW)
            return classes_HW, not known_HW.all()
        table, known = self._byte_table
        return table[values_HW], not known[np.bincount(values_HW.ravel(), minlength=256) > 0].all()

    @functools.cached_property
    def _byte_table(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        return self._looked_up(np.arange(256))

    def _looked_up(self, values: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The class of each value, and whether it stands for something."""
        meant = dict.fromkeys(self.ignored, IGNORE) | {v: index for index, v in enumerate(self.values)}
        keys = np.array(sorted(meant))
        classes = np.array([meant[key] for key in keys.tolist()], np.uint8)
        places = np.searchsorted(keys, values).clip(max=len(keys) - 1)
        known = keys[places] == values
        return np.where(known, classes[places], np.uint8(IGNORE)), known


class MapFiles(PictureFiles):
    """Picture files, a PNG of class numbers or colours for each, and what its values mean."""

    def __init__(
        self, files: Sequence[Path], maps: Sequence[Path], legend: Legend, notes: Sequence[Note] = ()
    ) -> None:
        super().__init__(Path(), [*map(str, files)], legend.class_names)
        self.maps, self.legend, self.colours, self.notes = list(maps), legend, legend.colours, tuple(notes)
        sizes = np.array([file.stat().st_size for file in self.maps])  # changes with what is drawn
        self.fingerprint = digest([file.name for file in files], sizes, self.class_names)

    def label_map(self, index: int) -> NDArray[np.uint8]:
        """See `MapSource`."""
        return self._labels(index)[0]

    def faults(self, index: int) -> tuple[Fault, ...]:
        """See `Annotated`."""
        return (Fault.NO_VALUE,) if self._labels(index)[1] else ()

    def _labels(self, index: int) -> tuple[NDArray[np.uint8], bool]:
        encoded = read_bytes(self.maps[index], DEFAULT_LIMITS)
        return self.legend.classes_of(read_values(encoded, self.legend.coloured))


def pair_up(
    where: object, pictures: Sequence[Path], map_of: Callable[[Path], Path], legend: Legend
) -> MapFiles:
    """Pictures with their label maps; those without one are left out and noted.

    Raises:
        DataError: there is no picture, or none has a label map.
    """
    maps = {picture: map_of(picture) for picture in pictures}
    there = {picture: file for picture, file in maps.items() if file.is_file()}
    if not maps:
        raise DataError(f"{where}: expected pictures (.jpg, .png, .webp), found none")
    if not there:
        first = next(iter(maps.values()))
        raise DataError(f"{where}: none of its {len(maps)} pictures has its label map, such as {first}")
    notes = [Note(Fault.NO_MAP, str(picture)) for picture in maps if picture not in there]
    return MapFiles(list(there), list(there.values()), legend, notes)


def read_values(encoded: bytes, coloured: bool) -> NDArray[Any]:
    """The values (H, W) of a label map: its numbers as stored, of 8 or 16 bits, or its colours as `packed`.

    Raises:
        ColouredMapError: numbers are expected and it has colours.
        ImageError: it is no PNG, too large, or corrupt.
    """
    header = read_header(encoded)
    if header.kind != "PNG":
        raise ImageError(f"expected a label map as PNG, got {header.kind}, which may change class numbers")
    check_pixels(header.height, header.width, DEFAULT_LIMITS)
    try:
        image = PngImageFile(io.BytesIO(header.data))
        values = np.asarray(image.convert("RGB") if coloured else image)
    except Exception as error:  # hostile bytes make a decoder raise anything
        raise ImageError(f"the label map is corrupt or cut short ({error}); get the file again") from error
    return packed(values) if coloured else _numbers(values, encoded)


def _numbers(values: NDArray[Any], encoded: bytes) -> NDArray[Any]:
    if values.ndim == 3:
        if (values[..., :1] != values[..., 1:3]).any():
            raise ColouredMapError("expected a label map of class numbers, got colours")
        return values[..., 0]
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    depth = encoded[DEPTH_BYTE]
    if encoded[COLOUR_BYTE] == 0 and depth < 8:  # Pillow spreads greys of few bits over 0 to 255
        values = values // np.uint8(255 // (2**depth - 1))
    return values


def packed(colours: NDArray[Any]) -> NDArray[np.int64]:
    """Colours (…, 3) as one number each."""
    wide: NDArray[np.int64] = colours.astype(np.int64) @ np.array([65536, 256, 1])
    return wide
