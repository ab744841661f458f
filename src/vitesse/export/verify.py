"""Proof that an artefact computes what its torch model computes.

Shape suffixes: B images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vitesse.errors import ExportError
from vitesse.models.engine import TorchEngine
from vitesse.runtime.engines import available_engines, create_engine
from vitesse.runtime.postprocess import INSIDE

if TYPE_CHECKING:
    from vitesse.runtime.artefact import Artefact
    from vitesse.spec import Task

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.1}
"""Largest |difference| of logits by precision, for logits up to 1; larger logits may differ in proportion.

That of int8 is for two programs of one int8 file; how far int8 lies from float is for its accuracy to say.
"""

EQUAL_PIXELS = {"fp32": 0.999, "fp16": 0.95, "int8": 0.9}
"""Smallest share of pixels with torch's class, or on its side of a mask's edge, by precision: where two are
nearly level, rounding decides."""

SUREST_BOXES = 50
EQUAL_BOXES = {"fp32": 0.98, "fp16": 0.8, "int8": 0.0}
"""Smallest share of an image's surest boxes that torch has too, by precision."""

SHARES = {
    "equal_pixels": (EQUAL_PIXELS, "the pixels have torch's class"),
    "equal_boxes": (EQUAL_BOXES, "torch's boxes are found"),
    "equal_masks": (EQUAL_PIXELS, "the pixels of their masks are as torch's"),
}
"""What is held against which of these limits."""

MASKS = 3
"""Place among a detector's outputs."""

Outputs = tuple[NDArray[Any], ...]
Batches = Sequence[Outputs]
"""The outputs for each batch."""


def tolerance(logits: NDArray[np.float32], precision: str) -> float:
    """Largest |difference| that these logits may have."""
    return TOLERANCE[precision] * max(1.0, float(np.abs(logits).max()))


def parity(artefact: Artefact, model: nn.Module, images_BCHW: NDArray[np.float32]) -> dict[str, float]:
    """How far the artefact is from a torch model, by installed engine; see `Manifest.parity`.

    Raises:
        ExportError: an engine's logits, or a detector's scores, differ by more than `tolerance`; or so do the
            classes of too many pixels, or too many of the sure boxes or pixels of their masks.
    """
    batches = _batches(images_BCHW, artefact)
    reference = TorchEngine(model)
    expected = [reference.run(batch_BCHW) for batch_BCHW in batches]
    task, found = artefact.manifest.task, {}
    shares: dict[str, float] = {}
    for name in available_engines():
        engine = create_engine(artefact, name)
        outputs = [engine.run(batch_BCHW) for batch_BCHW in batches]
        number, what = (1, "scores") if task == "detect" else (-1, "logits")
        found[name] = _difference(outputs, expected, artefact, name, number, what)
        for key, share in _equal(outputs, expected, task).items():
            _check_share(key, share, artefact, name)
            shares[key] = min(share, shares.get(key, 1.0))
    return found | shares


def _equal(outputs: Batches, expected: Batches, task: Task) -> dict[str, float]:
    """What of a task's outputs must be as torch has it in almost all places: the shares, by their keys."""
    if task == "segment":
        return {"equal_pixels": _equal_pixels(outputs, expected)}
    if task != "detect":
        return {}
    boxes = {"equal_boxes": _equal_boxes(outputs, expected)}
    with_masks = len(expected[0]) > MASKS
    return boxes | ({"equal_masks": _equal_masks(outputs, expected)} if with_masks else {})


def _check_share(key: str, share: float, artefact: Artefact, engine: str) -> None:
    limits, what = SHARES[key]
    if share < (least := limits[artefact.manifest.precision]):
        raise ExportError(
            f"{artefact.path.name}: on {engine} {share:.3%} of {what}, expected at least {least:.1%}; "
            "nothing was written"
        )


def _difference(
    outputs: Batches, expected: Batches, artefact: Artefact, engine: str, number: int, what: str
) -> float:
    """The largest |difference| of an output."""
    limit = tolerance(expected[0][number], artefact.manifest.precision)
    largest = max(float(np.abs(a[number] - b[number]).max()) for a, b in zip(outputs, expected, strict=True))
    if not largest <= limit:
        raise ExportError(
            f"{artefact.path.name}: on {engine} the {what} differ from torch by {largest:.2e}, expected at "
            f"most {limit:.2e}; nothing was written"
        )
    return largest


def _equal_pixels(outputs: Batches, expected: Batches) -> float:
    """The share of pixels whose class, a model's first output, is torch's."""
    return min(float((a[0] == b[0]).mean()) for a, b in zip(outputs, expected, strict=True))


def _equal_boxes(outputs: Batches, expected: Batches) -> float:
    """The share of torch's surest boxes that the engine has too, to a pixel, with their class.

    Where two scores are level, rounding decides which box comes first; so the order does not count.
    """
    return min(float(found_M.mean()) for *_, found_M, _ in _matched(outputs, expected))


def _equal_masks(outputs: Batches, expected: Batches) -> float:
    """The share of pixels of masks inside where torch's are, of the surest boxes that both have."""
    shares = []
    for found, right, found_M, place_M in _matched(outputs, expected):
        both_M = found_M & (right[1][: len(found_M)] > 0)
        inside, right_inside = (
            masks >= INSIDE for masks in (found[MASKS][place_M[both_M]], right[MASKS][: len(found_M)][both_M])
        )
        shares.append(float((inside == right_inside).mean()) if both_M.any() else 1.0)
    return min(shares)


def _matched(
    outputs: Batches, expected: Batches
) -> Iterator[tuple[Outputs, Outputs, NDArray[np.bool_], NDArray[np.int64]]]:
    """Of each image the engine's outputs and torch's, whether the engine has each of torch's surest boxes,
    and where among its own."""
    for of_engine, of_torch in zip(outputs, expected, strict=True):
        for found, right in zip(zip(*of_engine, strict=True), zip(*of_torch, strict=True), strict=True):
            top_M4, top_M = right[0][:SUREST_BOXES], right[2][:SUREST_BOXES]
            away_MN = np.abs(top_M4[:, None] - found[0][None]).max(axis=2)
            away_MN[top_M[:, None] != found[2]] = np.inf
            yield found, right, away_MN.min(axis=1) < 1, away_MN.argmin(axis=1)


def _batches(images_BCHW: NDArray[np.float32], artefact: Artefact) -> list[NDArray[np.float32]]:
    """All images at once, or as many as the artefact takes; of a multiplexed model also some whose last group
    is short."""
    size, mux_width = artefact.input_shape[0] or len(images_BCHW), artefact.manifest.mux_width
    short = [images_BCHW[: mux_width + 1]] if mux_width > 1 else []
    return [*(images_BCHW[start : start + size] for start in range(0, len(images_BCHW), size)), *short]
