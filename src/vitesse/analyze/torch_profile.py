"""Profiles of eager torch in Vitesse's format."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from vitesse.analyze.kinds import kind_of
from vitesse.analyze.profile import Operator, Shaped

MARK = "module:"
_OPERATOR = "aten::"
_COPIES = ("aten::clone", "aten::_to_copy")
"""Copies that other operators make for themselves, which are counted as such."""
_QUIET = ("KINETO_LOG_LEVEL", "99")
"""Read when the profiler first starts, which else tells stderr of its steps."""


class TorchProfiler:
    """Runs a model on the CPU under torch's profiler, every module marked by its name."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._profiles: list[Any] = []

    @torch.inference_mode()
    def run(self, batch_BCHW: NDArray[np.float32]) -> float:
        """One more run; gives its seconds."""
        x_BCHW = torch.from_numpy(batch_BCHW)
        os.environ.setdefault(*_QUIET)
        with (
            _marked(self._model),
            profile(activities=[ProfilerActivity.CPU], record_shapes=True, profile_memory=True) as profiled,
        ):
            begin = time.perf_counter()
            self._model(x_BCHW)
            seconds = time.perf_counter() - begin
        self._profiles.append(profiled)
        return seconds

    def runs(self) -> list[list[Operator]]:
        """The operators of every run."""
        return [read_torch(profiled.events()) for profiled in self._profiles]


@contextlib.contextmanager
def _marked(model: nn.Module) -> Iterator[None]:
    """Every call of a module inside a `record_function` of its dotted name."""
    open_marks: list[Any] = []
    hooks = []

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            open_marks.append(record_function(MARK + name))
            open_marks[-1].__enter__()

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        open_marks.pop().__exit__(None, None, None)

    for name, module in model.named_modules():
        hooks += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def read_torch(events: Sequence[Any]) -> list[Operator]:
    """The operators of one run from the events of torch's profiler, with shapes and memory.

    An operator is what a module calls; copies that it makes on the way are operators of their own.

    Args:
        events: `torch.autograd.profiler_util.FunctionEvent`, in the order of their start.
    """
    return [operator for event in events if event.cpu_parent is None for operator in _operators_of(event, "")]


def _operators_of(event: Any, module: str) -> Iterator[Operator]:
    if event.name.startswith(MARK):
        for child in event.cpu_children:
            yield from _operators_of(child, event.name.removeprefix(MARK))
    elif event.name.startswith(_OPERATOR):
        copies = [] if event.name in _COPIES else list(_copies_in(event))
        for copy in copies:
            yield _operator(copy, module, copy.cpu_time_total)
        copied_us = sum(copy.cpu_time_total for copy in copies)
        yield _operator(event, module, event.cpu_time_total - copied_us)


def _copies_in(event: Any) -> Iterator[Any]:
    for child in event.cpu_children:
        if child.name in _COPIES:
            yield child
        else:
            yield from _copies_in(child)


def _operator(event: Any, module: str, microseconds: float) -> Operator:
    inputs: tuple[Shaped, ...] = tuple(Shaped(tuple(sides)) for sides in event.input_shapes if sides)
    if event.cpu_memory_usage > 0:  # what is left of the memory that it took is its output
        outputs: tuple[Shaped, ...] = (Shaped((event.cpu_memory_usage // 4,)),)
    elif event.name.endswith("_"):
        outputs = inputs[:1]
    else:  # a view
        inputs = outputs = ()
    return Operator(
        name=event.name,
        type=event.name,
        kind=kind_of(event.name),
        module=module,
        seconds=microseconds / 1e6,
        inputs=inputs or outputs,  # those of a concatenation are not said, and of its output's size
        outputs=outputs,
    )
