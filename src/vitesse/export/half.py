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
_WHOLE = "_cast_to_fp16"
"""What the converter adds to the name of a float32 tensor whose own name its half precision takes."""


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
    _mend_casts(half.graph)
    return half


def _mend_casts(graph: Any) -> None:
    """One cast for all readers of a tensor, before the first of them, and none between two float32 nodes.

    The converter makes one for each reader, at the end of the graph, and through half precision and back.
    """
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    nodes = [node for node in graph.node if node.op_type != "Cast"]
    made = {name for node in nodes for name in node.output}
    whole = {name: cast.input[0] + _WHOLE for name, cast in casts.items() if cast.input[0] + _WHOLE in made}
    ordered = []

    def place_cast(name: str) -> None:
        if (cast := casts.pop(name, None)) is not None:
            place_cast(cast.input[0])
            ordered.append(cast)

    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = whole.get(name, name)
            place_cast(node.input[index])
        ordered.append(node)
    for end in graph.output:
        place_cast(end.name)
    graph.ClearField("node")
    graph.node.extend(ordered)


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
