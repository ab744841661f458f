"""Checkpoints of a run: `model.safetensors` to use, `state.safetensors` to go on from.

Each file is complete or absent at any moment; resuming reads the state file alone. No pickles.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from vitesse.errors import TrainingError
from vitesse.files import atomic_path

STATE_FILE = "state.safetensors"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is: optimisation steps done, and the best accuracy seen."""

    step: int = 0
    best_top1: float = -1.0
    seconds: float = 0.0


def save_state(
    folder: Path, progress: Progress, modules: dict[str, nn.Module], optimizer: Optimizer, run: dict[str, Any]
) -> None:
    """Write everything that a resume needs; `run` identifies the run (recipe, model, data)."""
    tensors = {
        f"{name}.{key}": value.detach().contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value.detach().contiguous() for key, value in moments.items()}
    metadata = {"progress": json.dumps(vars(progress)), "run": json.dumps(run, sort_keys=True)}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / STATE_FILE) as path:
        save_file({key: value.clone() for key, value in tensors.items()}, path, metadata)


def load_state(
    folder: Path, modules: dict[str, nn.Module], optimizer: Optimizer, run: dict[str, Any]
) -> Progress | None:
    """Continue from `save_state`'s file; None where there is none.

    Raises:
        TrainingError: the file is damaged, or belongs to another run.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        progress, saved_run = Progress(**json.loads(metadata["progress"])), json.loads(metadata["run"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise TrainingError(
            f"{path}: cannot resume, the file is damaged ({error}); remove it to start anew"
        ) from error
    _check_same_run(path, saved_run, json.loads(json.dumps(run)))
    for name, module in modules.items():
        module.load_state_dict(_under(tensors, f"{name}."))
    _load_optimizer(optimizer, _under(tensors, "optimizer."))
    return progress


def _check_same_run(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    flat_saved, flat_now = _flat(saved), _flat(now)
    changed = [
        f"{key} was {flat_saved.get(key)!r}, now {flat_now.get(key)!r}"
        for key in sorted(flat_saved | flat_now)
        if flat_saved.get(key) != flat_now.get(key)
    ]
    if changed:
        raise TrainingError(
            f"{path} is of another run ({'; '.join(changed)}); give another --out, or the same options"
        )


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in run.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def cpu_copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A detached copy of a state dict on the CPU."""
    return {key: torch.clone(value.detach()).cpu() for key, value in state.items()}
