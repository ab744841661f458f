"""The feature pyramid against torchvision's, and the levels that the papers add to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from vitesse.heads.fpn import FeaturePyramid
from vitesse.spec import FeatureSpec

CHANNELS = 8


def specs(*strides: int) -> tuple[FeatureSpec, ...]:
    return tuple(FeatureSpec(name=f"s{s}", channels=3 + i, stride=s) for i, s in enumerate(strides))


def maps(features: tuple[FeatureSpec, ...], height: int, width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f.name: torch.randn(2, f.channels, -(-height // f.stride), -(-width // f.stride), generator=generator)
        for f in features
    }


@pytest.mark.parametrize("size", [(64, 96), (100, 65), (33, 161)])
def test_top_down_sums_are_those_of_torchvision(size: tuple[int, int]) -> None:
    features = specs(8, 16, 32)
    ours = FeaturePyramid(features, (8, 16, 32), CHANNELS)
    theirs = FeaturePyramidNetwork([f.channels for f in features], CHANNELS)
    for i in range(3):
        theirs.inner_blocks[i][0].load_state_dict(ours.laterals[i].state_dict())
        theirs.layer_blocks[i][0].load_state_dict(ours.outputs[i].state_dict())
    x = maps(features, *size)
    for found, expected in zip(ours(x), theirs(x).values(), strict=True):
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_finer_levels_are_transposed_convolutions_of_the_finest_sum() -> None:
    features = specs(16, 32, 64)
    pyramid, x = FeaturePyramid(features, (4, 8, 16, 32, 64), CHANNELS), maps(features, 64, 128)
    coarse = FeaturePyramid(features, (16, 32, 64), CHANNELS)
    coarse.load_state_dict(
        {
            name.replace("outputs.2", "outputs.0")
            .replace("outputs.3", "outputs.1")
            .replace("outputs.4", "outputs.2"): v
            for name, v in pyramid.state_dict().items()
            if not name.startswith(("upsamples", "outputs.0", "outputs.1"))
        }
    )
    levels = pyramid(x)
    for found, expected in zip(levels[2:], coarse(x), strict=True):
        assert torch.equal(found, expected)
    sums = [lateral(x[f.name]) for lateral, f in zip(pyramid.laterals, features, strict=True)]
    finest = sums[0] + F.interpolate(
        sums[1] + F.interpolate(sums[2], scale_factor=2.0), scale_factor=2.0, mode="nearest"
    )
    eight, four = pyramid.upsamples
    torch.testing.assert_close(levels[1], pyramid.outputs[1](eight(finest)))
    torch.testing.assert_close(levels[0], pyramid.outputs[0](four(eight(finest))))
    assert [tuple(level.shape[2:]) for level in levels] == [(16, 32), (8, 16), (4, 8), (2, 4), (1, 2)]


@pytest.mark.parametrize(("strides", "coarser"), [((16, 32, 64), 1), ((4, 8, 16, 32), 2)])
@torch.no_grad()
def test_coarser_levels_begin_at_the_backbone_s_last_map(strides: tuple[int, ...], coarser: int) -> None:
    features = specs(*strides)
    pyramid, x = FeaturePyramid(features, (8, 16, 32, 64, 128), CHANNELS), maps(features, 130, 200)
    levels = pyramid(x)
    assert len(pyramid.coarser) == coarser
    last = x[features[-1].name]
    for conv, level in zip(pyramid.coarser, levels[-coarser:], strict=True):
        last = F.conv2d(last, conv.weight, conv.bias, stride=2, padding=1)  # type: ignore[arg-type]
        torch.testing.assert_close(level, last)


def test_maps_too_fine_are_left_out_and_too_coarse_ones_still_join_in() -> None:
    features = specs(4, 8, 16, 32, 64)
    pyramid, x = FeaturePyramid(features, (8, 16, 32), CHANNELS), maps(features, 64, 64)
    levels = pyramid(x)
    assert len(levels) == 3
    assert len(pyramid.laterals) == 4
    levels[0].sum().backward()
    assert pyramid.laterals[3].weight.grad.abs().sum() > 0
    assert "s4" not in pyramid.names


@pytest.mark.parametrize("height", [17, 31, 48, 63, 65])
def test_every_level_covers_the_image(height: int) -> None:
    features = specs(16, 32, 64)
    pyramid = FeaturePyramid(features, (4, 8, 16, 32, 64, 128), CHANNELS)
    for level, stride in zip(pyramid(maps(features, height, 80)), pyramid.strides, strict=True):
        assert level.shape[2] * stride >= height
        assert level.shape[3] * stride >= 80
