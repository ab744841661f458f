"""Checkpoint files: safetensors whose header says, under `vitesse`, which model they are the weights of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitesse.errors import ConfigError, WeightsError, did_you_mean
from vitesse.files import atomic_path
from vitesse.spec import ModelSpec, from_mapping, to_mapping

HEADER = "vitesse"
METADATA_KEYS = ("class_names", "preprocess", "provenance")
CONTAINERS = ("model", "state_dict")
MAX_CONTAINERS = 4


def save_weights(path: str | Path, model: nn.Module, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a model's weights and buffers with its spec, whole or not at all.

    Args:
        path: the `.safetensors` file; an existing one is replaced.
        model: anything with a `spec`.
        metadata: plain JSON values: `class_names`, `preprocess` (a `PreprocessSpec` mapping), `provenance`.

    Raises:
        WeightsError: the model has no spec, or metadata holds an unknown key.
        OSError: the file cannot be written; the old one stays.
    """
    for key in metadata or {}:
        if key not in METADATA_KEYS:
            raise WeightsError(
                f"checkpoint metadata: unknown key {key!r}; {did_you_mean(key, METADATA_KEYS)}"
            )
    header = {"model": to_mapping(spec_of(model)), **(metadata or {})}
    save_tensors(path, model.state_dict(), {HEADER: json.dumps(header)})


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write named tensors as safetensors, from any device and memory layout, whole or not at all.

    Raises:
        OSError: the file cannot be written; the old one stays.
    """
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, {"format": "pt", **header})
        except safetensors.SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({error})") from error


def read_checkpoint_header(path: str | Path) -> tuple[ModelSpec, dict[str, Any]]:
    """The model that a checkpoint holds, and its metadata (`class_names`, `preprocess`, `provenance`).

    Raises:
        WeightsError: no safetensors file, or its header does not say which model it holds.
    """
    found = parse_header(read_safetensors(path)[1], path)
    if found is None:
        raise WeightsError(f"{path}: the header does not name a model; say which it is (--arch NAME)")
    return found


def parse_header(header: Mapping[str, str], path: object) -> tuple[ModelSpec, dict[str, Any]] | None:
    """Spec and metadata out of a safetensors header, or nothing where Vitesse did not write it.

    Raises:
        WeightsError: Vitesse's part of the header cannot be read.
    """
    if HEADER not in header:
        return None
    try:
        metadata = json.loads(header[HEADER])
        spec = from_mapping(ModelSpec, metadata.pop("model"))
    except (ValueError, KeyError, AttributeError, TypeError, ConfigError) as error:
        raise WeightsError(
            f"{path}: its {HEADER!r} header cannot be read ({error}); write it with save_weights"
        ) from error
    return spec, metadata


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, mapped from disk, and its header.

    Raises:
        WeightsError: the file is absent, truncated, or not safetensors.
    """
    path = existing_file(path)
    if path.suffix in (".pth", ".pt", ".bin", ".ckpt"):
        raise WeightsError(f"{path}: expected .safetensors, got a pickle file; run vitesse convert first")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: expected a whole safetensors file, these {path.stat().st_size} bytes are none "
            f"({error}); get it again"
        ) from error


def unwrap(content: Any, path: object) -> dict[str, Tensor]:
    """Named tensors out of the containers that trainers put around them: `model`, `state_dict`, `module.`.

    Raises:
        WeightsError: something else than named tensors is inside.
    """
    for _ in range(MAX_CONTAINERS):
        if isinstance(content, Mapping) and (inner := _container(content)):
            content = content[inner]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: expected named tensors, got {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(key, str):
            raise WeightsError(f"{path}: expected named tensors, one is called {key!r}")
        if not isinstance(value, Tensor):
            raise WeightsError(f"{path}: {key}: expected a tensor, got {type(value).__name__}")
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise WeightsError(f"{path}: {key}: expected a dense tensor with values, got another kind")
    wrapped = all(key.startswith("module.") for key in content)
    return {key.removeprefix("module.") if wrapped else key: value for key, value in content.items()}


def _container(content: Mapping[str, Any]) -> str | None:
    return next((key for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)


def existing_file(path: str | Path) -> Path:
    """The path, or a `WeightsError` where no file is there."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    return path


def spec_of(model: nn.Module) -> ModelSpec:
    """The spec a model carries.

    Raises:
        WeightsError: it carries none.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise WeightsError(f"{type(model).__name__}: expected a model with a spec, from create_model")
    return spec
