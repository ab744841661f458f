"""Proof that an artefact computes what its torch model computes.

Shape suffixes: B images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vitesse.errors import ExportError
from vitesse.models.engine import TorchEngine
from vitesse.runtime.engines import available_engines, create_engine

if TYPE_CHECKING:
    from vitesse.runtime.artefact import Artefact

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.1}
"""Largest |difference| of logits by precision, for logits up to 1; larger logits may differ in proportion.

That of int8 is for two programs of one int8 file; how far int8 lies from float is for its accuracy to say.
"""

EQUAL_PIXELS = {"fp32": 0.999, "fp16": 0.95, "int8": 0.9}
"""Smallest share of pixels with torch's class, by precision: where two classes are nearly level, rounding
decides."""

SUREST_BOXES = 50
EQUAL_BOXES = {"fp32": 0.98, "fp16": 0.8, "int8": 0.0}
"""Smallest share of an image's surest boxes that torch has too, by precision."""

Batches = Sequence[tuple[NDArray[Any], ...]]
"""The outputs for each batch."""


def tolerance(logits: NDArray[np.float32], precision: str) -> float:
    """Largest |difference| that these logits may have."""
    return TOLERANCE[precision] * max(1.0, float(np.abs(logits).max()))


def parity(artefact: Artefact, model: nn.Module, images_BCHW: NDArray[np.float32]) -> dict[str, float]:
    """How far the artefact is from a torch model, by installed engine; see `Manifest.parity`.

    Raises:
        ExportError: an engine's logits, or a detector's scores, differ by more than `tolerance`; or so do the
            classes of too many pixels, or too many of the sure boxes.
    """
    batches = _batches(images_BCHW, artefact.manifest.mux_width)
    reference = TorchEngine(model)
    expected = [reference.run(batch_BCHW) for batch_BCHW in batches]
    task, found, equal = artefact.manifest.task, {}, []
    for name in available_engines():
        engine = create_engine(artefact, name)
        outputs = [engine.run(batch_BCHW) for batch_BCHW in batches]
        number, what = (1, "scores") if task == "detect" else (-1, "logits")
        found[name] = _difference(outputs, expected, artefact, name, number, what)
        if task == "segment":
            equal.append(_equal_pixels(outputs, expected, artefact, name))
        if task == "detect":
            equal.append(_equal_boxes(outputs, expected, artefact, name))
    key = "equal_boxes" if task == "detect" else "equal_pixels"
    return found | ({key: min(equal)} if equal else {})


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


def _equal_pixels(outputs: Batches, expected: Batches, artefact: Artefact, engine: str) -> float:
    """The share of pixels whose class, a model's first output, is torch's."""
    share = min(float((a[0] == b[0]).mean()) for a, b in zip(outputs, expected, strict=True))
    if share < (least := EQUAL_PIXELS[artefact.manifest.precision]):
        raise ExportError(
            f"{artefact.path.name}: on {engine} {share:.3%} of the pixels have torch's class, expected at "
            f"least {least:.1%}; nothing was written"
        )
    return share


def _equal_boxes(outputs: Batches, expected: Batches, artefact: Artefact, engine: str) -> float:
    """The share of torch's surest boxes that the engine has too, to a pixel, with their class.

    Where two scores are level, rounding decides which box comes first; so the order does not count.
    """
    shares = []
    for found, right in zip(outputs, expected, strict=True):
        for boxes_N4, labels_N, right_M4, right_M in zip(found[0], found[2], right[0], right[2], strict=True):
            top_M4, top_M = right_M4[:SUREST_BOXES], right_M[:SUREST_BOXES]
            near_MN = np.abs(top_M4[:, None] - boxes_N4[None]).max(axis=2) < 1
            shares.append(float((near_MN & (top_M[:, None] == labels_N)).any(axis=1).mean()))
    share = min(shares)
    if share < (least := EQUAL_BOXES[artefact.manifest.precision]):
        raise ExportError(
            f"{artefact.path.name}: {engine} has {share:.1%} of torch's boxes, not {least:.0%}; "
            "nothing was written"
        )
    return share


def _batches(images_BCHW: NDArray[np.float32], mux_width: int) -> list[NDArray[np.float32]]:
    """All images at once; of a multiplexed model also some whose last group is short."""
    short = [images_BCHW[: mux_width + 1]] if mux_width > 1 else []
    return [images_BCHW, *short]
