"""fp16: half as large, near the float model, and in float32 where half precision would ruin the sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import vitesse.export.artefact as exporting
import vitesse.export.half as halving
from vitesse.errors import EngineError, ExportError
from vitesse.evaluate import evaluate
from vitesse.export import export, fold
from vitesse.export.half import to_half
from vitesse.export.onnx import to_onnx, write_artefact
from vitesse.models import Backbone
from vitesse.runtime.artefact import Artefact, read_artefact
from vitesse.runtime.engines import create_engine
from vitesse.spec import Manifest, PreprocessSpec

ENGINES = ("onnxruntime", "openvino")

Graphs = tuple[Backbone, onnx.ModelProto, onnx.ModelProto]


@pytest.fixture(scope="module", params=["efficientvit_b0", "efficientvit_m0"])
def graphs(
    request: pytest.FixtureRequest, settled: Callable[..., Backbone], b0: Backbone, b0_graph: onnx.ModelProto
) -> Graphs:
    """A model, its float graph and its half graph."""
    if request.param == "efficientvit_b0":
        return b0, b0_graph, to_half(b0_graph)
    model = settled(request.param, num_classes=10, pictures=32)
    proto = to_onnx(fold(model), model.spec)
    return model, proto, to_half(proto)


def pictures(model: Backbone) -> torch.Tensor:
    return torch.randn(8, 3, *model.spec.image_size, generator=torch.Generator().manual_seed(1))


def written(proto: onnx.ModelProto, model: Backbone, path: Path) -> Artefact:
    preprocess = PreprocessSpec(image_size=model.spec.image_size)
    names = tuple(map(str, range(model.spec.num_classes)))
    manifest = Manifest(model=model.spec, class_names=names, preprocess=preprocess, precision="fp16")
    write_artefact(proto, manifest, path)
    return read_artefact(path)


def elements(proto: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor."""
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    values = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    ends = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    return {**values, **ends, **{tensor.name: tensor.data_type for tensor in graph.initializer}}


def kinds(proto: onnx.ModelProto, *operators: str) -> dict[str, set[int]]:
    """The element types that the nodes of these operators read, by operator; sizes and axes aside.

    Products with weights that a division has normalised are left out: they are no sums that grow.
    """
    found = elements(proto)
    divisions = [node.output[0] for node in proto.graph.node if node.op_type == "Div"]
    quotients = {name.removesuffix("_cast_to_fp16") for name in divisions}
    read: dict[str, set[int]] = {}
    for node in proto.graph.node:
        if node.op_type in operators and not quotients & set(node.input):
            types = {found[name] for name in node.input if name}
            read.setdefault(node.op_type, set()).update(types - {TensorProto.INT64})
    return read


def test_pictures_and_logits_stay_float32_and_the_graph_is_valid(graphs: Graphs) -> None:
    _, _, half = graphs
    onnx.checker.check_model(half, full_check=True)
    ends = [*half.graph.input, *half.graph.output]
    assert [end.type.tensor_type.elem_type for end in ends] == [TensorProto.FLOAT] * 2


def test_weights_are_half_as_large(graphs: Graphs) -> None:
    _, proto, half = graphs
    assert kinds(half, "Conv", "Gemm") == {"Conv": {TensorProto.FLOAT16}, "Gemm": {TensorProto.FLOAT16}}
    sizes = [sum(tensor.ByteSize() for tensor in graph.graph.initializer) for graph in (proto, half)]
    assert sizes[1] < 0.55 * sizes[0]


def test_what_half_precision_ruins_stays_float32(graphs: Graphs) -> None:
    """In B0 every product of activations, and every ReLU, belongs to linear attention."""
    model, _, half = graphs
    ruined = {"Softmax"}
    if model.spec.name == "efficientvit_b0":
        ruined = {"Div", "LayerNormalization", "MatMul", "ReduceSum", "Relu", "Split", "Concat"}
    assert kinds(half, *ruined) == {name: {TensorProto.FLOAT} for name in ruined}


def test_nothing_is_cast_to_half_precision_and_back(graphs: Graphs) -> None:
    """Between two nodes in float32 that would lose what they are float32 for."""
    _, _, half = graphs
    casts = [node for node in half.graph.node if node.op_type == "Cast"]
    assert not {node.input[0] for node in casts} & {node.output[0] for node in casts}
    assert len({node.input[0] for node in casts}) == len(casts), "no tensor is cast twice"


@pytest.mark.parametrize("engine", ENGINES)
def test_both_engines_are_near_the_float_model(graphs: Graphs, engine: str, tmp_path: Path) -> None:
    model, _, half = graphs
    x_BCHW = pictures(model)
    with torch.no_grad():
        expected_BK = model(x_BCHW).numpy()
    found_BK = create_engine(written(half, model, tmp_path / "m.onnx"), engine).run(x_BCHW.numpy())[0]
    assert 1e-5 < np.abs(found_BK - expected_BK).max() <= 1e-2 * np.abs(expected_BK).max()
    assert expected_BK.std(0).min() > 0.05, "the logits say something of the picture"


def test_linear_attention_in_half_precision_would_overflow(
    b0: Backbone, b0_graph: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of this very model, which holds in float32, as is shown above."""
    monkeypatch.setattr(halving, "_linear_attention", lambda _: [])
    spoilt = create_engine(written(to_half(b0_graph), b0, tmp_path / "m.onnx"), "onnxruntime")
    with pytest.raises(EngineError, match="NaN or infinity"):
        spoilt.run(pictures(b0).numpy())


@pytest.mark.usefixtures("traced_before")
def test_an_fp16_artefact_says_so_and_how_good_it_is(
    b0_checkpoint: Path, tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    data, out = paint_classes(tmp_path / "data", per_class=6), tmp_path / "m.onnx"
    manifest = export(b0_checkpoint, out, precision="fp16", data=data).manifest
    assert manifest == read_artefact(out).manifest
    assert manifest.precision == "fp16"
    assert manifest.parity is not None
    assert all(1e-5 < manifest.parity[engine] <= 1e-2 for engine in ENGINES)
    assert manifest.accuracy is not None
    scores = evaluate(data, model=out, engine="onnxruntime")
    assert (manifest.accuracy["top1"], manifest.accuracy["images"]) == (scores.top1, 18)
    whole = export(b0_checkpoint, tmp_path / "fp32.onnx")
    assert whole.manifest.precision == "fp32"
    assert len(read_artefact(out).data) < 0.55 * len(whole.data)


@pytest.mark.usefixtures("traced_before")
def test_an_fp16_file_that_disagrees_is_not_written(
    b0_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "to_half", lambda proto: to_half(nudged(proto)))
    with pytest.raises(ExportError, match=r"differ from torch by .* expected at most [12]\.\d\de-02"):
        export(b0_checkpoint, tmp_path / "m.onnx", precision="fp16")
    assert not (tmp_path / "m.onnx").exists()


def nudged(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Its last weights are others."""
    (last,) = (tensor for tensor in proto.graph.initializer if tensor.name == proto.graph.node[-1].input[1])
    last.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(last) * 1.5, last.name))
    return proto


def test_what_cannot_be_converted_is_one_line() -> None:
    broken = onnx.ModelProto()
    broken.graph.node.add(op_type="Identity", input=["absent"], output=["logits"])
    with pytest.raises(ExportError, match=r"^fp16: the model cannot be converted: \S") as caught:
        to_half(broken)
    assert "\n" not in str(caught.value)
