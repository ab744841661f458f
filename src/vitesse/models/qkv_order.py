"""Are foreign weights of linear attention in our channel order?

Ours, timm's and the original release's order is head by head, each q, then k, then v. Weights with all q
first, then all k, then all v have the same names and shapes, load without a complaint, and compute nothing
sensible. Their BatchNorm statistics give them away: read in the right order, a model reproduces the
variances that it had in training; read in the wrong one it does not.

Shape suffixes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitesse.errors import WeightsError
from vitesse.models.efficientvit_mit import MultiScaleLinearAttention

NUM_PROBES = 2
MARGIN = 0.5
"""Of the mean |log variance ratio| by which the other order must fit better.

A B0 after 300 steps on CIFAR-100 differs by 1.3 between the two orders, untrained weights by nearly nothing.
"""


def check_qkv_order(model: nn.Module, label: str) -> None:
    """Refuse weights of linear attention whose channels are all q, then all k, then all v.

    Args:
        model: with the weights; it stays as it is. Without linear attention there is nothing to check.
        label: what error messages call the file.

    Raises:
        WeightsError: the statistics fit the other order much better; the message names the first key.
    """
    name = next((name for name, m in model.named_modules() if isinstance(m, MultiScaleLinearAttention)), None)
    if name is None:
        return
    probes_BCHW = _pink_noise(cast(Any, model).spec)
    if _misfit(model, probes_BCHW) - _misfit(head_by_head(model), probes_BCHW) > MARGIN:
        raise WeightsError(
            f"{label}: {name}.qkv.weight: expected channels head by head, each q, then k, then v; by its "
            "BatchNorm statistics this file holds all q, then all k, then all v: reorder its qkv and "
            "aggregation weights first"
        )


def head_by_head(model: nn.Module) -> nn.Module:
    """A copy whose attention channels, all q, all k, all v before, are in head-by-head order."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, MultiScaleLinearAttention):
            convs = [module.qkv, *(conv for pair in module.aggregate for conv in cast(nn.Sequential, pair))]
            for conv in convs:
                weight = cast(nn.Conv2d, conv).weight
                by_kind = torch.unflatten(weight.data, 0, (3, -1, module.head_dim))
                weight.data = by_kind.transpose(0, 1).flatten(0, 2)
    return model


def _misfit(model: nn.Module, images_BCHW: Tensor) -> float:
    """Mean |log| of variance over expected variance, at the norm after each linear attention."""
    ratios: list[Tensor] = []

    def compare(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        expected_C = cast(Tensor, norm.running_var)
        ratios.append(torch.log((inputs[0].var((0, 2, 3)) + 1e-12) / (expected_C + 1e-12)).abs())

    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, MultiScaleLinearAttention):
            module.proj.bn.register_forward_pre_hook(compare)
    with torch.inference_mode():
        model(images_BCHW)
    return torch.cat(ratios).mean().item()


def _pink_noise(spec: Any) -> Tensor:
    """Noise with the spectrum of photographs, 1/f, mean 0 and variance 1: (B, C, H, W) float32."""
    height, width = spec.image_size
    generator = torch.Generator().manual_seed(0)
    white_BCHW = torch.randn(NUM_PROBES, spec.in_chans, height, width, generator=generator)
    frequency_HW = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    frequency_HW[0, 0] = 1
    pink_BCHW = torch.fft.ifft2(torch.fft.fft2(white_BCHW) / frequency_HW).real
    pink_BCHW = pink_BCHW - pink_BCHW.mean((2, 3), keepdim=True)
    probes_BCHW: Tensor = pink_BCHW / pink_BCHW.std((2, 3), keepdim=True)
    return probes_BCHW
