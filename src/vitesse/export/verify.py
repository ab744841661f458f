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
    (expected_BK,) = TorchEngine(model).run(images_BCHW)
    limit = tolerance(expected_BK, artefact.manifest.precision)
    found = {}
    for name in available_engines():
        (logits_BK, *_) = create_engine(artefact, name).run(images_BCHW)
        found[name] = float(np.abs(logits_BK - expected_BK).max())
        if not found[name] <= limit:
            raise ExportError(
                f"{artefact.path.name}: on {name} the logits differ from torch by {found[name]:.2e}, "
                f"expected at most {limit:.2e}; nothing was written"
            )
    return found
