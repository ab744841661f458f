"""Proof that an artefact computes what its torch model computes.

Shape suffixes: B images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

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


def tolerance(logits_BK: NDArray[np.float32], precision: str) -> float:
    """Largest |difference| that these logits may have."""
    return TOLERANCE[precision] * max(1.0, float(np.abs(logits_BK).max()))


def parity(artefact: Artefact, model: nn.Module, images_BCHW: NDArray[np.float32]) -> Mapping[str, float]:
    """Largest |difference| of logits between a torch model and the artefact, by installed engine.

    Raises:
        ExportError: an engine's logits differ by more than `tolerance`.
    """
    batches = _batches(images_BCHW, artefact.manifest.mux_width)
    expected = [TorchEngine(model).run(batch_BCHW)[0] for batch_BCHW in batches]
    limit = tolerance(expected[0], artefact.manifest.precision)
    found = {}
    for name in available_engines():
        engine = create_engine(artefact, name)
        logits = [engine.run(batch_BCHW)[0] for batch_BCHW in batches]
        found[name] = max(float(np.abs(a - b).max()) for a, b in zip(logits, expected, strict=True))
        if not found[name] <= limit:
            raise ExportError(
                f"{artefact.path.name}: on {name} the logits differ from torch by {found[name]:.2e}, "
                f"expected at most {limit:.2e}; nothing was written"
            )
    return found


def _batches(images_BCHW: NDArray[np.float32], mux_width: int) -> list[NDArray[np.float32]]:
    """All images at once; of a multiplexed model also some whose last group is short."""
    short = [images_BCHW[: mux_width + 1]] if mux_width > 1 else []
    return [images_BCHW, *short]
