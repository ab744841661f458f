"""ExecuTorch programs (`.pte`) for phones and boards, computed by its XNNPACK delegate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitesse.errors import ExportError, require
from vitesse.export.onnx import quiet
from vitesse.export.program import captured
from vitesse.spec import ModelSpec

SUFFIX = ".pte"
MIN_COVERAGE = 0.9
"""Share of the operators that the delegate must take; the rest run on slow reference kernels."""


def write(model: nn.Module, spec: ModelSpec, path: Path, *, force: bool = False) -> Mapping[str, Any]:
    """Write a folded model for pictures one by one; gives `delegated`, the share of operators in XNNPACK.

    Raises:
        ExportError: torch cannot trace the model, ExecuTorch cannot lower it, or the delegate takes less than
            `MIN_COVERAGE` of the operators and not `force`.
        MissingExtraError: the extra `executorch` is not installed.
    """
    require("executorch", "executorch")
    program = captured(model, spec)
    with quiet(), _native_messages_dropped():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            coverage, left = delegated(lowered.exported_program().graph_module)
            content = lowered.to_executorch().buffer
        except Exception as error:
            raise ExportError(
                f"{spec.name}: ExecuTorch cannot lower it: {' '.join(str(error).split())[:300]}"
            ) from error
    if coverage < MIN_COVERAGE and not force:
        raise ExportError(
            f"{spec.name}: XNNPACK takes {coverage:.0%} of the operators, expected at least "
            f"{MIN_COVERAGE:.0%}; left are {', '.join(left)}; nothing was written, --force writes it anyway"
        )
    path.write_bytes(content)
    return {"delegated": round(coverage, 4), "not_delegated": left}


def delegated(lowered: torch.fx.GraphModule) -> tuple[float, list[str]]:
    """The share of a lowered program's operators inside delegates, and the names of those outside.

    Taking one output of several is no operator.
    """
    inside, outside = 0, []
    for node in lowered.graph.nodes:
        part = getattr(lowered, node.target) if node.op == "get_attr" else None
        if part is not None and hasattr(part, "original_module"):
            inside += len(_operators(part.original_module.graph))
    for name in _operators(lowered.graph):
        if "executorch_call_delegate" not in name:
            outside.append(name)
    return inside / max(1, inside + len(outside)), sorted(set(outside))


def _operators(graph: torch.fx.Graph) -> list[str]:
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    names = [str(getattr(target, "__name__", target)) for target in targets]
    return [name for name in names if name != "getitem"]


def run(path: Path, images_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (B, K) of a written program, one picture at a time, on this machine.

    Raises:
        ExportError: ExecuTorch cannot run it, for instance because it has no kernel for an operator.
    """
    with quiet(), _native_messages_dropped():
        from executorch.runtime import Runtime

        try:
            method = Runtime.get().load_program(path).load_method("forward")
            rows = [method.execute([torch.from_numpy(x_CHW[None])])[0].clone() for x_CHW in images_BCHW]
        except RuntimeError as error:
            raise ExportError(
                f"{path.name}: ExecuTorch cannot run it here: {' '.join(str(error).split())[:300]}"
            ) from error
    return torch.cat(rows).numpy()


@contextlib.contextmanager
def _native_messages_dropped() -> Iterator[None]:
    """ExecuTorch's native code reports its search for ARM processors on stderr, on every machine."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
