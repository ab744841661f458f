"""Cascaded group attention against loops written from the paper's description, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vitesse.models.efficientvit_msra import (
    CascadedGroupAttention,
    WindowAttention,
    resample_bias,
    window_size_for,
)

KEY_DIM = 4


def attention(num_heads=3, dim=12, resolution=(3, 4), randomise=None):
    module = CascadedGroupAttention(dim, num_heads, KEY_DIM, (5, 3, 1), resolution)
    return randomise(module).double().eval()


def conv_norm(layer, x_CHW):
    """A convolution and its BatchNorm on one image, from the stored numbers."""
    conv, norm = layer.conv, layer.bn
    y_CHW = F.conv2d(x_CHW[None], conv.weight, padding=conv.padding, groups=conv.groups)[0]
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return (y_CHW - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def by_hand(module, x_CHW):
    """Each head in turn: its split plus the last head's output; softmax over all positions, one at a time."""
    num_heads, (height, width) = len(module.qkvs), x_CHW.shape[1:]
    value_dim = x_CHW.shape[0] // num_heads
    positions = [(row, column) for row in range(height) for column in range(width)]
    heads = []
    for head in range(num_heads):
        split = x_CHW[head * value_dim : (head + 1) * value_dim]
        qkv = conv_norm(module.qkvs[head], split if head == 0 else split + heads[-1])
        q, k, v = qkv[:KEY_DIM], qkv[KEY_DIM : 2 * KEY_DIM], qkv[2 * KEY_DIM :]
        q = conv_norm(module.query_convs[head], q)
        out = torch.zeros_like(v)
        for row, column in positions:
            logits = []
            for other_row, other_column in positions:
                product = sum(
                    q[d, row, column].item() * k[d, other_row, other_column].item() for d in range(KEY_DIM)
                )
                bias = module.attention_bias_ARS[
                    head, abs(row - other_row), abs(column - other_column)
                ].item()
                logits.append(product / math.sqrt(KEY_DIM) + bias)
            total = sum(math.exp(logit) for logit in logits)
            for logit, (other_row, other_column) in zip(logits, positions, strict=True):
                out[:, row, column] += math.exp(logit) / total * v[:, other_row, other_column]
        heads.append(out)
    return conv_norm(module.proj[1], torch.cat(heads).clamp(min=0))


@pytest.mark.parametrize("resolution", [(3, 4), (4, 4), (1, 1)])
@torch.no_grad()
def test_attention_equals_the_loops(resolution, randomise):
    module = attention(resolution=resolution, randomise=randomise)
    x_BCHW = torch.randn(2, 12, *resolution, dtype=torch.float64)
    expected = torch.stack([by_hand(module, x_CHW) for x_CHW in x_BCHW])
    torch.testing.assert_close(module(x_BCHW), expected, rtol=0, atol=1e-12)


def test_bias_of_a_pair_is_that_of_its_absolute_offset():
    module = CascadedGroupAttention(12, 2, KEY_DIM, (5, 3), (3, 4))
    table = torch.nn.init.normal_(module.attention_bias_ARS)
    gathered = module.gathered_bias((3, 4))
    for i in range(12):
        for j in range(12):
            offset = abs(i // 4 - j // 4), abs(i % 4 - j % 4)
            assert torch.equal(gathered[:, i, j], table[:, offset[0], offset[1]])


@torch.no_grad()
def test_windows_do_not_see_each_other_but_see_padding(randomise):
    """A 3x5 map in windows of 2: zero-padded right and bottom to 4x6, each window by itself, cropped."""
    module = attention(resolution=(2, 2), randomise=randomise)
    x_BCHW = torch.randn(1, 12, 3, 5, dtype=torch.float64)
    padded = torch.zeros(12, 4, 6, dtype=torch.float64)
    padded[:, :3, :5] = x_BCHW[0]
    expected = torch.zeros_like(padded)
    for row in (0, 2):
        for column in (0, 2, 4):
            window = padded[:, row : row + 2, column : column + 2]
            expected[:, row : row + 2, column : column + 2] = by_hand(module, window)
    torch.testing.assert_close(WindowAttention(module, 2)(x_BCHW)[0], expected[:, :3, :5], rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_map_no_larger_than_a_window_is_not_padded(randomise):
    module = attention(resolution=(3, 4), randomise=randomise)
    x_BCHW = torch.randn(1, 12, 3, 4, dtype=torch.float64)
    assert torch.equal(WindowAttention(module, 4)(x_BCHW), module(x_BCHW))


def test_resampling_a_table_keeps_its_level_and_its_size_on_request():
    table = torch.randn(2, 7, 7)
    assert resample_bias(table, (7, 7)) is table
    torch.testing.assert_close(
        resample_bias(torch.full((1, 7, 7), 3.0), (12, 5)), torch.full((1, 12, 5), 3.0)
    )
    expected = nn.functional.interpolate(table[None], size=(12, 12), mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(resample_bias(table, (12, 12)), expected)


@pytest.mark.parametrize(
    ("image_size", "window"),
    [((224, 224), 7), ((256, 256), 7), ((384, 384), 12), ((512, 512), 16), ((192, 320), 7), ((288, 384), 12)],
)
def test_window_by_image_size(image_size, window):
    assert window_size_for(image_size) == window
