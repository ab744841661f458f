"""Reads the few fields of an ONNX file that Vitesse checks, from the protobuf wire format; no onnx package.

Field numbers are those of onnx.proto. Bytes come from strangers: every length is checked, nesting is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA = 1, 7, 8, 14
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT = 1, 5, 11
_NODE_ATTRIBUTE = 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = (5, 10), (6, 11)
_TENSOR_EXTERNAL_DATA = 13
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR, _TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 1, 2
_SHAPE_DIM, _DIM_VALUE = 1, 1
_MAX_DEPTH = 8

Value = int | memoryview


class MalformedError(ValueError):
    """The bytes are not the protobuf message they should be."""


@dataclass
class OnnxFacts:
    """What Vitesse wants to know of an ONNX file before a runtime sees it.

    Attributes:
        opset: version of the default operator set, 0 when there is none.
        metadata: the file's own key-value text.
        input_name, input_type, input_shape: of the first graph input; its type as in TensorProto.DataType,
            a free dimension as None.
        external: some weights lie in another file.
    """

    opset: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    input_name: str = ""
    input_type: int = 0
    input_shape: tuple[int | None, ...] = ()
    external: bool = False


def read_onnx(data: bytes) -> OnnxFacts:
    """Walk the top of an ONNX file.

    Raises:
        MalformedError: not an ONNX model, or cut short.
    """
    facts, ir_version, graphs = OnnxFacts(), 0, []
    for number, value in _fields(memoryview(data)):
        if number == _MODEL_IR:
            ir_version = _number(value)
        elif number == _MODEL_GRAPH:
            graphs.append(_message(value))
        elif number == _MODEL_OPSET:
            opset = dict(_fields(_message(value)))
            if _text(opset.get(_OPSET_DOMAIN)) in ("", "ai.onnx"):
                facts.opset = _number(opset.get(_OPSET_VERSION, 0))
        elif number == _MODEL_METADATA:
            entry = dict(_fields(_message(value)))
            facts.metadata[_text(entry.get(_ENTRY_KEY))] = _text(entry.get(_ENTRY_VALUE))
    if ir_version < 1 or len(graphs) != 1:
        raise MalformedError("no single graph")
    _read_first_input(graphs[0], facts)
    facts.external = b"location" in data and _has_external_data(graphs[0])
    return facts


def _read_first_input(graph: memoryview, facts: OnnxFacts) -> None:
    value_info = next((_message(value) for number, value in _fields(graph) if number == _GRAPH_INPUT), None)
    if value_info is None:
        raise MalformedError("no input")
    parts = dict(_fields(value_info))
    kind = dict(_fields(_message(parts.get(_VALUE_TYPE, memoryview(b"")))))
    tensor = dict(_fields(_message(kind.get(_TYPE_TENSOR, memoryview(b"")))))
    facts.input_name = _text(parts.get(_VALUE_NAME))
    facts.input_type = _number(tensor.get(_TENSOR_ELEMENT, 0))
    shape = _message(tensor.get(_TENSOR_SHAPE, memoryview(b"")))
    dims = [dict(_fields(_message(dim))) for number, dim in _fields(shape) if number == _SHAPE_DIM]
    facts.input_shape = tuple(_number(dim[_DIM_VALUE]) if _DIM_VALUE in dim else None for dim in dims)


def _has_external_data(graph: memoryview, depth: int = 0) -> bool:
    """Whether a tensor of this graph, or of a graph inside its nodes, names another file."""
    if depth > _MAX_DEPTH:
        raise MalformedError("graphs nested too deep")
    tensors, inner = [], []
    for number, value in _fields(graph):
        if number == _GRAPH_INITIALIZER:
            tensors.append(_message(value))
        elif number == _GRAPH_NODE:
            for attribute in (_message(v) for n, v in _fields(_message(value)) if n == _NODE_ATTRIBUTE):
                for kind, part in _fields(attribute):
                    if kind in _ATTRIBUTE_TENSORS:
                        tensors.append(_message(part))
                    elif kind in _ATTRIBUTE_GRAPHS:
                        inner.append(_message(part))
    return any(number == _TENSOR_EXTERNAL_DATA for tensor in tensors for number, _ in _fields(tensor)) or any(
        _has_external_data(part, depth + 1) for part in inner
    )


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """(field number, value) pairs; fixed-width values are skipped, for no field read here has them."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
        elif wire == 2:
            length, at = _varint(message, at)
            if length > end - at:
                raise MalformedError("cut short")
            yield number, message[at : at + length]
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise MalformedError(f"wire type {wire}")
    if at > end:
        raise MalformedError("cut short")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise MalformedError("cut short")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedError("a number longer than 64 bits")


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise MalformedError("a message where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value


def _message(value: Value) -> memoryview:
    if not isinstance(value, memoryview):
        raise MalformedError("a number where a message belongs")
    return value


def _text(value: Value | None) -> str:
    try:
        return "" if value is None else bytes(_message(value)).decode()
    except UnicodeDecodeError as error:
        raise MalformedError("text that is not UTF-8") from error
