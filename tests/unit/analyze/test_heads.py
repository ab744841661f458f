"""Likeness of attention heads: the figures against formulas, and the maps against queries and keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from vitesse.analyze import attention, head_similarity, heads_report
from vitesse.analyze.attention import WatchedModel
from vitesse.analyze.head_similarity import HeadTally, as_heads, head_correlation, most_alike
from vitesse.analyze.head_similarity import head_similarity as similarity_of
from vitesse.analyze.heads_report import labels
from vitesse.analyze.onnx_attention import WatchedArtefact
from vitesse.bench.contenders import random_manifest
from vitesse.errors import ConfigError, WeightsError
from vitesse.export.onnx import MODULE_KEY, as_proto, to_onnx, write_artefact
from vitesse.models import build
from vitesse.models.efficientvit_mit import MultiScaleLinearAttention, relu_linear_attention
from vitesse.models.efficientvit_msra import CONFIGS, CascadedGroupAttention
from vitesse.runtime.artefact import bundled_artefact, read_artefact
from vitesse.spec import ModelSpec

Maps = dict[str, NDArray[Any]]


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention_of(seed: int, *shape: int) -> NDArray[np.float64]:
    return softmax(3 * np.random.default_rng(seed).standard_normal(shape))


def watched(model: nn.Module, x_BCHW: torch.Tensor) -> Maps:
    found: Maps = {}
    engine = WatchedModel(model, lambda name, maps: found.setdefault(name, maps.copy()))
    assert engine.run(x_BCHW.numpy()) == ()
    return found


def picture(size: int, batch: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_figures_are_those_of_the_formula() -> None:
    maps = attention_of(0, 2, 3, 4, 5)
    for b in range(2):
        for i in range(3):
            for j in range(3):
                a, c = maps[b, i].ravel(), maps[b, j].ravel()
                cosine = a @ c / np.sqrt((a @ a) * (c @ c))
                assert similarity_of(maps)[b, i, j] == pytest.approx(cosine, abs=1e-12)
                assert head_correlation(maps)[b, i, j] == pytest.approx(np.corrcoef(a, c)[0, 1], abs=1e-12)


def test_equal_heads_are_at_one_and_disjoint_heads_at_zero() -> None:
    same = np.repeat(attention_of(1, 2, 1, 4, 4), 3, axis=1)
    np.testing.assert_allclose(similarity_of(same), 1)
    np.testing.assert_allclose(head_correlation(same), 1)
    disjoint = np.stack([np.eye(4), np.eye(4)[::-1]])[None]
    np.testing.assert_array_equal(similarity_of(disjoint)[0], np.eye(2))
    assert most_alike(similarity_of(disjoint)).tolist() == [[0, 0]]


@pytest.mark.parametrize("keys", [1, 4, 7])
def test_even_attention_is_alike_but_has_nothing_in_common(keys: int) -> None:
    rounding = np.random.default_rng(0).choice([-1e-7, 0, 1e-7], (5, keys))
    even = np.broadcast_to((1 + rounding) / keys, (1, 2, 5, keys)).astype(np.float32)
    np.testing.assert_allclose(similarity_of(even), 1)
    np.testing.assert_array_equal(head_correlation(even), 0)


@given(seed=st.integers(0, 99), heads=st.integers(2, 5), keys=st.integers(2, 6))
def test_the_order_of_heads_and_positions_does_not_matter(seed: int, heads: int, keys: int) -> None:
    maps = attention_of(seed, 2, heads, 4, keys)
    generator = np.random.default_rng(seed)
    order, columns, rows = map(generator.permutation, (heads, keys, 4))
    for measure in (similarity_of, head_correlation):
        likeness = measure(maps)
        moved = measure(maps[:, order][:, :, rows][..., columns])
        np.testing.assert_allclose(moved, likeness[:, order][:, :, order], atol=1e-9)
        np.testing.assert_allclose(most_alike(moved), most_alike(likeness)[:, order], atol=1e-9)
        assert (likeness <= 1).all()
    assert (similarity_of(maps) >= 0).all()


@given(seed=st.integers(0, 99), extra=st.integers(1, 3))
def test_another_head_never_lowers_the_largest_likeness(seed: int, extra: int) -> None:
    maps = attention_of(seed, 2, 3 + extra, 4, 4)
    assert (most_alike(similarity_of(maps))[:, :3] >= most_alike(similarity_of(maps[:, :3])) - 1e-12).all()


@pytest.mark.parametrize("at_once", [1, 10**6])
def test_pictures_count_alike_however_they_come(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_similarity, "ENTRIES_AT_ONCE", at_once)
    maps, tally = attention_of(2, 5, 3, 4, 4), HeadTally()
    tally.add("a", maps[:2])
    tally.add("single", maps[:, :1])
    tally.add("a", maps[2:])
    (block,) = tally.blocks()
    assert (block.module, block.heads, block.maps, block.queries, block.keys) == ("a", 3, 5, 4, 4)
    assert tally.single_headed == ("single",)
    similarity = similarity_of(maps)
    np.testing.assert_allclose(block.similarity_AA, similarity.mean(0))
    np.testing.assert_allclose(block.correlation_AA, head_correlation(maps).mean(0))
    nearest = np.array([[max(np.delete(row, i)) for i, row in enumerate(rows)] for rows in similarity])
    np.testing.assert_allclose(block.max_similarity_A, nearest.mean(0))
    assert block.redundancy == pytest.approx(nearest.mean())
    pairs = [similarity[:, i, j].mean() for i in range(3) for j in range(3) if i != j]
    assert block.mean_similarity == pytest.approx(np.mean(pairs))
    correlation = head_correlation(maps)
    pairs = [correlation[:, i, j].mean() for i in range(3) for j in range(3) if i != j]
    assert block.mean_correlation == pytest.approx(np.mean(pairs))
    record = block.record()
    assert record["redundancy"] == round(nearest.mean(), 4)
    assert np.shape(record["similarity"]) == np.shape(record["correlations"]) == (3, 3)


def test_attention_that_is_not_finite_is_named() -> None:
    with pytest.raises(WeightsError, match=r"stages\.1: its attention is not finite"):
        HeadTally().add("stages.1", np.full((1, 2, 3, 3), np.nan))


def test_heads_are_found_in_every_layout() -> None:
    three = [np.full((2, 4, 4), head) for head in range(3)]
    ((name, maps),) = as_heads("cascade", three, 3)
    assert (name, maps.shape, maps[0, :, 0, 0].tolist()) == ("cascade", (2, 3, 4, 4), [0, 1, 2])
    ((name, maps),) = as_heads("folded", [np.stack([*three, *three]).reshape(6, 8, 4)], 3)
    assert maps.shape == (2, 3, 8, 4)
    ((name, maps),) = as_heads("windows", [np.zeros((2, 5, 3, 4, 6))], 3)
    assert maps.shape == (10, 3, 4, 6)
    twice = list(as_heads("twice", [np.zeros((2, 3, 4, 4)), np.zeros((2, 3, 2, 2))]))
    assert [name for name, _ in twice] == ["twice[0]", "twice[1]"]
    ((name, maps),) = as_heads("single", [np.zeros((2, 4, 4))])
    assert maps.shape == (2, 1, 4, 4)
    with pytest.raises(ConfigError, match=r"halo: expected attention of shape \(…, 8, queries, keys\)"):
        list(as_heads("halo", [np.zeros((16, 4, 64, 144))], 8))


def test_maps_of_a_cascade_are_those_of_its_queries_and_keys(
    randomise: Callable[[nn.Module], nn.Module],
) -> None:
    model = randomise(build(ModelSpec(name="efficientvit_m0", image_size=(64, 64)))).eval()
    seen: dict[nn.Module, torch.Tensor] = {}
    for module in model.modules():
        module.register_forward_hook(lambda module, args, output: seen.__setitem__(module, output))
    found = watched(model, picture(128))
    modules = {name: m for name, m in model.named_modules() if isinstance(m, CascadedGroupAttention)}
    assert list(found) == list(modules)
    windows = [len(maps) for maps in found.values()]
    assert windows == [8, 2, 2, 2, 2, 2]  # the first stage's map of 8x8 positions has four windows a picture
    for name, module in modules.items():
        bias_ANN = module.gathered_bias(seen[module].shape[2:]).detach().numpy()
        for head, (qkv, query_conv) in enumerate(zip(module.qkvs, module.query_convs, strict=True)):
            q_BDN = seen[query_conv].flatten(2).numpy()
            k_BDN = seen[qkv][:, 16:32].flatten(2).numpy()
            expected = softmax(np.einsum("bdq,bdk->bqk", q_BDN, k_BDN) / 4 + bias_ANN[head])
            np.testing.assert_allclose(found[name][:, head], expected, atol=1e-5)


def by_hand(module: Any, x_BNC: torch.Tensor, logits_to_add: NDArray[Any] | float = 0.0) -> NDArray[Any]:
    """Attention of timm's modules, from the weights of their `qkv`."""
    weight, bias = (value.detach().double().numpy() for value in (module.qkv.weight, module.qkv.bias))
    x = x_BNC.detach().double().numpy()
    qkv = (x @ weight.T + bias).reshape(*x.shape[:2], 3, module.num_heads, -1)
    q_BAND, k_BAND = qkv[:, :, 0].swapaxes(1, 2), qkv[:, :, 1].swapaxes(1, 2)
    return softmax(q_BAND @ k_BAND.swapaxes(2, 3) / np.sqrt(q_BAND.shape[3]) + logits_to_add)


@pytest.mark.parametrize("fused", [True, False])
def test_maps_of_timm_s_vit_are_those_of_its_queries_and_keys(timm: ModuleType, fused: bool) -> None:
    model = timm.create_model(
        "deit_tiny_patch16_224", img_size=64, depth=2, embed_dim=48, num_heads=3, num_classes=5
    )
    inputs = {}
    for index, block in enumerate(model.blocks):
        nn.init.normal_(block.attn.qkv.weight, std=0.3)
        block.attn.fused_attn = fused
        block.attn.register_forward_pre_hook(lambda _, args, index=index: inputs.__setitem__(index, args[0]))
    found = watched(model, picture(64))
    assert list(found) == ["blocks.0.attn", "blocks.1.attn"]
    for index, block in enumerate(model.blocks):
        expected = by_hand(block.attn, inputs[index])
        assert expected.shape == (2, 3, 17, 17)
        np.testing.assert_allclose(found[f"blocks.{index}.attn"], expected, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_maps_of_timm_s_swin_are_those_of_its_windows(timm: ModuleType, fused: bool) -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, depths=(2,), num_heads=(3,), embed_dim=24, num_classes=5
    )
    inputs = {}
    for index, block in enumerate(model.layers[0].blocks):
        nn.init.normal_(block.attn.qkv.weight, std=0.3)
        block.attn.fused_attn = fused
        block.attn.register_forward_pre_hook(
            lambda _, args, kwargs, index=index: inputs.__setitem__(index, (args[0], kwargs["mask"])),
            with_kwargs=True,
        )
    found = watched(model, picture(56))
    assert list(found) == ["layers.0.blocks.0.attn", "layers.0.blocks.1.attn"]
    for index, block in enumerate(model.layers[0].blocks):
        x_BNC, mask = inputs[index]
        added = block.attn._get_rel_pos_bias().detach().numpy()
        if mask is not None:  # of the shifted windows, four a picture
            added = added + np.tile(mask.numpy()[:, None], (2, 1, 1, 1))
        expected = by_hand(block.attn, x_BNC, added)
        assert expected.shape == (8, 3, 49, 49)
        np.testing.assert_allclose(found[f"layers.0.blocks.{index}.attn"], expected, atol=1e-5)
    assert inputs[1][1] is not None


class Fused(nn.Module):
    """Four heads of five queries over two heads of nine keys, with options of torch's function."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        tokens = x_BCHW.flatten(2).mT
        q, k = tokens[:, None, :5].repeat(1, 4, 1, 1) * torch.arange(1, 5)[:, None, None], tokens[:, None]
        k = k.expand(-1, 2, -1, -1)
        return nn.functional.scaled_dot_product_attention(q, k, value=k[..., :3], **self.options)


def test_options_of_fused_attention_are_kept() -> None:
    x = picture(3, channels=8)
    logits = np.einsum("bcq,bck->bqk", x.flatten(2).numpy()[:, :, :5], x.flatten(2).numpy())
    mask = torch.arange(9)[None] < 6
    found = watched(Fused(attn_mask=mask, scale=0.25, enable_gqa=True), x)[""]
    for head in range(4):
        expected = softmax(np.where(mask.numpy(), 0.25 * (head + 1) * logits, -np.inf))
        np.testing.assert_allclose(found[:, head], expected, atol=1e-6)
    causal = watched(Fused(is_causal=True, enable_gqa=True), x)[""]
    np.testing.assert_array_equal(causal, np.tril(causal))


def test_linear_attention_has_the_maps_that_give_its_values(
    randomise: Callable[[nn.Module], nn.Module],
) -> None:
    model = randomise(build(ModelSpec(name="efficientvit_b0", image_size=(64, 64)))).eval()
    parts = {}
    for name, module in model.named_modules():
        if isinstance(module, MultiScaleLinearAttention):
            module.register_forward_pre_hook(
                lambda module, args, name=name: parts.__setitem__(name, module.heads(args[0]))
            )
    found = watched(model, picture(64))
    assert list(found) == list(parts)
    assert found["stages.2.1.attention.branch"].shape == (2, 8, 16, 16)
    for name, (q_BADN, k_BADN, v_BADN) in parts.items():
        expected = relu_linear_attention(q_BADN, k_BADN, v_BADN)
        out_BADN = v_BADN.numpy() @ found[name].swapaxes(2, 3)
        np.testing.assert_allclose(out_BADN, expected.detach().numpy(), atol=1e-4)


def test_watching_changes_nothing_and_leaves_nothing_behind(
    timm: ModuleType, randomise: Callable[[nn.Module], nn.Module]
) -> None:
    from timm.layers import use_fused_attn

    model = randomise(build(ModelSpec(name="vit_tiny_patch4", image_size=(16, 16), num_classes=3))).eval()
    outputs: list[torch.Tensor] = []
    fused, before = use_fused_attn(), model(picture(16))
    handle = model.register_forward_hook(lambda *parts: outputs.append(parts[2]))
    found = watched(model, picture(16))
    handle.remove()
    assert len(found) == 12
    torch.testing.assert_close(outputs[0], before.detach())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert use_fused_attn() == fused
    with pytest.raises(ConfigError):
        watched(model, picture(17))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_models_have_short_names_that_differ() -> None:
    def named(*models: str) -> list[str]:
        return labels([SimpleNamespace(model=model, weights="file") for model in models])

    assert named("a/b/plain.safetensors", "mine.onnx") == ["plain", "mine"]
    assert named("efficientvit_m5.r224_in1k", "timm:a") == ["efficientvit_m5.r224_in1k", "timm:a"]
    runs = [f"runs/{name}/checkpoints/best/model.safetensors" for name in ("plain", "split")]
    assert named(*runs) == ["plain", "split"]
    assert named(runs[0], runs[0]) == ["model", "model"]
    random = SimpleNamespace(model="efficientvit_m0", weights="random")
    assert labels([random]) == ["efficientvit_m0 (random weights)"]


def test_figures_of_two_heads_are_written_without_needless_signs() -> None:
    written: list[str] = []
    axis = SimpleNamespace(text=lambda column, row, text, **_: written.append(text))
    heads_report._label(axis, np.array([[np.nan, 0.726], [-0.004, -0.12], [1.0, 0.0]]))
    assert written == [".73", ".00", "-.12", "1.00", ".00"]


def test_a_softmax_that_is_no_attention_is_none() -> None:
    class Gates(nn.Module):
        def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            return x_BCHW.softmax(1) + x_BCHW.mean((2, 3)).softmax(-1)[..., None, None]

    assert watched(Gates(), picture(8)) == {}


@pytest.mark.parametrize("name", ["vit_tiny_patch4", "efficientvit_b0"])
def test_maps_that_are_too_large_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MAX_ENTRIES", 50)
    model = build(ModelSpec(name=name, image_size=(64, 64)))
    with pytest.raises(ConfigError, match=r"fit into memory, got \d+ of (257x257|16x16) in a batch; lower"):
        watched(model, picture(64))


@pytest.mark.slow
def test_an_artefact_has_the_maps_of_its_model(
    tmp_path: Path, randomise: Callable[[nn.Module], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(CONFIGS["efficientvit_m0"], depths=(1, 1, 1), num_heads=(2, 2, 2))
    monkeypatch.setitem(CONFIGS, "efficientvit_m0", small)
    spec = ModelSpec(name="efficientvit_m0", image_size=(64, 64), num_classes=3)
    model = randomise(build(spec)).eval()
    write_artefact(to_onnx(model, spec), random_manifest(spec, {}), tmp_path / "m0.onnx")
    proto = as_proto(read_artefact(tmp_path / "m0.onnx"))
    assert any(entry.key == MODULE_KEY for node in proto.graph.node for entry in node.metadata_props)
    for node in proto.graph.node:  # as in files of before modules were written into them
        del node.metadata_props[:]
    write_artefact(proto, random_manifest(spec, {}), tmp_path / "old.onnx")
    expected = watched(model, picture(64))
    assert [maps.shape[1] for maps in expected.values()] == [2, 2, 2]
    for file in ("m0.onnx", "old.onnx"):
        found: Maps = {}
        engine = WatchedArtefact(read_artefact(tmp_path / file), found.__setitem__)
        assert engine.run(picture(64).numpy()) == ()
        assert list(found) == list(expected)
        for name, maps in found.items():
            np.testing.assert_allclose(maps, expected[name], atol=1e-5)


def handmade(modules: dict[str, str]) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """(B, 4, 5) to a cascade of two heads, and to three heads at once; with weights. Softmaxes of other kinds
    are no attention. `modules` says whose the softmax with this output is."""
    names = ("m.0.attention.qkvs.0.conv", "m.0.attention.qkvs.1.conv", "model.1.attn.qkv")
    weights = {
        name: np.random.default_rng(index).standard_normal(((3, 5, 5) if index == 2 else (5, 5)), np.float32)
        for index, name in enumerate(names)
    }
    constants = {f"{name}.weight": value for name, value in weights.items()} | {"one": np.array([1])}
    nodes = [helper.make_node("Unsqueeze", ["images", "one"], ["x of heads"], name="unsqueeze")]
    for index, name in enumerate(names):
        x = "x of heads" if index == 2 else "images"
        nodes.append(helper.make_node("MatMul", [x, f"{name}.weight"], [f"q{index}"], name=f"q{index}"))
        nodes.append(helper.make_node("Relu", [f"q{index}"], [f"l{index}"], name=f"l{index}"))
        nodes.append(helper.make_node("Softmax", [f"l{index}"], [f"s{index}"], name=f"s{index}"))
    nodes.append(helper.make_node("Softmax", ["images"], ["gate"], name="gate", axis=1))
    nodes.append(helper.make_node("ReduceMean", ["images", "one"], ["mean"], name="mean", keepdims=0))
    nodes.append(helper.make_node("Softmax", ["mean"], ["logits"], name="logits"))
    for node in nodes:
        if node.name in modules:
            node.metadata_props.add(key=MODULE_KEY, value=modules[node.name])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 4, 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), weights


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        ({}, ["m.0.attention", "model.1.attn.qkv"]),
        ({"s0": "a", "s1": "a", "s2": "b", "logits": "head"}, ["a", "b"]),
    ],
)
def test_softmax_operators_belong_to_the_module_they_say_or_of_the_weights_before_them(
    modules: dict[str, str], names: list[str]
) -> None:
    proto, weights = handmade(modules)
    found: Maps = {}
    engine = WatchedArtefact(SimpleNamespace(data=proto.SerializeToString()), found.__setitem__)
    x = np.random.default_rng(9).standard_normal((2, 4, 5), np.float32)
    engine.run(x)
    first, second, three = (np.maximum(x[:, None] @ weight, 0) for weight in weights.values())
    assert list(found) == names
    np.testing.assert_allclose(found[names[0]], softmax(np.concatenate([first, second], axis=1)), atol=1e-6)
    np.testing.assert_allclose(found[names[1]], softmax(three), atol=1e-6)


def test_the_bundled_model_has_its_heads() -> None:
    found: Maps = {}
    WatchedArtefact(read_artefact(bundled_artefact()), found.__setitem__).run(picture(112).numpy())
    assert [maps.shape for maps in found.values()] == [(2, 2, 49, 49)] + [(2, 3, 16, 16)] * 2 + [
        (2, 3, 4, 4)
    ] * 3
    assert [*found][1] == "stages.1.blocks.0.mixer.branch.attention"
    assert all(np.allclose(maps.sum(3), 1, atol=1e-5) for maps in found.values())
