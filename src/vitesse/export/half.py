"""A float ONNX model in half precision, for GPUs and for files half as large.

Pictures come in and logits go out as float32. What half precision ruins stays float32: softmax,
normalisations computed from the picture, and linear attention, whose sums grow with the map.
"""

from __future__ import annotations

from typing import Any

from vitesse.errors import ExportError, require
from vitesse.export.onnx import quiet

FLOAT_OPS = (
    "Softmax",
    "LayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "ReduceSum",
    "Div",
)
_WEIGHTED_OPS = ("Conv", "Gemm")


def to_half(proto: Any) -> Any:
    """The fp16 form of an `onnx.ModelProto`, which stays as it is.

    Raises:
        ExportError: the model cannot be converted.
        MissingExtraError: the extra `export` is not installed.
    """
    onnx = require("onnx", "export")
    tools = require("onnxruntime.transformers.float16", "export")
    try:
        with quiet():
            half = tools.convert_float_to_float16(
                onnx.ModelProto.FromString(proto.SerializeToString()),
                keep_io_types=True,
                op_block_list=[*tools.DEFAULT_OP_BLOCK_LIST, *FLOAT_OPS],
                node_block_list=_linear_attention(proto),
            )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ExportError(f"fp16: the model cannot be converted: {reason}") from error
    _join_casts(half)
    return half


def _join_casts(proto: Any) -> None:
    """A tensor that several nodes read in float32 is cast once; the converter casts it for each of them."""
    made: set[str] = set()
    for node in list(proto.graph.node):
        if node.op_type == "Cast" and node.output[0] in made:
            proto.graph.node.remove(node)
        made.update(node.output)


def _linear_attention(proto: Any) -> list[str]:
    """Names of the nodes between the convolutions and a division of one activation by another."""
    producers = {name: node for node in proto.graph.node for name in node.output}
    pending = [
        node
        for node in proto.graph.node
        if node.op_type == "Div" and all(name in producers for name in node.input)
    ]
    found: set[str] = set()
    while pending:
        node = pending.pop()
        if node.name in found or node.op_type in _WEIGHTED_OPS:
            continue
        found.add(node.name)
        pending += [producers[name] for name in node.input if name in producers]
    return sorted(found)
