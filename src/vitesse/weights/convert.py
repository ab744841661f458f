"""Foreign weight files, in and out. Reading one never runs code that it carries."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from vitesse.errors import WeightsError
from vitesse.files import atomic_path
from vitesse.weights.files import existing_file, read_safetensors, save_tensors, spec_of, unwrap
from vitesse.weights.keymaps import keymap_for

TORCH_SUFFIXES = (".pth", ".pt")


def read_foreign(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a foreign `.pth`, `.pt` or `.safetensors` file, out of their containers. Runs no code.

    Raises:
        WeightsError: the file is absent or damaged, holds anything beside plain data, or no tensors.
    """
    path = existing_file(path)
    if path.suffix == ".safetensors":
        return unwrap(read_safetensors(path)[0], path)
    try:
        with warnings.catch_warnings():  # of torch, about what is then refused here anyway
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path}: {_refusal(str(error))}") from error
    except Exception as error:  # a damaged file makes the unpickler stumble in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path}: expected a whole torch file, it cannot be read ({reason})") from error
    return unwrap(content, path)


def _refusal(message: str) -> str:
    if code := re.search(r"GLOBAL ([\w.]+)|[Cc]lass ([\w.]+)", message):
        return (
            f"refused, reading it would run code of {code[1] or code[2]}; expected tensors only: "
            "where you trust it, save its state_dict alone with torch.save"
        )
    return "expected a whole torch file of plain tensors, it is damaged or holds other data"


def save_foreign(path: str | Path, model: nn.Module, naming: str) -> None:
    """Write a model's weights under foreign names, whole or not at all.

    Args:
        path: `.safetensors`, flat as timm reads it, or `.pth`, under `model` as the original releases are.
        naming: `timm` or `original`.

    Raises:
        WeightsError: another suffix, a naming these weights do not have, or tables foreign files cannot hold.
    """
    path = Path(path)
    state = keymap_for(spec_of(model).name).write(model.state_dict(), naming)
    if path.suffix == ".safetensors":
        save_tensors(path, state, {})
    elif path.suffix in TORCH_SUFFIXES:
        with atomic_path(path) as temporary:
            torch.save({"model": {key: tensor.detach().cpu() for key, tensor in state.items()}}, temporary)
    else:
        raise WeightsError(f"{path}: expected a name ending in .safetensors, {' or '.join(TORCH_SUFFIXES)}")
