"""A float ONNX model as int8: calibrated on pictures, one file that both engines run.

Activations are uint8 with a scale and a zero point a tensor, weights int8 with a scale a channel; both stand
in the file as pairs of QuantizeLinear and DequantizeLinear, which the engines turn into their integer
kernels. What is quantised was chosen by measuring (`benchmarks/METHOD.md`): convolutions, linear layers, and
what lies between them. Products of activations with each other and all that only they read stay float:
attention, softmax and the division of linear attention; so do normalisations computed from the picture.

Shape suffixes: B pictures, C channels, H rows, W columns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import ExportError, require
from vitesse.export.onnx import INPUT, quiet

WEIGHTED_OPS = ("Conv", "Gemm", "MatMul")
QUANTIZED_OPS = (*WEIGHTED_OPS, "Add", "Mul", "Relu", "Sigmoid", "HardSwish", "Concat", "Split")
FUSED_ACTIVATIONS = ("HardSwish", "Sigmoid", "Mul")
"""What OpenVINO computes within a convolution, unless the convolution's output is quantised before it."""

NOISE_IMAGES = 8


def quantize(
    proto: Any, images_BCHW: NDArray[np.float32], keep_float: Collection[str] = (), mux_width: int = 1
) -> Any:
    """The int8 form of an `onnx.ModelProto`.

    Args:
        proto: a folded model of `to_onnx`; it stays as it is.
        images_BCHW: preprocessed pictures like those to come; ranges are the extremes over all of them.
        keep_float: names of nodes that stay float.
        mux_width: pictures that the model takes at once.

    Raises:
        ExportError: the model cannot be quantised.
        MissingExtraError: the extra `export` is not installed.
    """
    onnx = require("onnx", "export")
    tools = require("onnxruntime.quantization", "export")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        try:
            with quiet():
                tools.quantize_static(
                    onnx.ModelProto.FromString(proto.SerializeToString()),
                    path,
                    _reader(tools, images_BCHW, mux_width),
                    quant_format=tools.QuantFormat.QDQ,
                    op_types_to_quantize=list(QUANTIZED_OPS),
                    nodes_to_exclude=[*keep_float, *_float_region(proto)],
                    per_channel=True,
                    activation_type=tools.QuantType.QUInt8,
                    weight_type=tools.QuantType.QInt8,
                    extra_options={
                        "ActivationSymmetric": False,
                        "WeightSymmetric": True,
                        "OpTypesToExcludeOutputQuantization": ["MatMul"] if _is_transformer(proto) else [],
                    },
                )
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ExportError(f"int8: the model cannot be quantised: {reason}") from error
        int8_proto = onnx.load(path)
    _join_activations(int8_proto)
    return int8_proto


def _is_transformer(proto: Any) -> bool:
    """Whether layer normalisations stand between the blocks.

    Such a residual stream, and the patch embedding that begins it, has outliers beside which eight bits hold
    nothing else: only the products are quantised.
    """
    return bool(sum(node.op_type == "LayerNormalization" for node in proto.graph.node) > 2)


def _float_region(proto: Any) -> list[str]:
    """Names of the products of two activations, and of what is read by nothing but float operators."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    if _is_transformer(proto):
        found = {node.name for node in proto.graph.node if node.op_type not in ("MatMul", "Gemm")}

    def is_float(node: Any) -> bool:
        return node.name in found or node.op_type not in QUANTIZED_OPS

    for node in reversed(proto.graph.node):  # in the order of computation, so readers come first
        following = [reader for name in node.output for reader in readers.get(name, ())]
        of_activations = node.op_type in WEIGHTED_OPS and not weights & set(node.input)
        for_floats = node.op_type not in WEIGHTED_OPS and following and all(map(is_float, following))
        if of_activations or (for_floats and not is_float(node)):
            found.add(node.name)
    return sorted(found)


def last_layers(proto: Any) -> list[str]:
    """Names of the layers that predict, after which no layer with weights comes, and of what reads outputs.

    The sides of boxes, and the logits that pixels' classes are interpolated from, need more than eight bits.
    """
    weights = {tensor.name for tensor in proto.graph.initializer}
    made = {output.name for output in proto.graph.output}
    found = []
    for node in proto.graph.node:
        if made & set(node.input):
            found.append(node.name)
            made |= set(node.output)
    before: set[str] = set()
    """Tensors that a layer with weights, not found yet, is computed from."""
    for node in reversed(proto.graph.node):
        weighted = node.op_type in WEIGHTED_OPS and bool(weights & set(node.input))
        if node.name in found:
            continue
        if weighted and not before & set(node.output):
            found.append(node.name)
        if weighted or before & set(node.output):
            before |= set(node.input)
    return found


def _join_activations(proto: Any) -> None:
    """Let an activation that engines compute within a convolution read the convolution itself, in place.

    The pair between them would make it an operator of its own, over floats: a third of the time of
    EfficientViT-B in OpenVINO. ONNX Runtime then computes these convolutions in float.
    """
    producers = {name: node for node in proto.graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for dequantize in list(proto.graph.node):
        source = _before_quantising(producers, dequantize.output[0])
        if source is None or source not in producers or producers[source].op_type not in ("Conv", "Gemm"):
            continue
        following = readers.get(dequantize.output[0], [])
        kinds = {node.op_type for node in following}
        if not kinds <= set(FUSED_ACTIVATIONS) or not kinds & {"HardSwish", "Sigmoid"}:
            continue
        quantize = producers[dequantize.input[0]]
        if len(readers[source]) != 1 or len(readers[dequantize.input[0]]) != 1:
            continue
        for node in following:
            node.input[:] = [source if name == dequantize.output[0] else name for name in node.input]
        proto.graph.node.remove(quantize)
        proto.graph.node.remove(dequantize)


def noise(int8_proto: Any, images_BCHW: NDArray[np.float32]) -> Mapping[str, float]:
    """How well eight bits hold each tensor: signal to noise in dB, by the name of the node that reads it.

    A node that reads several quantised tensors has the worst of them.
    """
    onnx, ort = require("onnx", "export"), require("onnxruntime", "core")
    model = onnx.ModelProto.FromString(int8_proto.SerializeToString())
    producers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[str]] = {}
    pairs: dict[str, tuple[str, str]] = {}
    for node in model.graph.node:
        for name in node.input:
            before = _before_quantising(producers, name)
            if before is not None and node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                pairs[name] = (before, name)
                readers.setdefault(name, []).append(node.name)
    wanted = sorted({name for pair in pairs.values() for name in pair} - {INPUT})
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images_BCHW = images_BCHW[:NOISE_IMAGES]
    size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or len(images_BCHW)
    runs = [
        dict(zip(wanted, session.run(wanted, {INPUT: images_BCHW[start : start + size]}), strict=True))
        for start in range(0, len(images_BCHW), size)
    ]
    values = {name: np.concatenate([run[name] for run in runs]) for name in wanted}
    values[INPUT] = images_BCHW
    found: dict[str, float] = {}
    for name, (before, after) in pairs.items():
        ratio = _signal_to_noise(values[before], values[after])
        for reader in readers[name]:
            found[reader] = min(ratio, found.get(reader, np.inf))
    return found


def _before_quantising(producers: Mapping[str, Any], name: str) -> str | None:
    """The float tensor that a dequantised activation was made from; None for weights and float tensors."""
    dequantize = producers.get(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    quantize = producers.get(dequantize.input[0])
    return None if quantize is None else str(quantize.input[0])


def _signal_to_noise(signal: NDArray[np.float32], approximation: NDArray[np.float32]) -> float:
    power, error = np.square(signal).mean(), np.square(signal - approximation).mean()
    return float(10 * np.log10((power + 1e-20) / (error + 1e-20)))


def _reader(tools: Any, images_BCHW: NDArray[np.float32], mux_width: int) -> Any:
    """The pictures one by one, or in groups, as the calibration takes them."""
    starts = range(0, len(images_BCHW), mux_width)

    class Pictures(tools.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[NDArray[np.float32]] = (
                images_BCHW[start : start + mux_width] for start in starts
            )

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch_BCHW = next(self.batches, None)
            return None if batch_BCHW is None else {INPUT: batch_BCHW}

    return Pictures()
