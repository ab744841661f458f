"""Attention weights are computed in float32 whatever autocast says: logits beyond float16 stay finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vitesse.data.sources import open_source, take
from vitesse.models import efficientvit_msra, shvit
from vitesse.models.loading import load_torch
from vitesse.runtime.imaging import load_tensor

KEY_DIM = 16
MODULES = [
    (efficientvit_msra, lambda: efficientvit_msra.CascadedGroupAttention(32, 2, KEY_DIM, (3, 3), (7, 7))),
    (shvit, lambda: shvit.SingleHeadSelfAttention(64, 32, KEY_DIM)),
]
CASES = pytest.mark.parametrize(("source", "make"), MODULES, ids=["cascaded group", "single head"])


def with_large_logits(module: nn.Module) -> nn.Module:
    """Queries and keys of a thousand: their products over 16 channels pass 65504, the end of float16."""
    torch.manual_seed(0)
    for name, child in module.named_modules():
        if isinstance(child, nn.BatchNorm2d) and "qkv" in name:
            nn.init.constant_(child.weight[: 2 * KEY_DIM], 1000.0)
    return module.eval()


@CASES
@torch.no_grad()
def test_large_logits_stay_finite(source: ModuleType, make: Callable[[], nn.Module]) -> None:
    module = with_large_logits(make())
    x_BCHW = torch.randn(2, module.proj[1].conv.in_channels, 7, 7)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.isfinite(module(x_BCHW)).all()


@CASES
@torch.no_grad()
def test_without_the_float32_region_they_would_not(
    source: ModuleType, make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    monkeypatch.setattr(source, "without_autocast", lambda x: contextlib.nullcontext())
    monkeypatch.setattr(source, "upcast", lambda x: x)
    module = with_large_logits(make())
    x_BCHW = torch.randn(2, module.proj[1].conv.in_channels, 7, 7)
    with torch.autocast("cpu", dtype=torch.float16):
        assert not torch.isfinite(module(x_BCHW)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_trained_weights_keep_their_logits(data_dir: Path, dtype: torch.dtype) -> None:
    """DeiT-tiny on photos; `benchmarks/robustness.py` has the table of all families and sizes."""
    model, manifest = load_torch(data_dir / "deit_tiny_in1k_lnq_fp16.safetensors", "vit_tiny_patch16")
    pictures = take(open_source(data_dir / "in1k_val500"), 8)
    x_BCHW = torch.from_numpy(
        np.stack([load_tensor(pictures.read(i), manifest.preprocess) for i in range(8)])
    )
    expected = model.eval()(x_BCHW)
    with torch.autocast("cpu", dtype=dtype):
        found = model(x_BCHW).float()
    assert F.cosine_similarity(found, expected).min() >= 0.999
