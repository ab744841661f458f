"""SHViT's attention from the paper's description in float64."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from vitesse.models import build
from vitesse.models.shvit import SingleHeadSelfAttention
from vitesse.spec import ModelSpec


def conv_norm(layer, x_BCHW):
    norm = layer.bn
    y_BCHW = F.conv2d(x_BCHW, layer.conv.weight)
    return F.batch_norm(y_BCHW, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


@torch.no_grad()
def test_one_head_attends_on_a_part_and_the_rest_passes_by(randomise):
    dim, partial, key_dim = 20, 6, 4
    module = randomise(SingleHeadSelfAttention(dim, partial, key_dim)).double().eval()
    torch.nn.init.normal_(module.norm.weight)
    torch.nn.init.normal_(module.norm.bias)
    x_BCHW = torch.randn(2, dim, 3, 5, dtype=torch.float64)
    attended = x_BCHW[:, :partial]
    mean = attended.mean((1, 2, 3), keepdim=True)
    var = attended.var((1, 2, 3), unbiased=False, keepdim=True)
    gain, shift = module.norm.weight[:, None, None], module.norm.bias[:, None, None]
    normed = (attended - mean) / torch.sqrt(var + 1e-5) * gain + shift
    qkv = conv_norm(module.qkv, normed).flatten(2)
    q, k, v = qkv[:, :key_dim], qkv[:, key_dim : 2 * key_dim], qkv[:, 2 * key_dim :]
    out = torch.zeros_like(v)
    for image in range(2):
        for i in range(15):
            weights = torch.softmax(q[image, :, i] @ k[image] / math.sqrt(key_dim), 0)
            out[image, :, i] = v[image] @ weights
    joined = torch.cat([out.unflatten(2, (3, 5)), x_BCHW[:, partial:]], 1)
    expected = conv_norm(module.proj[1], joined.relu())
    torch.testing.assert_close(module(x_BCHW), expected)


def test_only_the_first_stage_has_no_attention():
    model = build(ModelSpec(name="shvit_s1"))
    attends = [[hasattr(block, "mixer") for block in stage.blocks] for stage in model.stages]
    assert attends == [[False] * 2, [True] * 4, [True] * 5]


def test_squeeze_width_is_rounded_to_a_multiple_of_8():
    merge = build(ModelSpec(name="shvit_s2")).stages[2].subsample.merge
    assert merge.se.reduce.weight.shape == (312, 1232, 1, 1)


def test_initial_values():
    model = build(ModelSpec(name="shvit_s1"))
    block, subsample = model.stages[1].blocks[0], model.stages[1].subsample
    assert (block.dw.branch.bn.weight == 0).all()
    assert (block.mixer.branch.proj[1].bn.weight == 0).all()
    assert (block.ffn.branch.project.bn.weight == 0).all()
    assert (subsample.dw0.branch.bn.weight == 1).all()
