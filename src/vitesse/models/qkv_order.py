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

NUM_PROBES = 2
MARGIN, PLAUSIBLE = 0.5, 8.0
"""Of the mean |log variance ratio|: by how much the other order must fit better, and how well at least.

The right order of trained weights was at 2.4 to 5.5, the wrong one 0.6 to 1.9 above it; weights that were
never trained are at about 17 in both, give or take 1.
"""


def check_qkv_order(model: nn.Module, attention: type[nn.Module], label: str) -> None:
    """Refuse weights of linear attention whose channels are all q, then all k, then all v.

    Args:
        model: with the weights; it stays as it is. Without linear attention there is nothing to check.
        attention: the module that has `qkv`, `aggregate`, `proj` and `head_dim`.
        label: what error messages call the file.

    Raises:
        WeightsError: the statistics fit the other order much better; the message names the first key.
    """
    name = next((name for name, m in model.named_modules() if isinstance(m, attention)), None)
    if name is None:
        return
    probes_BCHW = _pink_noise(cast(Any, model).spec)
    ours = _misfit(model, attention, probes_BCHW)
    other = _misfit(head_by_head(model, attention), attention, probes_BCHW)
    if other < PLAUSIBLE and ours - other > MARGIN:
        raise WeightsError(
            f"{label}: {name}.qkv.weight: expected channels head by head, each q, then k, then v; by its "
            "BatchNorm statistics this file holds all q, then all k, then all v: reorder its qkv and "
            "aggregation weights first"
        )


def head_by_head(model: nn.Module, attention: type[nn.Module]) -> nn.Module:
    """A copy whose attention channels, all q, all k, all v before, are in head-by-head order."""
    model = copy.deepcopy(model)
    for module in _all_of(attention, model):
        for conv in (module.qkv, *(conv for pair in module.aggregate for conv in pair)):
            by_kind = torch.unflatten(conv.weight.data, 0, (3, -1, module.head_dim))
            conv.weight.data = by_kind.transpose(0, 1).flatten(0, 2)
    return model


def _all_of(attention: type[nn.Module], model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, attention)]


def _misfit(model: nn.Module, attention: type[nn.Module], images_BCHW: Tensor) -> float:
    """Mean |log| of variance over expected variance, at the norm after each linear attention."""
    ratios: list[Tensor] = []

    def compare(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        expected_C = cast(Tensor, norm.running_var)
        ratios.append(torch.log((inputs[0].var((0, 2, 3)) + 1e-12) / (expected_C + 1e-12)).abs())

    model = copy.deepcopy(model).eval()
    for module in _all_of(attention, model):
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
