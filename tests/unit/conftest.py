"""What tests of models and weights share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from vitesse.heads.promptable import PromptConfig
from vitesse.models import build, efficientvit_mit, efficientvit_sam
from vitesse.models.promptable import PromptableModel
from vitesse.spec import ModelSpec


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On a busy machine torch's threads wait for each other: seven times slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def narrow_sam(randomise: Callable[[nn.Module], nn.Module]) -> Callable[..., PromptableModel]:
    """A function that builds EfficientViT-SAM L0 with few and narrow blocks, for images of 128 pixels.

    While the given patch lasts, that is what the name means.
    """
    narrow = dataclasses.replace(
        efficientvit_mit.CONFIGS["efficientvit_l0"],
        embed_dim=(8, 8, 8, 16, 32),
        depths=(1, 1, 1, 1, 1),
        head_dim=8,
    )
    prompt = PromptConfig(width=32, grid=16, num_heads=4, mlp_width=48)
    config = efficientvit_sam.SamConfig(backbone="narrow", depth=1, prompt=prompt)

    def make(patch: pytest.MonkeyPatch, **options: Any) -> PromptableModel:
        patch.setitem(efficientvit_mit.CONFIGS, "narrow", narrow)
        patch.setitem(efficientvit_sam.CONFIGS, "efficientvit_sam_l0", config)
        torch.manual_seed(0)
        model = build(ModelSpec(name="efficientvit_sam_l0", image_size=(128, 128), **options))
        return randomise(model).eval()

    return make


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Gives a model statistics, gains and bias tables as training would: nothing stays 0 or 1."""

    def apply(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
                nn.init.uniform_(module.running_mean, -0.5, 0.5, generator=generator)
                nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
        for name, parameter in model.named_parameters():
            if "attention_bias" in name:
                nn.init.normal_(parameter, generator=generator)
        return model

    return apply


@pytest.fixture(scope="session")
def laid_over() -> Callable[[NDArray[Any], NDArray[Any], tuple[int, int]], NDArray[np.float64]]:
    """A mask (h, w) over a box (left, top, right, bottom) as probabilities of a picture (height, width), by
    the formula of Mask R-CNN's own code: sampled at the centre of every pixel, zero around the mask."""

    def sample(mask_hw: NDArray[Any], corners: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
        left, top, right, bottom = corners.tolist()
        y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in size)
        grid_y = ((y - top) / (bottom - top) * 2 - 1)[:, None].expand(size)
        grid_x = ((x - left) / (right - left) * 2 - 1)[None].expand(size)
        mask = torch.from_numpy(mask_hw).double()[None, None]
        grid = torch.stack([grid_x, grid_y], -1)[None]
        return nn.functional.grid_sample(mask, grid, align_corners=False)[0, 0].numpy()

    return sample


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """timm, whose import costs ten seconds."""
    return pytest.importorskip("timm")
