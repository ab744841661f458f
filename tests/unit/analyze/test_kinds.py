"""What operators do and which part of a model modules are, by their names."""

from __future__ import annotations

import pytest

from vitesse.analyze.kinds import KINDS, class_of, kind_of, kind_of_fused, role_of, roles_of


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("conv", "Conv QLinearConv FusedConv GroupConvolution aten::conv2d ConvTranspose"),
        ("matmul", "Gemm QGemm FusedMatMul MatMul FullyConnected aten::addmm aten::baddbmm aten::linear"),
        ("attention", "Attention QAttention aten::scaled_dot_product_attention MultiHeadAttention"),
        ("reshape", "Transpose Reshape Split VariadicSplit Slice aten::permute aten::cat aten::mT Pad"),
        ("copy", "ReorderInput ReorderOutput Reorder aten::clone aten::_to_copy Cast Convert"),
        ("elementwise", "Add Relu aten::add_ aten::relu_ BiasGelu QLinearAdd DequantizeLinear Subgraph"),
        ("normalisation", "LayerNormalization SkipLayerNormalization MVN RMS aten::native_layer_norm"),
        ("softmax", "Softmax aten::softmax aten::_softmax QLinearSoftmax"),
        ("pooling", "ReduceMean aten::mean MaxPool QLinearAveragePool NhwcMaxPool"),
        ("other", "NonMaxSuppression aten::nonzero Loop"),
    ],
)
def test_every_engine_s_word_for_an_operator_has_its_kind(kind: str, names: str) -> None:
    assert {name: kind_of(name) for name in names.split()} == dict.fromkeys(names.split(), kind)


def test_fused_operators_are_of_the_kind_that_counts_most() -> None:
    assert kind_of_fused(["MatMul", "Add", "Softmax", "MatMul"]) == "attention"
    assert kind_of_fused(["Add", "Conv", "Relu"]) == "conv"
    assert kind_of_fused(["Add", "Relu"]) == "elementwise"
    assert kind_of_fused([]) == "other"


def test_every_kind_has_one_class() -> None:
    assert [class_of(kind) for kind in KINDS] == ["compute"] * 3 + ["memory"] * 6 + ["other"]


@pytest.mark.parametrize(
    ("module", "role"),
    [
        ("stages.1.subsample.ffn0.branch.expand", "subsampling"),
        ("stages.0.blocks.0.mixer.branch.attention.qkvs.0", "mixer"),
        ("stages.0.0.depthwise", "subsampling"),
        ("stages.0.1.branch.expand", "ffn"),
        ("backbone.stages.2.1.attention.branch.proj", "mixer"),
        ("model.layers.1.blocks.0.mlp.fc1", "ffn"),
        ("model.norm", "head"),
        ("model.conv1", "stem"),
        ("model.layer1.0.conv1", None),
        ("understem", None),
        ("", None),
    ],
)
def test_the_outermost_part_that_a_name_says_counts(module: str, role: str | None) -> None:
    assert role_of(module) == role


def test_what_a_container_computes_belongs_to_the_part_that_ran_last_inside_it() -> None:
    modules = ["", "patch_embed", "", "blocks.0", "blocks.0.attn", "blocks.0", "blocks.0.mlp", "blocks.0"]
    assert roles_of(modules) == ["stem", "stem", "stem", "mixer", "mixer", "mixer", "ffn", "ffn"]
    assert roles_of(["features.0", "features.1", ""]) == ["other"] * 3
    assert roles_of(["a.stem", "b", "b.head"]) == ["stem", "head", "head"]
