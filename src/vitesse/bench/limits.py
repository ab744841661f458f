"""What this machine can do at best: multiply-accumulates a second in large matrix products, by precision."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitesse.errors import require
from vitesse.runtime.engines import onnxruntime_session, openvino_core, openvino_settings

SIDE, LAYERS, ROUNDS = 1024, 4, 7
SHORT_SIDE, SHORT_ROUNDS = 512, 50


def gemm_rates(threads: int) -> Mapping[str, float]:
    """Multiply-accumulates a second of the faster engine at a chain of square products, float and int8.

    Raises:
        MissingExtraError: the extra `export` is not installed.
    """
    timed = {name: _samples(name, SIDE, LAYERS, ROUNDS, threads) for name in ("fp32", "int8")}
    return {
        name: max(SIDE**3 * LAYERS / statistics.median(samples) for samples in engines)
        for name, engines in timed.items()
    }


def best_gemm_rate(precision: str, threads: int) -> float:
    """The best of many short runs, which a busy machine does not slow: for `fp32` or `int8`.

    Raises:
        MissingExtraError: the extra `export` is not installed.
    """
    timed = _samples(precision, SHORT_SIDE, 1, SHORT_ROUNDS, threads)
    return max(SHORT_SIDE**3 / min(samples) for samples in timed)


def _samples(precision: str, side: int, layers: int, rounds: int, threads: int) -> list[list[float]]:
    """Seconds of every run of a chain, by engine."""
    model = _chain(side, layers)
    x = np.random.default_rng(0).standard_normal((1, side, side), np.float32)
    if precision == "int8":
        from vitesse.export.quantize import quantize

        model = quantize(model, x)
    return [_timed(run, rounds) for run in _runners(model.SerializeToString(), x, threads)]


def _chain(side: int, layers: int) -> Any:
    onnx = require("onnx", "export")
    generator = np.random.default_rng(1)
    weights = [generator.standard_normal((side, side), np.float32) / side**0.5 for _ in range(layers)]
    nodes, tensors, name = [], [], "images"
    for layer, weight in enumerate(weights):
        tensors.append(onnx.numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(
            onnx.helper.make_node("MatMul", [name, f"w{layer}"], [f"y{layer}"], name=f"matmul{layer}")
        )
        name = f"y{layer}"
    nodes.append(onnx.helper.make_node("Identity", [name], ["logits"], name="last"))
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, side, side])
        for name in ("images", "logits")
    ]
    graph = onnx.helper.make_graph(nodes, "chain", values[:1], values[1:], tensors)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def _runners(model: bytes, x: Any, threads: int) -> list[Callable[[], Any]]:
    session = onnxruntime_session(model, threads)
    runners: list[Callable[[], Any]] = [lambda: session.run(None, {"images": x})]
    try:
        core = openvino_core()
        compiled = core.compile_model(core.read_model(model), "CPU", openvino_settings(threads))
        request = compiled.create_infer_request()
        runners.append(lambda: request.infer({0: x}))
    except Exception:  # the other engine's rate is a limit as well
        pass
    return runners


def _timed(run: Callable[[], Any], rounds: int) -> list[float]:
    run()
    samples = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        samples.append(time.perf_counter() - started)
    return samples
