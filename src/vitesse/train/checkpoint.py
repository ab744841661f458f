"""Checkpoints of a run: `model.safetensors` to use, `state.safetensors` to go on from.

Each file is complete or absent at any moment; resuming reads the state file alone. No pickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from vitesse.errors import TrainingError
from vitesse.weights.files import save_tensors

STATE_FILE = "state.safetensors"
HEADER = ("progress", "run", "provenance")
ON_FIRST = StateDictOptions(full_state_dict=True, cpu_offload=True)
ON_ALL = StateDictOptions(full_state_dict=True)
"""Whole tensors: on the CPU of the first process, where the others get nothing, or on the devices of all."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        step: optimisation steps done, the bad ones among them.
        epochs: epochs that are trained, evaluated where that was due, and recorded.
        best_score: of the best weights, 0 to 1; -1 before the first evaluation.
        judged_on: fingerprint of the pictures that `best_score` was found with.
        seconds: time spent in training, over all sessions.
        bad_steps, bad_in_a_row: steps that were skipped because loss or gradient was not finite; and of
            these the last ones in a row.
        loss_sum, loss_count: of the epoch that is going on, without bad steps.
    """

    step: int = 0
    epochs: int = 0
    best_score: float = -1.0
    judged_on: str = ""
    seconds: float = 0.0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0

    def after_step(self, loss: float, bad: bool) -> Progress:
        """With one more step done."""
        return replace(
            self,
            step=self.step + 1,
            bad_steps=self.bad_steps + bad,
            bad_in_a_row=self.bad_in_a_row + 1 if bad else 0,
            loss_sum=self.loss_sum + (0.0 if bad else loss),
            loss_count=self.loss_count + (not bad),
        )


class Checkpoints:
    """The state of a run in `FOLDER/last`, the same whatever the number of processes.

    Args:
        folder: of the checkpoints.
        model, optimizer: as prepared by accelerate.
        average: the moving average of the weights, or None.
        run: what identifies the run: recipe, model, data.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        average: nn.Module | None,
        run: Mapping[str, Any],
    ) -> None:
        self.folder, self.accelerator, self.run = folder, accelerator, dict(run)
        self.model, self.optimizer, self.average = model, optimizer.optimizer, average

    def save(self, progress: Progress, made: Mapping[str, Any], first: Callable[[], None]) -> None:
        """Write the state, whole or not at all, with a digest of it; all processes call it together.

        Args:
            made: provenance, for people to read.
            first: writes what the state must never be ahead of; called in the main process.

        Raises:
            OSError: the file cannot be written; the old one stays.
        """
        tensors = gather_training(self.model, self.optimizer)
        if self.average is not None:
            average: dict[str, Any] = get_model_state_dict(self.average, options=ON_FIRST)
            tensors |= {f"ema.{key}": value for key, value in average.items()}
        if not self.accelerator.is_main_process:
            return
        if self.accelerator.scaler is not None:
            scaler = self.accelerator.scaler.state_dict()
            tensors |= {f"scaler.{key}": torch.tensor(value) for key, value in scaler.items()}
        values = {"progress": vars(progress), "run": self.run, "provenance": made}
        header = {key: json.dumps(values[key]) for key in HEADER}
        header["sha256"] = digest(tensors, *header.values())
        first()
        save_tensors(self.folder / "last" / STATE_FILE, tensors, header)

    def exist(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.folder / "last" / STATE_FILE).exists()

    def resume(self) -> Progress | None:
        """Put back the state of the run; None where there is none.

        Raises:
            TrainingError: the file is damaged, or belongs to another run.
        """
        if not is_to_go_on(self.folder, self.run):
            return None
        progress, tensors = _read(self.folder / "last" / STATE_FILE)
        restore_training(tensors, self.model, self.optimizer)
        if self.average is not None:
            kept: dict[str, Any] = _under("ema.", tensors)
            set_model_state_dict(self.average, kept, options=ON_ALL)
        if self.accelerator.scaler is not None:
            scaler = {key: value.item() for key, value in _under("scaler.", tensors).items()}
            self.accelerator.scaler.load_state_dict(scaler)
        return progress


def is_to_go_on(folder: Path, run: Mapping[str, Any]) -> bool:
    """Whether there is a state to go on from; only its header is read.

    Args:
        folder: of the checkpoints.
        run: what identifies the run, as for `Checkpoints`.

    Raises:
        TrainingError: the file is damaged, or belongs to another run.
    """
    path = folder / "last" / STATE_FILE
    if not path.exists():
        return False
    with _opened(path) as file:
        saved = json.loads(file.metadata()["run"])
    _check_same_run(path, saved, json.loads(json.dumps(run)))
    return True


def read_progress(path: Path) -> Progress:
    """How far the run is whose state file lies there.

    Raises:
        TrainingError: the file is damaged.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[Progress, dict[str, Tensor]]:
    with _opened(path) as file:
        header = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if header["sha256"] != digest(tensors, *(header[key] for key in HEADER)):
            raise ValueError("its digest does not fit")
        return Progress(**json.loads(header["progress"])), tensors


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """
    Raises:
        TrainingError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise TrainingError(
            f"{path}: cannot resume, the file is damaged ({error}); remove it to start anew"
        ) from error


def gather_training(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors of a model and its AdamW, whole on the CPU, also where they are spread over processes.

    All processes call it together; only the first gets them all.
    """
    weights, moments = get_state_dict(model, optimizer, options=ON_FIRST)
    tensors: dict[str, Any] = {f"model.{name}": value for name, value in weights.items()}
    state: Any = moments.get("state", {})
    for name, values in state.items():
        tensors |= {f"optimizer.{name}:{kind}": value for kind, value in values.items()}
    return tensors


def restore_training(tensors: Mapping[str, Tensor], model: nn.Module, optimizer: Optimizer) -> None:
    """Put back what `gather_training` gave, whatever the number of processes then and now."""
    state: dict[str, Any] = {}
    for key, value in _under("optimizer.", tensors).items():
        name, _, kind = key.rpartition(":")
        state.setdefault(name, {})[kind] = value
    weights: dict[str, Any] = _under("model.", tensors)
    _, fresh = get_state_dict(model, optimizer, options=ON_ALL)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=weights,
        optim_state_dict={"state": state, "param_groups": fresh["param_groups"]},
        options=ON_ALL,
    )
    _lay_out_like_weights(optimizer)


def _lay_out_like_weights(optimizer: Optimizer) -> None:
    """Moments in the memory layout of their weights: the fused update pairs them by their place in memory."""
    for parameter, moments in optimizer.state.items():
        for kind, value in moments.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                moments[kind] = torch.empty_like(parameter).copy_(value)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def digest(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """A sha256 of named tensors and texts."""
    found = hashlib.sha256("\0".join(texts).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _check_same_run(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    flat_saved, flat_now = _flat(saved), _flat(now)
    changed = [
        f"{key} was {flat_saved.get(key)!r}, now {flat_now.get(key)!r}"
        for key in sorted(flat_saved | flat_now)
        if flat_saved.get(key) != flat_now.get(key)
    ]
    if changed:
        _read(path)  # or is damaged, which explains it
        raise TrainingError(
            f"{path} is of another run ({'; '.join(changed)}); give another --out, or the same options"
        )


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in run.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat
