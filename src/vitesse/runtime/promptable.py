"""Points and boxes in, masks out: a picture is seen once, then asked about as often as one likes.

Shape suffixes: N objects, P points of an object, M masks, C channels, H rows, W columns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import ArtefactError, ConfigError, ImageError
from vitesse.results import Mask, Masks
from vitesse.runtime.artefact import Artefact, decoder_path, is_decoder, read_artefact
from vitesse.runtime.engines import create_engine
from vitesse.runtime.imaging import DEFAULT_LIMITS, ImageLimits, fitted_size
from vitesse.runtime.sources import Size, Source, name_of, tensor_and_size
from vitesse.spec import PROMPT_FRAME, PromptKind

Point = Sequence[float]
"""x and y in pixels of the picture; then 1 for a point of the object, as by default, or 0 for one outside."""

Box = Sequence[float]
"""Left, top, right and bottom in pixels of the picture."""

FRAME = (PROMPT_FRAME, PROMPT_FRAME)
OBJECTS_A_RUN = 8
"""A run of the decoder holds some 30 MiB for each."""


class MaskPredictor:
    """Masks of the objects that points and boxes show.

    Attributes:
        artefact: the encoder; its decoder lies beside it.

    Raises:
        ArtefactError: the artefact is of another task, or its decoder is absent or another model's.
        EngineError, MissingExtraError: the engine cannot be had, or refuses the model.
    """

    def __init__(
        self,
        model: str | Path | Artefact,
        *,
        engine: str = "auto",
        threads: int | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        """
        Args:
            model: NAME.onnx, with NAME.decoder.onnx beside it.
            engine: `auto`, `onnxruntime` or `openvino`; the fastest for the encoder runs the decoder too.
            threads: of the engine; the CPUs that this process may use by default.
            limits: the largest picture to decode.
        """
        self.artefact = model if isinstance(model, Artefact) else read_artefact(model)
        decoder = read_decoder(self.artefact)
        self._encoder = create_engine(self.artefact, engine, threads, keep_compiled=True)
        self._decoder = create_engine(decoder, self._encoder.name, threads, keep_compiled=True)
        self._limits = limits
        self._seen: _Seen | None = None

    def set_image(self, source: Source) -> None:
        """Look at a picture; `predict` is about it until the next.

        Raises:
            ImageError: the picture is refused.
            EngineError: the engine failed.
        """
        self._seen, name = None, name_of(source, 0)
        try:
            x_CHW, size = tensor_and_size(source, self.artefact.manifest.preprocess, self._limits)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error
        (embedding_1CHW,) = self._encoder.run(x_CHW[None])
        self._seen = _Seen(name, size, embedding_1CHW)

    def predict(
        self, *, points: Sequence[Point] = (), boxes: Sequence[Box] = (), multimask: bool = False
    ) -> Masks:
        """One mask for all points together, or one for each box; points beside a box make it clearer.

        Args:
            points: all of one object.
            boxes: one an object; beside points at most one.
            multimask: for prompts that may mean several things, such as a single point: of three masks the
                one that is expected to be best.

        Raises:
            ConfigError: no picture was set; no prompt; a point or box outside the picture or without area.
            EngineError: the engine failed.
        """
        if self._seen is None:
            raise ConfigError("expected a picture first: call set_image(...)")
        seen = self._seen
        prompts_NP3 = as_prompts(points, boxes, seen.size)
        masks = tuple(self._masks(prompts_NP3, seen, multimask))
        model = self.artefact.manifest.model.name
        return Masks(source=seen.name, model=model, size=seen.size, predictions=masks)

    def _masks(self, prompts_NP3: NDArray[np.float32], seen: _Seen, multimask: bool) -> Iterator[Mask]:
        for start in range(0, len(prompts_NP3), OBJECTS_A_RUN):
            some = prompts_NP3[start : start + OBJECTS_A_RUN]
            for logits_MHW, quality_M in zip(*self._decoder.run(some, seen.embedding_1CHW), strict=True):
                best = 1 + int(quality_M[1:].argmax()) if multimask else 0
                score = float(np.clip(quality_M[best], 0, 1))
                yield Mask(mask_HW=in_picture(logits_MHW[best], seen.size) > 0, score=score)


@dataclass(frozen=True)
class _Seen:
    """A picture that was looked at."""

    name: str
    size: Size
    embedding_1CHW: NDArray[np.float32]


def read_decoder(encoder: Artefact) -> Artefact:
    """The decoder beside an encoder.

    Raises:
        ArtefactError: the artefact is no encoder, or the decoder is absent, damaged or another model's.
    """
    manifest, path = encoder.manifest, decoder_path(encoder.path)
    if manifest.task != "promptable":
        raise ArtefactError(
            f"{encoder.path}: expected a model for promptable masks, this one's task is {manifest.task}"
        )
    if is_decoder(manifest):
        raise ArtefactError(
            f"{encoder.path}: expected an encoder, this is a decoder; name the file beside it"
        )
    if not path.is_file():
        raise ArtefactError(f"{encoder.path}: expected its decoder beside it, there is no {path.name}")
    decoder = read_artefact(path)
    if decoder.sha256 != manifest.decoder:
        raise ArtefactError(
            f"{path}: expected the decoder of {encoder.path.name}, this is another; export both again"
        )
    return decoder


def as_prompts(points: Sequence[Point], boxes: Sequence[Box], size: Size) -> NDArray[np.float32]:
    """Prompts in pixels of a picture as the decoder takes them: (N, P, 3) in pixels of the prompt frame.

    Raises:
        ConfigError: see `MaskPredictor.predict`.
    """
    if not len(points) and not len(boxes):
        raise ConfigError("expected a point or a box to say which object is meant, got neither")
    if len(points) and len(boxes) > 1:
        raise ConfigError(f"expected at most one box beside points, got {len(boxes)}; ask for each by itself")
    of_points = [_checked_point(point, size) for point in points]
    corners = [
        [(left, top, PromptKind.TOP_LEFT), (right, bottom, PromptKind.BOTTOM_RIGHT)]
        for left, top, right, bottom in (_checked_box(box, size) for box in boxes)
    ]
    rows = [[*of_points, *pair] for pair in corners or [[(0, 0, PromptKind.NO_POINT)]]]
    scales = [new / old for new, old in zip(fitted_size(size, FRAME), size, strict=True)]
    return (np.asarray(rows, np.float64) * (scales[1], scales[0], 1)).astype(np.float32)


def _checked_point(point: Point, size: Size) -> tuple[float, float, float]:
    x, y, *label = _numbers("point", point, (2, 3), "x,y or x,y,label")
    kind = label[0] if label else PromptKind.FOREGROUND
    if kind not in (PromptKind.BACKGROUND, PromptKind.FOREGROUND):
        raise ConfigError(
            f"point {x:g},{y:g}: expected label 1, of the object, or 0, outside it, got {kind:g}"
        )
    if not (0 <= x < size[1] and 0 <= y < size[0]):
        raise ConfigError(f"point {x:g},{y:g}: outside the picture of {size[1]}x{size[0]} pixels")
    return x, y, kind


def _checked_box(box: Box, size: Size) -> list[float]:
    sides = _numbers("box", box, (4,), "left,top,right,bottom")
    left, top, right, bottom = sides
    called = "box " + ",".join(f"{side:g}" for side in sides)
    if not (left < right and top < bottom):
        raise ConfigError(f"{called}: expected left < right and top < bottom, this has no area")
    if not (left >= 0 and top >= 0 and right <= size[1] and bottom <= size[0]):
        raise ConfigError(f"{called}: reaches out of the picture of {size[1]}x{size[0]} pixels")
    return sides


def _numbers(what: str, values: Sequence[float], counts: tuple[int, ...], form: str) -> list[float]:
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.ndim != 1 or numbers.size not in counts or not np.isfinite(numbers).all():
        raise ConfigError(f"{what}: expected {form} in pixels of the picture, got {values!r}")
    return [float(number) for number in numbers]


def in_picture(logits_HW: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """Logits of a mask in the pixels of a picture of this size.

    Bilinearly to the prompt frame, cut to what the picture fills of it, bilinearly to the picture: for rows
    and columns alike a product of matrices.
    """
    frame = fitted_size(size, FRAME)
    rows, columns = (
        _resampling(to, through, of) for to, through, of in zip(size, frame, logits_HW.shape, strict=True)
    )
    resized_HW: NDArray[np.float32] = rows @ logits_HW @ columns.T
    return resized_HW


@functools.lru_cache(maxsize=4)
def _resampling(to: int, through: int, of: int) -> NDArray[np.float32]:
    """How `to` pixels are made of `of` logits by way of the first `through` pixels of the frame: (to, of)."""
    return _bilinear(to, through) @ _bilinear(PROMPT_FRAME, of)[:through]


def _bilinear(to: int, of: int) -> NDArray[np.float32]:
    """Weights (to, of) of bilinear resizing without antialiasing, at the centres of pixels."""
    centres = np.clip((np.arange(to) + 0.5) * of / to - 0.5, 0, of - 1)
    below = centres.astype(int)
    above = np.minimum(below + 1, of - 1)
    weights = np.zeros((to, of), np.float32)
    np.add.at(weights, (np.arange(to), below), 1 - (centres - below))
    np.add.at(weights, (np.arange(to), above), centres - below)
    return weights
