"""Core ML packages (`.mlpackage`) for Apple's devices, converted and checked on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vitesse.errors import ExportError, require
from vitesse.export.onnx import INPUT, OUTPUTS, quiet
from vitesse.export.program import captured
from vitesse.spec import ModelSpec

SUFFIX = ".mlpackage"

(OUTPUT,) = OUTPUTS["classify"]


def write(model: nn.Module, spec: ModelSpec, path: Path, *, precision: str = "fp32") -> Mapping[str, Any]:
    """Write a folded model for pictures one by one, for iOS 16 and macOS 13; gives counts of its operators.

    Nothing but Apple's systems can run it; what was written is read again, its input and output are compared
    with the model's and its operators counted.

    Args:
        precision: `fp32`, or `fp16`, which Apple's neural engine needs.

    Raises:
        ExportError: torch cannot trace the model, Core ML cannot express it, or what was written is not it.
        MissingExtraError: the extra `coreml` is not installed.
    """
    with quiet():
        tools = require("coremltools", "coreml")
        program = captured(model, spec).run_decompositions({})
        shape = (1, spec.in_chans, *spec.image_size)
        try:
            package = tools.convert(
                program,
                inputs=[tools.TensorType(INPUT, shape)],
                outputs=[tools.TensorType(OUTPUT)],
                minimum_deployment_target=tools.target.iOS16,
                compute_precision=getattr(tools.precision, "FLOAT" + precision.removeprefix("fp")),
                skip_model_load=True,
            )
            package.save(str(path))
        except Exception as error:
            raise ExportError(
                f"{spec.name}: Core ML cannot express it: {' '.join(str(error).split())[:300]}"
            ) from error
        return checked(path, spec)


def checked(path: Path, spec: ModelSpec) -> Mapping[str, Any]:
    """Read a package: its one input and one output are the model's; gives `operators`, a count of each kind.

    Raises:
        ExportError: they are not.
    """
    tools = require("coremltools", "coreml")
    found = tools.models.MLModel(str(path), skip_model_load=True).get_spec()
    ends = {
        end.name: tuple(end.type.multiArrayType.shape)
        for end in (*found.description.input, *found.description.output)
    }
    expected = {INPUT: (1, spec.in_chans, *spec.image_size), OUTPUT: (1, spec.num_classes)}
    if ends != expected:
        raise ExportError(f"{path.name}: expected {expected}, what was written has {ends}")
    (function,) = found.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    counts: dict[str, int] = {}
    for operation in block.operations:
        if operation.type != "const":
            counts[operation.type] = counts.get(operation.type, 0) + 1
    return {"operators": counts}
