"""One model spread over processes: each keeps a part of its weights, gradients and moments."""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from vitesse.errors import ConfigError
from vitesse.models import build
from vitesse.train.checkpoint import ON_ALL
from vitesse.weights.files import spec_of

SMALLEST_BLOCK, LARGEST_BLOCK = 0.01, 0.25
"""Shares of a model's parameters that are worth gathering by themselves, and few enough to be held whole."""


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Leave this process a part of every parameter, in place; passes gather the others block by block.

    Raises:
        ConfigError: a parameter is a single number, of which there are no parts.
    """
    for name, parameter in model.named_parameters():
        if not parameter.ndim:
            raise ConfigError(f"recipe shard: {name} of {spec_of(model).name} has no parts; set shard=false")
    model.to(memory_format=torch.contiguous_format)  # torch spreads no other
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in (*_blocks(model, _count(model)), model):
        fully_shard(block, mesh=mesh)


def whole(model: nn.Module) -> nn.Module:
    """The model itself, or where it is spread a copy that is not; all processes call it together."""
    if not isinstance(model, FSDPModule):
        return model
    copy, forward = build(spec_of(model)), cast(MethodType, model.forward)
    copy.forward = MethodType(forward.__func__, copy)  # type: ignore[method-assign]  # in the same precision
    copy.load_state_dict(get_model_state_dict(model, options=ON_ALL))
    return copy.to(next(model.parameters()).device)


def gathered(value: Tensor) -> Tensor:
    """A tensor whole, also where its parts are spread; all processes call it together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def own_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor that may be spread, in the same memory."""
    return value.to_local() if isinstance(value, DTensor) else value


def _blocks(module: nn.Module, total: int) -> Iterator[nn.Module]:
    """The outermost members of sequences, which are run as a whole, that are neither small nor large."""
    runs_members = isinstance(module, nn.Sequential | nn.ModuleList)
    for child in module.children():
        is_run = runs_members and not isinstance(child, nn.ModuleList | nn.ModuleDict)
        if is_run and SMALLEST_BLOCK <= _count(child) / total <= LARGEST_BLOCK:
            yield child
        else:
            yield from _blocks(child, total)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
