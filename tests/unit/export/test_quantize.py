"""int8: what is quantised, what stays float, that both engines run it and that it is near the float model."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as graphs
import pytest
import torch
from torch import nn

from vitesse.errors import ExportError
from vitesse.export import fold
from vitesse.export.onnx import to_onnx, write_artefact
from vitesse.export.quantize import last_layers, noise, quantize
from vitesse.models import build
from vitesse.runtime.artefact import read_artefact
from vitesse.runtime.engines import create_engine
from vitesse.spec import Manifest, ModelSpec, PreprocessSpec

NAMES = ("efficientvit_m0", "shvit_s1", "efficientvit_b0", "vit_tiny_patch16")
SIDE = 64


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, SIDE, SIDE), np.float32)


@pytest.fixture(scope="module", params=NAMES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """(torch model, float graph, int8 graph, int8 artefact) of one family."""
    torch.manual_seed(0)
    spec = ModelSpec(name=request.param, image_size=(SIDE, SIDE), num_classes=10)
    model = build(spec)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.2, 0.5)
    with torch.no_grad():
        model.train()(torch.from_numpy(pictures(32, seed=2)))  # statistics, without which values shrink
    model.eval()
    proto = to_onnx(fold(model), spec)
    before = proto.SerializeToString()
    int8 = quantize(proto, pictures(8))
    assert proto.SerializeToString() == before, "the float model stays as it was"
    manifest = Manifest(
        model=spec,
        class_names=tuple("abcdefghij"),
        preprocess=PreprocessSpec(image_size=(SIDE, SIDE)),
        precision="int8",
    )
    path = tmp_path_factory.mktemp("int8") / "m.onnx"
    write_artefact(int8, manifest, path)
    return model, proto, int8, read_artefact(path)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_both_engines_are_near_the_float_model(models: tuple, engine: str) -> None:
    model, _, _, artefact = models
    x_BCHW = pictures(32, seed=1)
    with torch.no_grad():
        expected = model(torch.from_numpy(x_BCHW)).numpy()
    found = create_engine(artefact, engine).run(x_BCHW)[0]
    expected, found = expected - expected.mean(0), found - found.mean(0)
    cosine = (expected * found).sum() / np.linalg.norm(expected) / np.linalg.norm(found)
    assert cosine >= 0.9, "random weights have 0.92 to 0.97, by seed"
    assert not np.array_equal(expected, found)


def producers_of(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in proto.graph.node for name in node.output}


@pytest.mark.slow
def test_every_weight_is_int8_and_every_product_of_activations_is_float(models: tuple) -> None:
    _, proto, int8, artefact = models
    producers = producers_of(int8)
    weights = {tensor.name: tensor.data_type for tensor in int8.graph.initializer}
    for node in int8.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        inputs = [producers.get(name) for name in node.input[:2]]
        quantized = [source is not None and source.op_type == "DequantizeLinear" for source in inputs]
        of_weight = inputs[1] is not None and inputs[1].input and inputs[1].input[0] in weights
        assert quantized == [of_weight, of_weight], node.name
        if of_weight:
            assert weights[inputs[1].input[0]] == onnx.TensorProto.INT8
    floats = sum(tensor.ByteSize() for tensor in proto.graph.initializer)
    assert len(artefact.data) < 0.55 * floats, "the file is much smaller"


@pytest.mark.slow
def test_no_pair_stands_between_a_convolution_and_its_activation(models: tuple) -> None:
    _, _, int8, _ = models
    producers = producers_of(int8)
    activations = [node for node in int8.graph.node if node.op_type == "HardSwish"]
    for node in activations:
        source = producers[node.input[0]]
        if source.op_type == "DequantizeLinear":
            before = producers[producers[source.input[0]].input[0]]
            assert before.op_type not in ("Conv", "Gemm"), node.name


@pytest.mark.slow
def test_noise_names_what_eight_bits_hold_badly(models: tuple) -> None:
    """An outlier among the calibration pictures stretches the range of the first convolution's input."""
    model, proto, int8, _ = models
    first = next(node.name for node in proto.graph.node if node.op_type == "Conv")
    stretched = pictures(4)
    stretched[0, 0, 0, 0] = 500.0
    plain, spoilt = (noise(graph, pictures(4)) for graph in (int8, quantize(proto, stretched)))
    if model.spec.name.startswith("vit"):
        assert first not in plain, "the patch embedding stays float"
        return
    assert plain[first] > 30
    assert spoilt[first] < plain[first] - 20


@pytest.mark.slow
def test_a_node_can_be_kept_float(models: tuple) -> None:
    _, proto, _, _ = models
    conv = next(node for node in proto.graph.node if node.op_type == "Conv")
    kept = quantize(proto, pictures(4), keep_float=[conv.name])
    (found,) = (node for node in kept.graph.node if node.name == conv.name)
    assert [source in producers_of(kept) for source in found.input[:2]] == [False, False]


def test_what_cannot_be_quantised_is_one_line() -> None:
    with pytest.raises(ExportError, match=r"int8: the model cannot be quantised: \S") as caught:
        quantize(onnx.ModelProto(), pictures(2))
    assert "\n" not in str(caught.value)


def test_the_layers_that_predict_come_last() -> None:
    """A stem, a box and a class branch on it, and classes of pixels made of the logits by another kernel."""
    nodes = [
        graphs.make_node("Conv", ["image", "w"], ["features"], name="stem"),
        graphs.make_node("Relu", ["features"], ["positive"], name="relu"),
        graphs.make_node("Conv", ["positive", "w"], ["sides"], name="box"),
        graphs.make_node("Exp", ["sides"], ["boxes"], name="exp"),
        graphs.make_node("Conv", ["positive", "w"], ["tower"], name="tower"),
        graphs.make_node("Conv", ["tower", "w"], ["logits"], name="class"),
        graphs.make_node("Conv", ["logits", "w"], ["enlarged"], name="kernel"),
        graphs.make_node("ArgMax", ["enlarged"], ["classes"], name="largest"),
    ]
    values = {name: graphs.make_tensor_value_info(name, 1, None) for name in ("boxes", "logits", "classes")}
    weight = graphs.make_tensor("w", 1, [1, 1, 1, 1], [1.0])
    graph = graphs.make_graph(
        nodes, "g", [graphs.make_tensor_value_info("image", 1, None)], list(values.values()), [weight]
    )
    assert set(last_layers(graphs.make_model(graph))) == {"box", "class", "kernel", "largest"}
