"""What this machine can do at best: multiply-accumulates a second in large matrix products, by precision."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitesse.errors import require
from vitesse.runtime.engines import onnxruntime_session, openvino_core, openvino_settings

SIDE, LAYERS, ROUNDS = 1024, 4, 7


def gemm_rates(threads: int) -> Mapping[str, float]:
    """Multiply-accumulates a second of the faster engine at a chain of square products, float and int8.

    Raises:
        MissingExtraError: the extra `export` is not installed.
    """
    return {precision: gemm_rate(precision, threads) for precision in ("fp32", "int8")}


def gemm_rate(precision: str, threads: int) -> float:
    """As `gemm_rates`, of `fp32` or `int8` alone.

    Raises:
        MissingExtraError: the extra `export` is not installed.
    """
    model = _chain()
    x = np.random.default_rng(0).standard_normal((1, SIDE, SIDE), np.float32)
    if precision == "int8":
        from vitesse.export.quantize import quantize

        model = quantize(model, x)
    return max(_rates(model.SerializeToString(), x, threads))


def _chain() -> Any:
    onnx = require("onnx", "export")
    generator = np.random.default_rng(1)
    weights = [generator.standard_normal((SIDE, SIDE), np.float32) / SIDE**0.5 for _ in range(LAYERS)]
    nodes, tensors, name = [], [], "images"
    for layer, weight in enumerate(weights):
        tensors.append(onnx.numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(
            onnx.helper.make_node("MatMul", [name, f"w{layer}"], [f"y{layer}"], name=f"matmul{layer}")
        )
        name = f"y{layer}"
    nodes.append(onnx.helper.make_node("Identity", [name], ["logits"], name="last"))
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, SIDE, SIDE])
        for name in ("images", "logits")
    ]
    graph = onnx.helper.make_graph(nodes, "chain", values[:1], values[1:], tensors)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def _rates(model: bytes, x: Any, threads: int) -> list[float]:
    session = onnxruntime_session(model, threads)
    runners = [lambda: session.run(None, {"images": x})]
    try:
        core = openvino_core()
        compiled = core.compile_model(core.read_model(model), "CPU", openvino_settings(threads))
        request = compiled.create_infer_request()
        runners.append(lambda: request.infer({0: x}))
    except Exception:  # the other engine's rate is a limit as well
        pass
    return [SIDE**3 * LAYERS / _median_s(run) for run in runners]


def _median_s(run: Any) -> float:
    run()
    samples = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run()
        samples.append(time.perf_counter() - started)
    return statistics.median(samples)
