"""Profiles of three engines in one format: made up by hand, and of a product with a transposition."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from vitesse.analyze.kinds import KINDS, ROLES
from vitesse.analyze.onnx_profile import (
    OnnxRuntimeProfiler,
    OpenVinoProfiler,
    Origins,
    read_onnxruntime,
    read_openvino,
)
from vitesse.analyze.profile import Operator, Profile, Shaped, median_of
from vitesse.analyze.roofline import bytes_of, flops_of
from vitesse.analyze.torch_profile import TorchProfiler, read_torch
from vitesse.errors import EngineError
from vitesse.export.onnx import MODULE_KEY
from vitesse.runtime.artefact import Artefact

IN, OUT, ROWS = 32, 512, 256  # enough for every engine to need a microsecond


def product_and_transpose(with_modules: bool = True) -> onnx.ModelProto:
    """(8, 16) times (16, 32), then turned: `head.fc` and `head`.

    Both are outputs, or ONNX Runtime would compute the turned product at once.
    """
    weight = np.random.default_rng(0).standard_normal((IN, OUT), np.float32)
    nodes = [
        helper.make_node("Gemm", ["images", "head.fc.weight"], ["y"], name="node_gemm"),
        helper.make_node("Transpose", ["y"], ["logits"], name="node_turn", perm=[1, 0]),
    ]
    if with_modules:
        for node, module in zip(nodes, ("head.fc", "head"), strict=True):
            node.metadata_props.add(key=MODULE_KEY, value=module)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("images", (ROWS, IN)), ("logits", (OUT, ROWS)), ("y", (ROWS, OUT)))
    ]
    graph = helper.make_graph(
        nodes, "g", values[:1], values[1:], [numpy_helper.from_array(weight, "head.fc.weight")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def onnxruntime_profile(runs: int = 1) -> list[dict[str, Any]]:
    """As ONNX Runtime writes it, a layout conversion of its own before the product."""

    def event(name: str, op: str, us: int, inputs: list[Any], output: list[int]) -> dict[str, Any]:
        shapes = {"input_type_shape": inputs, "output_type_shape": [{"float": output}]}
        return {
            "cat": "Node",
            "name": f"{name}_kernel_time",
            "dur": us,
            "args": {"op_name": op, **shapes},
        }

    x, w, y = [ROWS, IN], [IN, OUT], [ROWS, OUT]
    fence = {"cat": "Node", "name": "node_gemm_fence_before", "dur": 1, "args": {"op_name": "Gemm"}}
    one = [
        event("ReorderInput_token_7", "ReorderInput", 5, [{"float": x}], x),
        fence,
        event("node_gemm/SomeFusion/", "Gemm", 30, [{"float": x}, {"float": w}], y),
        event("logits_nchwc", "Transpose", 10, [{"float": y}, {"int64": [2]}], [OUT, ROWS]),
        {"cat": "Session", "name": "model_run", "dur": 50, "args": {}},
    ]
    return [{"cat": "Session", "name": "model_loading", "dur": 9, "args": {}}, *one * runs]


def openvino_profile() -> tuple[list[Any], dict[str, Any]]:
    """Counters whose first pass took twice as long, and the executed graph."""
    x, w, y, z = (Shaped(sides) for sides in ((ROWS, IN), (OUT, IN), (ROWS, OUT), (OUT, ROWS)))
    nodes = {
        "images_abcd_acdb_node_gemm": {"made_from": [""], "inputs": (x,), "outputs": (x,)},
        "node_gemm": {"made_from": ["node_gemm", "node_relu"], "inputs": (x, w), "outputs": (y,)},
        "Transpose_9": {"made_from": ["node_turn"], "inputs": (y,), "outputs": (z,)},
    }
    kinds = ("Reorder", "FullyConnected", "Transpose")
    times = dict(zip(nodes, (5e-6, 30e-6, 10e-6), strict=True))
    cold = [(name, kind, 2 * times[name]) for name, kind in zip(nodes, kinds, strict=True)]
    warm = [(name, kind, (4 + 2) / 5 * times[name]) for name, kind in zip(nodes, kinds, strict=True)]
    cold.append(("node_relu", "Relu", 0.0))
    warm.append(("node_relu", "Relu", 0.0))
    return [(cold, warm)], nodes


def torch_event(
    name: str,
    us: float,
    shapes: Sequence[Any] = (),
    memory: int = 0,
    children: Sequence[Any] = (),
) -> Any:
    event = SimpleNamespace(
        name=name,
        cpu_time_total=us,
        input_shapes=shapes,
        cpu_memory_usage=memory,
        cpu_children=children,
        cpu_parent=None,
    )
    for child in children:
        child.cpu_parent = event
    return event


def flat(event: Any) -> list[Any]:
    return [event, *(inner for child in event.cpu_children for inner in flat(child))]


def torch_profile() -> list[Any]:
    """A product that first copies its input; views and freed memory around it."""
    x, y = [ROWS, IN], [ROWS, OUT]
    clone = torch_event("aten::clone", 5, [x, []], ROWS * IN * 4, [torch_event("aten::copy_", 4, [x, x])])
    product = torch_event("aten::linear", 35, [x, [OUT, IN]], ROWS * OUT * 4, [clone])
    head = torch_event(
        "module:head",
        99,
        children=[
            torch_event("module:head.fc", 60, children=[product, torch_event("[memory]", 0)]),
            torch_event("aten::clone", 10, [y, []], ROWS * OUT * 4),
        ],
    )
    return flat(torch_event("module:", 120, children=[head]))


def test_the_three_formats_give_the_same_structure() -> None:
    origins = Origins(product_and_transpose())
    runs = {
        "onnxruntime": read_onnxruntime(json.dumps(onnxruntime_profile()).encode(), origins),
        "openvino": read_openvino(*openvino_profile(), origins),
        "torch": [read_torch(torch_profile())],
    }
    for engine, found in runs.items():
        operators = median_of(found, engine)
        assert [operator.seconds for operator in operators] == pytest.approx([5e-6, 30e-6, 10e-6]), engine
        assert [operator.module for operator in operators] == ["head.fc", "head.fc", "head"], engine
        assert [flops_of(operator) for operator in operators] == [0, 2 * ROWS * IN * OUT, 0], engine
        x, w, y = ROWS * IN, IN * OUT, ROWS * OUT
        assert [bytes_of(operator) // 4 for operator in operators] == [2 * x, x + w + y, 2 * y], engine
        kinds = [operator.kind for operator in operators]
        assert kinds == ["copy", "matmul", "copy" if engine == "torch" else "reshape"]


@pytest.fixture
def real(tiny_artefact: Artefact) -> Callable[..., Artefact]:
    def make(with_modules: bool = True) -> Artefact:
        return replace(tiny_artefact, data=product_and_transpose(with_modules).SerializeToString())

    return make


@pytest.mark.parametrize("profiler", [OnnxRuntimeProfiler, OpenVinoProfiler])
@pytest.mark.parametrize("with_modules", [True, False])
def test_a_real_product_and_transposition_are_placed_with_exact_flops_and_bytes(
    profiler: Any, with_modules: bool, real: Callable[..., Artefact]
) -> None:
    running = profiler(real(with_modules), threads=1)
    x = np.zeros((ROWS, IN), np.float32)
    assert all(running.run(x) > 0 for _ in range(3))
    runs = [
        [replace(operator, seconds=max(operator.seconds, 1e-7)) for operator in run] for run in running.runs()
    ]
    assert len(runs) == 3
    product, turn = (operator for operator in median_of(runs, "e") if operator.kind in ("matmul", "reshape"))
    assert (product.kind, product.module) == ("matmul", "head.fc")
    assert flops_of(product) == 2 * ROWS * IN * OUT
    assert bytes_of(product) == 4 * (ROWS * IN + IN * OUT + ROWS * OUT)
    assert (turn.kind, turn.module) == ("reshape", "head" if with_modules else None)
    assert (flops_of(turn), bytes_of(turn)) == (0, 4 * 2 * ROWS * OUT)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True))})

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BNC = self.stem(x_BCHW).flatten(2).mT
        return self.block["mlp"](x_BNC).softmax(-1)


def test_torch_operators_belong_to_the_module_that_calls_them() -> None:
    model = Toy().eval()
    profiler = TorchProfiler(model)
    profiler.run(np.zeros((2, 3, 4, 4), np.float32))
    assert not model.stem._forward_hooks
    assert not model._forward_pre_hooks
    operators = profiler.runs()[0]
    found = {(operator.kind, operator.module): operator for operator in operators}
    assert {"conv", "matmul", "softmax", "reshape", "elementwise"} <= {
        operator.kind for operator in operators
    }
    conv, product = found["conv", "stem"], found["matmul", "block.mlp.0"]
    assert flops_of(conv) == 2 * (2 * 8 * 16) * 27
    assert bytes_of(conv) == 4 * (2 * 3 * 16 + 8 * 27 + 8 + 2 * 8 * 16)
    assert flops_of(product) == 2 * 2 * 16 * 8 * 16
    assert bytes_of(found["elementwise", "block.mlp.1"]) == 4 * 2 * (2 * 16 * 16)
    assert ("softmax", "") in found
    assert bytes_of(found["reshape", ""]) == 0


def test_a_profile_that_is_cut_short_is_refused() -> None:
    origins = Origins(product_and_transpose())
    whole = json.dumps(onnxruntime_profile(2)).encode()
    for cut in (whole[: len(whole) // 2], b"", b"[1, 2]", b'{"a": 1}', b'[{"cat": "Node", "name": 3}]'):
        with pytest.raises(EngineError, match=r"onnxruntime: its profile is cut short.*disk full"):
            read_onnxruntime(cut, origins)
    counters, nodes = openvino_profile()
    (cold, warm), *_ = counters
    for broken in ([(cold[:-1], warm)], [(cold, warm), (cold[::-1], warm[::-1])]):
        with pytest.raises(EngineError, match="openvino: its profile is cut short"):
            read_openvino(broken, nodes, origins)
    del nodes["node_gemm"]
    with pytest.raises(EngineError, match="openvino: its profile names what is not in its graph"):
        read_openvino(counters, nodes, origins)


def test_openvino_names_what_it_puts_in_anew_whenever_it_compiles() -> None:
    ((cold, warm),), nodes = openvino_profile()
    again = [
        [(name.replace("Transpose_9", "Transpose_19"), *rest) for name, *rest in c] for c in (cold, warm)
    ]
    runs = read_openvino([(cold, warm), tuple(again)], nodes, Origins(product_and_transpose()))
    assert [operator.name for operator in median_of(runs, "openvino")][-1] == "Transpose_9"


def test_a_run_that_never_ended_is_not_counted() -> None:
    events = onnxruntime_profile(3)[:-1]
    assert len(read_onnxruntime(json.dumps(events).encode(), Origins(product_and_transpose()))) == 2


def operators_of(seconds: list[float], modules: list[str | None], kinds: list[str]) -> list[Operator]:
    return [
        Operator(name=f"{i}", type=kind, kind=kind, module=module, seconds=took, inputs=(), outputs=())
        for i, (took, module, kind) in enumerate(zip(seconds, modules, kinds, strict=True))
    ]


def test_medians_are_of_each_operator_and_inserted_ones_join_the_next() -> None:
    runs = [
        operators_of([took, 9.0, 1.0], [None, "stem", None], ["copy", "conv", "copy"]) for took in (1, 7, 2)
    ]
    found = median_of(runs, "e")
    assert [operator.seconds for operator in found] == [2, 9, 1]
    assert [operator.module for operator in found] == ["stem", "stem", None]
    for wrong in ([], [[]], [runs[0], runs[1][:-1]]):
        with pytest.raises(EngineError, match="e: its profile"):
            median_of(wrong, "e")
    with pytest.raises(
        EngineError, match="e: every operator takes less time than it can count; raise --batch"
    ):
        median_of([operators_of([0.0, 0.0], [None, "stem"], ["copy", "conv"])], "e")


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1, allow_subnormal=False),
            st.sampled_from(["stem", "a.attn", "a", "", "x.y", "head"]),
            st.sampled_from(KINDS),
        ),
        min_size=1,
    )
)
def test_shares_sum_to_one_whatever_the_operators(rows: list[tuple[float, str, str]]) -> None:
    seconds, modules, kinds = map(list, zip(*rows, strict=True))
    operators = tuple(operators_of(seconds, modules, kinds))
    profile = Profile(engine="e", operators=operators, plain_s=1.0, profiled_s=1.5)
    whole = pytest.approx(1.0 if any(seconds) else 0.0)
    assert list(profile.by_kind()) == list(KINDS)
    assert list(profile.by_role()) == list(ROLES)
    assert sum(profile.by_kind().values()) == whole
    assert sum(profile.by_role().values()) == whole
    table = profile.by_role_and_kind()
    assert {role: sum(shares.values()) for role, shares in table.items()} == pytest.approx(profile.by_role())
    classes = profile.memory_bound_share + profile.compute_bound_share + profile.by_kind()["other"]
    assert classes == whole
    assert profile.overhead == 0.5


def test_what_has_no_place_is_named_by_its_time() -> None:
    operators = operators_of([1, 3, 2, 1], ["x", "y", "", "stem"], ["other", "conv", "conv", "conv"])
    profile = Profile(engine="e", operators=tuple(operators), plain_s=1.0, profiled_s=1.0)
    assert profile.other("operators") == ["other"]
    assert profile.other("modules") == ["y", "x"]


def test_the_profile_file_is_removed(real: Callable[..., Artefact]) -> None:
    profiler = OnnxRuntimeProfiler(real(), threads=1)
    folder = Path(profiler._folder.name)
    profiler.run(np.zeros((ROWS, IN), np.float32))
    profiler.runs()
    assert not folder.exists()
