"""Pictures larger than a tile, looked at window by window; what came of the windows, as one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import ConfigError, EngineError, one_line
from vitesse.runtime.decode import ImageLimits
from vitesse.runtime.merging import ObjectMerge
from vitesse.runtime.postprocess import Outcome
from vitesse.runtime.sliding import MapMerge
from vitesse.runtime.sources import Pixels, Size, Source, pixels_if, size_of, tensor_and_size, tensor_of
from vitesse.runtime.windows import Tiling, Window
from vitesse.spec import Manifest, PreprocessSpec

T_co = TypeVar("T_co", covariant=True)

TILED_TASKS = ("detect", "segment")

TensorAndSize = tuple[NDArray[np.float32], Size]
Read = Callable[[Sequence[NDArray[Any]], Size], Mapping[str, Any]]
"""The model's outputs for one picture, and its (height, width), to what is to be known of it."""


@dataclass(frozen=True, kw_only=True)
class Look(Generic[T_co]):
    """One look of the model at something.

    Attributes:
        key: whose look it is.
        load: gives the tensor (C, H, W), and the (height, width) of what it shows; or raises.
        read: makes something of the model's outputs.
    """

    key: T_co
    load: Callable[[], TensorAndSize]
    read: Read


class Merge(Protocol):
    """Makes one outcome of those of a picture's windows."""

    def add(self, window: Window, outcome: Mapping[str, Any]) -> None:
        """What came of the next window.

        Raises:
            EngineError: it cannot be.
        """

    def result(self) -> Mapping[str, Any]:
        """What came of the picture."""


@dataclass
class _Picture:
    """A picture that was cut: `waiting` are the looks at it of which nothing has come yet."""

    name: str
    waiting: int
    merge: Merge
    error: str | None = None

    def add(self, window: Window, outcome: Outcome) -> None:
        """What came of the next look; after an error no other matters."""
        self.waiting -= 1
        if self.error is not None:
            return
        if isinstance(outcome, str):
            self.error = f"pixels {window.left},{window.top} to {window.right},{window.bottom}: {outcome}"
            return
        try:
            self.merge.add(window, outcome)
        except Exception as error:
            self.error = one_line(error)

    def outcome(self) -> Outcome:
        """What came of the picture."""
        if self.error is None:
            try:
                return self.merge.result()
            except Exception as error:
                self.error = one_line(error)
        return self.error


Part = tuple[_Picture, Window] | str
"""Whose look it is: a window of a picture that was cut, or by its name a picture that was not."""


class Tiler:
    """Shows a model large pictures by windows, one picture after the other; smaller ones as they are.

    A large picture is held decoded until its last window was asked for; only then the next is decoded. A
    detector is shown all of it, too, scaled down.

    Raises:
        ConfigError: the model is a classifier.
    """

    def __init__(self, tiling: Tiling, manifest: Manifest, limits: ImageLimits, read: Read) -> None:
        """
        Args:
            read: see `Look`; of a picture in one piece.
        """
        if manifest.task not in TILED_TASKS:
            raise ConfigError(
                f"tile: expected a detector or segmenter, {manifest.model.name} classifies whole pictures; "
                "leave --tile out"
            )
        self._tiling, self._manifest, self._limits, self._read = tiling, manifest, limits, read

    def outcomes(
        self,
        sources: Iterator[tuple[str, Source]],
        run: Callable[[Iterator[Look[Part]]], Generator[tuple[Part, Outcome]]],
    ) -> Generator[tuple[str, Outcome]]:
        """The names of sources, in their order, with what came of them.

        Args:
            run: looks to their keys and what came of them, in their order.
        """
        looks = (look for name, source in sources for look in self._looks(name, source))
        with contextlib.closing(run(looks)) as seen:
            for part, outcome in seen:
                if isinstance(part, str):
                    yield part, outcome
                    continue
                picture, window = part
                picture.add(window, outcome)
                if not picture.waiting:
                    yield picture.name, picture.outcome()

    def _looks(self, name: str, source: Source) -> Iterator[Look[Part]]:
        load = partial(tensor_and_size, source, self._manifest.preprocess, self._limits)
        try:
            pixels = pixels_if(self._tiling.cuts, source, self._limits)
            if pixels is not None:
                return self._at_windows(name, pixels)
        except Exception as error:
            load = partial(_refuse, error)
        return iter([Look(key=name, load=load, read=self._read)])

    def _at_windows(self, name: str, pixels: Pixels) -> Iterator[Look[Part]]:
        size, spec = size_of(pixels), self._manifest.preprocess
        windows = self._tiling.windows(size)
        merge: Merge
        read: Read = self._read
        if self._manifest.task == "detect":
            merge, windows = ObjectMerge(size, self._tiling), (Window(0, 0, *size), *windows)
        else:
            merge, read = MapMerge(size, self._tiling, spec, self._manifest.class_names), _read_logits
        picture = _Picture(name, len(windows), merge)
        return (
            Look(
                key=(picture, window),
                load=partial(_load, window.cut_from(pixels), spec, self._limits),
                read=read,
            )
            for window in windows
        )


def _load(pixels: Pixels, spec: PreprocessSpec, limits: ImageLimits) -> TensorAndSize:
    return tensor_of(pixels, spec, limits), size_of(pixels)


def _refuse(error: Exception) -> TensorAndSize:
    raise error


def _read_logits(outputs: Sequence[NDArray[Any]], size: Size) -> Mapping[str, Any]:
    if len(outputs) < 2:
        raise EngineError("expected classes and the logits that they were made from; export the model again")
    return {"logits_Khw": outputs[1]}
