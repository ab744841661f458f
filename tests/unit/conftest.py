"""What tests of models and weights share."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On a busy machine torch's threads wait for each other: seven times slower than one."""
    torch.set_num_threads(1)


@pytest.fixture
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
def timm() -> ModuleType:
    """timm, whose import costs ten seconds."""
    return pytest.importorskip("timm")
