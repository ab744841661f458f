"""Files for other runtimes, written next to an artefact, each with a sidecar that holds the manifest.

Every target is made from the same folded model as the artefact and, where this machine can run it, compared
with the artefact on the same pictures.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vitesse.errors import ConfigError, ExportError, require
from vitesse.export import coreml, executorch, openvino
from vitesse.export.onnx import quiet
from vitesse.export.verify import tolerance
from vitesse.files import write_atomically
from vitesse.runtime.engines import create_engine

if TYPE_CHECKING:
    from vitesse.runtime.artefact import Artefact

Run = Callable[[Path, NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of file.

    Attributes:
        suffix: of its file, or of its folder.
        package, extra: what writes it, and the extra that brings that.
        precisions: those that it can hold.
        engine: the engine of the artefact whose logits it must give.
        any_batch: it takes several pictures at once.
        run: gives its logits (B, K) on this machine; None where only its own devices can.
    """

    suffix: str
    package: str
    extra: str
    precisions: tuple[str, ...]
    engine: str = "onnxruntime"
    any_batch: bool = False
    run: Run | None = None


TARGETS = {
    "openvino": Target(
        suffix=openvino.SUFFIX,
        package="openvino",
        extra="openvino",
        precisions=("fp32", "fp16", "int8"),
        engine="openvino",
        any_batch=True,
        run=openvino.run,
    ),
    "executorch": Target(
        suffix=executorch.SUFFIX,
        package="executorch",
        extra="executorch",
        precisions=("fp32",),
        run=executorch.run,
    ),
    "coreml": Target(
        suffix=coreml.SUFFIX, package="coremltools", extra="coreml", precisions=("fp32", "fp16")
    ),
}


def check_formats(formats: Sequence[str], precision: str) -> None:
    """Raises, before any work is done, for what cannot be written.

    Raises:
        ConfigError: an unknown format, or one that cannot hold this precision.
        MissingExtraError: what writes it is not installed.
    """
    for name in formats:
        if name not in TARGETS:
            raise ConfigError(f"--format: expected of onnx, {', '.join(TARGETS)}, got {name!r}")
        target = TARGETS[name]
        if precision not in target.precisions:
            raise ConfigError(
                f"--format {name}: expected --precision {' or '.join(target.precisions)}, got {precision}"
            )
        with quiet():
            require(target.package, target.extra)


def check_groups(formats: Sequence[str], mux_width: int) -> None:
    """Raises for programs of one picture of a model whose point is to take several.

    Raises:
        ConfigError: a format that has such programs alone.
    """
    single = [name for name in formats if not TARGETS[name].any_batch]
    if mux_width > 1 and single:
        raise ConfigError(
            f"--format {single[0]}: takes one picture at a time, this model groups of {mux_width}; expected "
            "onnx or openvino, or the model's _dim0 form"
        )


def write_target(
    name: str,
    folder: Path,
    *,
    model: nn.Module,
    proto: Any,
    artefact: Artefact,
    images_BCHW: NDArray[np.float32],
    force: bool = False,
) -> Path:
    """Write one target into a folder, with the artefact's name; gives its sidecar's path.

    Args:
        name: of `TARGETS`.
        folder: where; what has the same names there is replaced.
        model: the folded torch model.
        proto: the artefact as `onnx.ModelProto`.
        artefact: what it must agree with.
        images_BCHW: preprocessed pictures to compare on.
        force: write an ExecuTorch program that mostly runs outside its delegate.

    Raises:
        ExportError: it cannot be written, or its logits are others.
    """
    target, manifest = TARGETS[name], artefact.manifest
    path = folder / artefact.path.with_suffix(target.suffix).name
    facts: Mapping[str, Any] = {}
    if name == "openvino":
        openvino.write(proto, path, precision=manifest.precision)
    elif name == "executorch":
        facts = executorch.write(model, manifest.model, path, force=force)
    else:
        facts = coreml.write(model, manifest.model, path, precision=manifest.precision)
    if target.run is not None:
        facts = {**facts, "parity": _parity(path, target, artefact, images_BCHW)}
    files = {file.relative_to(folder).as_posix(): _sha256(file) for file in _files_of(path)}
    record = {"format": name, "files": files, **facts, "manifest": manifest.to_dict()}
    sidecar = sidecar_of(folder / artefact.path.name, name)
    sidecar.write_text(json.dumps(record, indent=1) + "\n")
    return sidecar


def sidecar_of(artefact: Path, name: str) -> Path:
    """Where the sidecar of a target lies: beside the artefact, under the target's file name and `.json`."""
    return artefact.with_suffix(TARGETS[name].suffix + ".json")


def install(sidecar: Path, folder: Path) -> Path:
    """Move a written target into its folder, the sidecar last; gives the sidecar's new path."""
    folder.mkdir(parents=True, exist_ok=True)
    written = sidecar.with_suffix("")
    if written.is_dir():
        _replace_folder(written, folder / written.name)
    else:
        for part in reversed(_files_of(written)):  # what others refer to comes first
            write_atomically(folder / part.name, part.read_bytes())
    write_atomically(folder / sidecar.name, sidecar.read_bytes())
    return folder / sidecar.name


def _replace_folder(written: Path, target: Path) -> None:
    """Put a folder in another's place; a kill leaves one of them whole, at worst under a hidden name."""
    new, old = (
        target.with_name(f".{target.name}.{secrets.token_hex(6)}.{state}") for state in ("new", "old")
    )
    shutil.copytree(written, new)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _parity(
    path: Path, target: Target, artefact: Artefact, images_BCHW: NDArray[np.float32]
) -> Mapping[str, float]:
    assert target.run is not None
    (expected_BK, *_) = create_engine(artefact, target.engine).run(images_BCHW)
    difference = float(np.abs(target.run(path, images_BCHW) - expected_BK).max())
    limit = tolerance(expected_BK, artefact.manifest.precision)
    if not difference <= limit:
        raise ExportError(
            f"{path.name}: its logits differ from the artefact's by {difference:.2e}, expected at most "
            f"{limit:.2e}; nothing was written"
        )
    return {target.package: difference, "images": len(images_BCHW)}


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path, path.with_suffix(".bin")] if path.suffix == openvino.SUFFIX else [path]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
