"""A folded model as one ONNX file that carries its manifest."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitesse.errors import ExportError, require
from vitesse.files import write_atomically
from vitesse.models import gives_masks
from vitesse.models.backbone import VisionModel
from vitesse.runtime.artefact import METADATA_KEY
from vitesse.weights.keymaps import TIMM_PREFIX

if TYPE_CHECKING:
    from vitesse.runtime.artefact import Artefact
    from vitesse.spec import Manifest, ModelSpec, Task

OPSET = 18
MODULE_KEY = "vitesse.module"
"""Of a node's metadata: the dotted name of the module that it is a part of, empty for the model itself."""
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
INPUT = "images"
OUTPUTS: Mapping[Task, tuple[str, ...]] = {
    "classify": ("logits",),
    "detect": ("boxes", "scores", "labels"),
    "segment": ("classes", "logits"),
}
"""Names by task; `Manifest.task` says what they hold."""
MASKS = "masks"
"""The fourth output of detectors that give masks."""
DYNAMIC_MIN_SIDE = 64
"""Pixels: where the deepest map of every family has a row."""
_TRACED_MIN_SIDE = 2 * DYNAMIC_MIN_SIDE
"""Pixels: where it has more than one. A side of one position is taken for one that is always so."""


def to_onnx(model: nn.Module, spec: ModelSpec, *, dynamic_size: bool = False) -> Any:
    """The model as an `onnx.ModelProto`: `images` (batch, C, H, W) float32 to its task's outputs.

    The batch is any, or 1 of a model that is not for `any_batch`.

    Args:
        model: of Vitesse, or any classifier: images to logits.
        spec: of the model; the file takes its image size.
        dynamic_size: the file takes any size that the model does.

    Raises:
        ExportError: torch cannot trace the model, or its weights belong to one size.
        MissingExtraError: the extra `export` is not installed.
    """
    size, sides = spec.image_size, {}
    if dynamic_size:
        _check_any_size(model, spec)
        height, width = size
        size = max(height, _TRACED_MIN_SIDE), max(width, _TRACED_MIN_SIDE)
        sides = {
            axis: torch.export.Dim(name, min=DYNAMIC_MIN_SIDE) for axis, name in ((2, "height"), (3, "width"))
        }
    task: Task = "classify"
    any_batch = True
    if isinstance(model, VisionModel):
        task, any_batch, model = model.task, model.any_batch, model.deployed()
    images_BCHW = torch.zeros(_traced_batch(model) if any_batch else 1, spec.in_chans, *size)
    free = {**({0: torch.export.Dim("batch")} if any_batch else {}), **sides}
    outputs = (*OUTPUTS[task], *([MASKS] if gives_masks(spec.name) else []))
    return traced(model, {INPUT: images_BCHW}, {INPUT: free}, outputs, spec.name)


def traced(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    free: Mapping[str, Mapping[int, Any]],
    outputs: Sequence[str],
    name: str,
) -> Any:
    """What a model does with tensors of these shapes, as an `onnx.ModelProto`.

    Args:
        inputs: by the names that the graph gives them, in the order that the model takes them.
        free: by the same names, the dimensions of other sizes that the graph takes too, as
            `torch.export.Dim`.
        outputs: the graph's names of them.
        name: of the model, for messages.

    Raises:
        ExportError: torch cannot trace the model.
        MissingExtraError: the extra `export` is not installed.
    """
    require("onnxscript", "export")
    slim = require("onnxslim", "export").slim
    try:
        with quiet():
            program = torch.onnx.export(
                model.eval(),
                tuple(inputs.values()),
                dynamo=True,
                dynamic_shapes=tuple(dict(free.get(key, {})) for key in inputs),
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                verbose=False,
            )
            assert program is not None
            modules = _modules_of(program.model_proto)
            slimmed = slim(program.model_proto)
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]  # the exporter's own line tells of its steps
        raise ExportError(f"{name}: torch cannot export it to ONNX: {reason}") from error
    for node in slimmed.graph.node:
        if (module := modules.get(node.output[0])) is not None:
            node.metadata_props.add(key=MODULE_KEY, value=module)
    return slimmed


def _modules_of(proto: Any) -> dict[str, str]:
    """Of each tensor's producer, from the exporter's list of scopes: the model, its modules, the operator."""
    return {
        output: ["", *ast.literal_eval(entry.value)][-2]
        for node in proto.graph.node
        for entry in node.metadata_props
        if entry.key == _SCOPES_KEY
        for output in node.output
    }


def _traced_batch(model: nn.Module) -> int:
    """Images of no special number: neither one, nor one group of a multiplexed model, nor whole groups."""
    width = getattr(model, "mux_width", 1)
    return 2 if width == 1 else 2 * width + 1


def _check_any_size(model: nn.Module, spec: ModelSpec) -> None:
    sized = [name for name, module in model.named_modules() if hasattr(module, "resampled_on_load")]
    if sized or spec.name.startswith(TIMM_PREFIX):
        what = f"{sized[0] or 'its stem'} holds a table of positions" if sized else "its layers are not known"
        raise ExportError(
            f"{spec.name}: cannot take several sizes: {what}; export one file for each size instead, with a "
            "checkpoint of that image_size"
        )


def as_proto(artefact: Artefact) -> Any:
    """The graph of an artefact as an `onnx.ModelProto`."""
    return require("onnx", "export").ModelProto.FromString(artefact.data)


def write_artefact(proto: Any, manifest: Manifest, path: Path) -> None:
    """Put the manifest into the model's metadata and write the file, whole or not at all.

    Raises:
        OSError: the file cannot be written; an existing one stays.
    """
    del proto.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(manifest.to_dict(), sort_keys=True)
    write_atomically(path, proto.SerializeToString())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporters' progress lines and deprecation warnings are not the user's business."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
