"""ReLU linear attention against the formula over all pairs in float64, and where numbers get extreme."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vitesse.models import build
from vitesse.models import efficientvit_mit as mit
from vitesse.models.efficientvit_mit import CONFIGS, MultiScaleLinearAttention, relu_linear_attention
from vitesse.spec import ModelSpec

HEAD_DIM = 16


def triple(num_positions, seed=0, scale=1.0, heads=3):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 2, heads, HEAD_DIM, num_positions)
    return (torch.randn(shape, generator=generator) * scale).unbind()


def over_all_pairs(q, k, v):
    """Every query with every key, in float64, by the paper's equation 1."""
    q, k, v = F.relu(q.double()), F.relu(k.double()), v.double()
    similarity = torch.einsum("badi,badj->baij", q, k)
    return torch.einsum("baij,badj->badi", similarity, v) / (
        similarity.sum(3)[:, :, None] + mit.ATTENTION_EPS
    )


@pytest.mark.parametrize("num_positions", [1, 4, HEAD_DIM, HEAD_DIM + 1, 49, 200])
def test_equals_the_formula_over_all_pairs(num_positions):
    q, k, v = triple(num_positions)
    found = relu_linear_attention(q, k, v)
    torch.testing.assert_close(found.double(), over_all_pairs(q, k, v), rtol=1e-4, atol=1e-5)


def test_large_maps_never_form_all_pairs(monkeypatch):
    """At 4096 positions a map of all pairs would have 16.8 million entries a head."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    q, k, v = triple(4096)
    with Watch():
        relu_linear_attention(q, k, v)
    assert largest <= 2 * q.numel()


@settings(max_examples=40, deadline=None)
@given(num_positions=st.sampled_from([5, 40]), seed=st.integers(0, 10**6), factor=st.floats(0.1, 1000))
def test_invariants(num_positions, seed, factor):
    q, k, v = triple(num_positions, seed)
    out = relu_linear_attention(q, k, v)
    bound = v.abs().amax(3, keepdim=True)
    assert (out.abs() <= bound * 1.0001 + 1e-6).all(), "a weighted mean is no larger than what it averages"
    torch.testing.assert_close(
        relu_linear_attention(q, k, v * factor), out * factor, rtol=1e-3, atol=1e-4 * factor
    )
    order = torch.randperm(num_positions, generator=torch.Generator().manual_seed(seed))
    shuffled = relu_linear_attention(q[..., order], k[..., order], v[..., order])
    torch.testing.assert_close(shuffled, out[..., order], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("num_positions", [4, 100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_half_precision_is_computed_in_float32(num_positions, dtype, scale):
    """In float16 the sums over 100 positions of values around 100 would be infinite."""
    q, k, v = (t.to(dtype) for t in triple(num_positions, scale=scale))
    for context in (torch.autocast("cpu", enabled=False), torch.autocast("cpu", dtype=dtype)):
        with context:
            found = relu_linear_attention(q, k, v)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), over_all_pairs(q, k, v), rtol=1e-2, atol=1e-2 * scale)


def test_without_the_island_half_precision_would_fail(monkeypatch):
    """The control of the test above: autocast left on computes the products in float16."""
    monkeypatch.setattr(mit, "without_autocast", lambda x: contextlib.nullcontext())
    q, k, v = triple(100, scale=100.0)
    with torch.autocast("cpu", dtype=torch.float16):
        found = relu_linear_attention(q, k, v)
    assert not torch.isfinite(found).all()


@pytest.mark.parametrize("num_positions", [4, 100])
def test_queries_that_match_no_key_give_zero_and_a_bounded_gradient(num_positions):
    q, k, v = triple(num_positions)
    q = -q.abs()
    q[..., 0] = 1e-9
    q.requires_grad_()
    out = relu_linear_attention(q, k, v)
    assert (out[..., 1:] == 0).all()
    out.sum().backward()
    assert torch.isfinite(q.grad).all()
    assert q.grad.abs().max() < 1e9


@pytest.mark.parametrize("name", ["efficientvit_b0", "efficientvit_b0_single_scale"])
def test_channels_are_head_by_head_each_q_then_k_then_v(name, randomise):
    """The whole module, one head and one scale at a time, from the stored weights."""
    config = CONFIGS[name]
    dim, height, width = 2 * config.head_dim, 5, 6
    module = randomise(MultiScaleLinearAttention(dim, config)).double().eval()
    x_BCHW = torch.randn(2, dim, height, width, dtype=torch.float64)
    raw = F.conv2d(x_BCHW, module.qkv.weight)
    scales = [raw]
    for depthwise, grouped in module.aggregate:
        spread = F.conv2d(raw, depthwise.weight, padding=2, groups=3 * dim)
        mixed = [
            F.conv2d(part, weight)
            for part, weight in zip(
                spread.split(config.head_dim, 1), grouped.weight.split(config.head_dim), strict=True
            )
        ]
        scales.append(torch.cat(mixed, 1))
    outputs = []
    for scale in scales:
        for head in range(2):
            start = 3 * config.head_dim * head
            q, k, v = (
                scale[:, start + i * config.head_dim : start + (i + 1) * config.head_dim].flatten(2)[:, None]
                for i in range(3)
            )
            outputs.append(over_all_pairs(q, k, v)[:, 0])
    joined = torch.cat(outputs, 1).unflatten(2, (height, width))
    with torch.no_grad():
        torch.testing.assert_close(module(x_BCHW), module.proj(joined), rtol=1e-4, atol=1e-5)


def test_single_scale_has_no_aggregation():
    names = build(ModelSpec(name="efficientvit_b0_single_scale")).state_dict()
    assert not [name for name in names if "aggregate" in name]
    assert names["stages.2.1.attention.branch.proj.conv.weight"].shape == (64, 64, 1, 1)


@pytest.mark.parametrize(("name", "eps"), [("efficientvit_b0", 1e-5), ("efficientvit_l0", 1e-7)])
def test_every_norm_has_the_eps_of_its_series(name, eps):
    norms = [m.eps for m in build(ModelSpec(name=name)).modules() if hasattr(m, "eps")]
    assert norms
    assert set(norms) == {eps}


def test_initial_values_silence_every_residual():
    model = build(ModelSpec(name="efficientvit_b0")).eval()
    stage = model.stages[2]
    x_BCHW = stage[0](torch.randn(1, 32, 8, 8))
    assert torch.equal(stage[1:](x_BCHW), x_BCHW)
    assert model.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (model.head.classifier.bias == 0).all()


def test_stochastic_depth_rises_linearly_and_one_block_shares_one_rate():
    model = build(ModelSpec(name="efficientvit_b0", drop_path_rate=0.7))
    blocks = [block for stage in model.stages[2:] for block in stage[1:]]
    assert [block.attention.drop_path for block in blocks] == pytest.approx([0.4, 0.5, 0.6, 0.7])
    assert [block.ffn.drop_path for block in blocks] == pytest.approx([0.4, 0.5, 0.6, 0.7])
    assert [model.stages[i][1].drop_path for i in range(2)] == pytest.approx([0.1, 0.3])
