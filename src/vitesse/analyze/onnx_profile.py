"""Profiles of ONNX Runtime and OpenVINO in Vitesse's format; the graph says whose module an operator is."""

from __future__ import annotations

import functools
import json
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.analyze.kinds import kind_of, kind_of_fused, word_of
from vitesse.analyze.profile import Operator, Shaped
from vitesse.errors import EngineError
from vitesse.export.onnx import MODULE_KEY, as_proto
from vitesse.runtime.artefact import Artefact
from vitesse.runtime.engines import onnxruntime_session, openvino_core, openvino_settings

_TIMED = "_kernel_time"
_RUN = "model_run"
_ITEMSIZES = {"float": 4, "float16": 2, "double": 8, "int8": 1, "uint8": 1, "bool": 1}
"""Of what is computed with, as ONNX Runtime names it; other types hold shapes and indices."""
Counter = tuple[str, str, float]
"""Name, type and mean seconds of one of OpenVINO's operators."""
SPAN = 4
_ONNX_ITEMSIZES = {1: 4, 2: 1, 3: 1, 10: 2, 11: 8}
"""The same by `onnx.TensorProto.DataType`."""
_CUT = re.compile(r"[_/][^_/]*$")


@dataclass(frozen=True)
class _Node:
    """A node of the graph: its type, module and weights."""

    type: str
    module: str | None
    weights: tuple[Shaped, ...]


class Origins:
    """Where an engine's operators come from: the graph's nodes, by their names and those of their outputs.

    A node of a file without modules has that of its weights.
    """

    def __init__(self, proto: Any) -> None:
        weights = {tensor.name: tensor for tensor in proto.graph.initializer}
        for node in proto.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in weights:
                weights[node.output[0]] = weights[node.input[0]]
        self._nodes: dict[str, _Node] = {}
        for node in proto.graph.node:
            said = {entry.key: entry.value for entry in node.metadata_props}
            own = [weights[name] for name in node.input if name in weights]
            named = (tensor.name.rpartition(".")[0] for tensor in own if "." in tensor.name)
            shaped = (Shaped(tuple(tensor.dims), _ONNX_ITEMSIZES.get(tensor.data_type, 0)) for tensor in own)
            found = _Node(
                node.op_type,
                said.get(MODULE_KEY, next(named, None)),
                tuple(tensor for tensor in shaped if tensor.itemsize),
            )
            self._nodes |= dict.fromkeys((node.name, *node.output), found)

    def module(self, name: str) -> str | None:
        """Of the node that an operator was made from."""
        node = self._find(name)
        return None if node is None else node.module

    def types(self, names: Iterable[str]) -> list[str]:
        """The types of those of the nodes that are in the graph."""
        return [self._nodes[name].type for name in names if name in self._nodes]

    def with_weights(self, name: str, inputs: tuple[Shaped, ...]) -> tuple[Shaped, ...]:
        """An operator's inputs, and the weights of its node that are not among them."""
        node = self._find(name)
        return inputs + tuple(weight for weight in (node.weights if node else ()) if weight not in inputs)

    def _find(self, name: str) -> _Node | None:
        """An engine lengthens the name of the node that it makes an operator from: `relu_3_nchwc`."""
        while name and name not in self._nodes:
            name = _CUT.sub("", name) if _CUT.search(name) else ""
        return self._nodes.get(name)


class OnnxRuntimeProfiler:
    """Runs an artefact with ONNX Runtime's profiler on.

    Raises:
        EngineError: it refuses the model.
    """

    def __init__(self, artefact: Artefact, threads: int) -> None:
        self._origins = Origins(as_proto(artefact))
        self._folder = tempfile.TemporaryDirectory(prefix="vitesse-")
        self._session = onnxruntime_session(artefact.data, threads, str(Path(self._folder.name) / "profile"))
        self._input = self._session.get_inputs()[0].name

    def run(self, batch_BCHW: NDArray[np.float32]) -> float:
        """One more run; gives its seconds."""
        begin = time.perf_counter()
        self._session.run(None, {self._input: batch_BCHW})
        return time.perf_counter() - begin

    def runs(self) -> list[list[Operator]]:
        """The operators of every run; the profiler ends with it.

        Raises:
            EngineError: the profile cannot be read.
        """
        with self._folder:
            return read_onnxruntime(Path(self._session.end_profiling()).read_bytes(), self._origins)


def read_onnxruntime(profile: bytes, origins: Origins) -> list[list[Operator]]:
    """The operators of every run in a profile that ONNX Runtime wrote.

    Raises:
        EngineError: it is cut short, or no profile of ONNX Runtime.
    """
    runs: list[list[Operator]] = []
    current: list[Operator] = []
    try:
        for event in json.loads(profile):
            if event["cat"] == "Session" and event["name"] == _RUN:
                runs.append(current)
                current = []
            elif event["cat"] == "Node" and event["name"].endswith(_TIMED):
                current.append(_of_event(event, origins))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise EngineError(
            f"onnxruntime: its profile is cut short or of another version ({reason}); is the disk full?"
        ) from error
    return runs


def _of_event(event: Mapping[str, Any], origins: Origins) -> Operator:
    name, said = event["name"].removesuffix(_TIMED), event["args"]
    return Operator(
        name=name,
        type=said["op_name"],
        kind=kind_of(said["op_name"]),
        module=origins.module(name),
        seconds=event["dur"] / 1e6,
        # Weights that it packed for itself are no inputs any more.
        inputs=origins.with_weights(name, _of_types(said["input_type_shape"])),
        outputs=_of_types(said["output_type_shape"]),
    )


def _of_types(tensors: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Shaped, ...]:
    return tuple(
        Shaped(tuple(sides), _ITEMSIZES[name])
        for tensor in tensors
        for name, sides in tensor.items()
        if name in _ITEMSIZES
    )


class OpenVinoProfiler:
    """Runs an artefact with OpenVINO's performance counters on.

    A counter is the mean over all runs since the model was compiled, in whole microseconds. So every run is
    of a model compiled anew: once to get warm, then `SPAN` times, whose mean the two states of the counters
    give. Each compilation names anew what it puts in.

    Raises:
        EngineError: it refuses the model.
    """

    def __init__(self, artefact: Artefact, threads: int) -> None:
        self._origins = Origins(as_proto(artefact))
        core, settings = openvino_core(), openvino_settings(threads) | {"PERF_COUNT": True}
        self._compile = functools.partial(core.compile_model, core.read_model(artefact.data), "CPU", settings)
        self._counters: list[tuple[list[Counter], list[Counter]]] = []
        self._nodes: Mapping[str, Mapping[str, Any]] = {}

    def run(self, batch_BCHW: NDArray[np.float32]) -> float:
        """`SPAN` more runs; gives the mean of their seconds."""
        compiled = self._compile()
        request = compiled.create_infer_request()
        request.infer({0: batch_BCHW}, share_inputs=True)
        cold = _counters(request)
        begin = time.perf_counter()
        for _ in range(SPAN):
            request.infer({0: batch_BCHW}, share_inputs=True)
        seconds = (time.perf_counter() - begin) / SPAN
        self._counters.append((cold, _counters(request)))
        if not self._nodes:
            graph = compiled.get_runtime_model().get_ops()
            self._nodes = {node.get_friendly_name(): _describe(node) for node in graph}
        return seconds

    def runs(self) -> list[list[Operator]]:
        """The operators of every `run`."""
        return read_openvino(self._counters, self._nodes, self._origins)


def _counters(request: Any) -> list[Counter]:
    return [
        (info.node_name, info.node_type, info.real_time.total_seconds()) for info in request.profiling_info
    ]


def _describe(node: Any) -> dict[str, Any]:
    """A node of OpenVINO's executed graph: what it was made from, and its tensors."""
    said = node.get_rt_info()
    return {
        "made_from": str(said["originalLayersNames"].astype(str)).split(","),
        "inputs": _of_ports(port.get_source_output() for port in node.inputs()),
        "outputs": _of_ports(node.outputs()),
    }


def _of_ports(ports: Iterable[Any]) -> tuple[Shaped, ...]:
    return tuple(
        Shaped(tuple(port.get_partial_shape().to_shape()), port.get_element_type().size)
        for port in ports
        if port.get_element_type().to_string() not in ("i32", "i64")
    )


def read_openvino(
    counters: Sequence[tuple[Sequence[Counter], Sequence[Counter]]],
    nodes: Mapping[str, Mapping[str, Any]],
    origins: Origins,
) -> list[list[Operator]]:
    """The operators of every run from OpenVINO's counters, without those that never took any time.

    Args:
        counters: of each run, after the first pass of a model and after `SPAN` more.
        nodes: of the first run's graph, by name: what they were `made_from`, `inputs`, `outputs`.
        origins: of the file.

    Raises:
        EngineError: the counters do not belong together, or name what is not in the graph.
    """
    columns = [list(zip(*run, strict=False)) for run in counters]  # an operator's cold and warm counter
    kinds = [[kind for (_, kind, _), _ in column] for column in columns]
    names = [name for (name, _, _), _ in columns[0]] if columns else []
    if any(len(cold) != len(warm) for cold, warm in counters) or any(other != kinds[0] for other in kinds):
        raise EngineError("openvino: its profile is cut short or of several graphs; run it again")
    executed = [index for index in range(len(names)) if any(column[index][1][2] for column in columns)]
    if any(names[index] not in nodes for index in executed):
        raise EngineError("openvino: its profile names what is not in its graph; run it again")
    return [
        [_of_counter(names[index], *column[index], nodes[names[index]], origins) for index in executed]
        for column in columns
    ]


def _of_counter(
    name: str, cold: Counter, warm: Counter, node: Mapping[str, Any], origins: Origins
) -> Operator:
    kind, mean, first = warm[1], warm[2], cold[2]
    fused = word_of(kind) == "subgraph" and kind_of_fused(origins.types(node["made_from"]))
    modules = (origins.module(made_from) for made_from in (*node["made_from"], name))
    return Operator(
        name=name,
        type=kind,
        kind=fused or kind_of(kind),
        module=next((module for module in modules if module is not None), None),
        seconds=max(0.0, mean + (mean - first) / SPAN),
        inputs=node["inputs"],
        outputs=node["outputs"],
    )
