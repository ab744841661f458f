"""OpenVINO's own files (`.xml` with `.bin` beside it), for programs that load nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import ExportError, require
from vitesse.runtime.engines import openvino_core

SUFFIX = ".xml"


def write(proto: Any, path: Path, *, precision: str = "fp32") -> None:
    """Write an `onnx.ModelProto` as `path` and its weights beside it; fp16 halves the weights.

    Raises:
        ExportError: OpenVINO refuses the model.
        MissingExtraError: the extra `openvino` is not installed.
    """
    openvino = require("openvino", "openvino")
    try:
        model = openvino_core().read_model(proto.SerializeToString())
        openvino.save_model(model, str(path), compress_to_fp16=precision == "fp16")
    except RuntimeError as error:
        raise ExportError(
            f"{path.name}: OpenVINO refuses the model: {' '.join(str(error).split())[:300]}"
        ) from error


def run(path: Path, images_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (B, K) of written files on this machine's CPU, in float32."""
    compiled = openvino_core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits_BK: NDArray[np.float32] = compiled(images_BCHW)[0]
    return logits_BK
