"""From a checkpoint to an artefact: fold, write, prove parity, record accuracy."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.sources import unseen
from vitesse.errors import ConfigError, DataError, ImageError
from vitesse.export.fold import fold
from vitesse.export.half import to_half
from vitesse.export.int8 import to_int8
from vitesse.export.onnx import OUTPUTS, as_proto, to_onnx, write_artefact
from vitesse.export.promptable import export_pair
from vitesse.export.targets import check_formats, check_groups, install, write_target
from vitesse.export.verify import parity
from vitesse.files import write_atomically
from vitesse.metrics import EXAMINATIONS, examine, open_for
from vitesse.models.backbone import VisionModel
from vitesse.models.loading import load_torch
from vitesse.models.promptable import PromptableModel
from vitesse.provenance import versions
from vitesse.runtime.artefact import Artefact, read_artefact
from vitesse.runtime.engines import create_engine
from vitesse.runtime.imaging import load_tensor
from vitesse.spec import Manifest, PreprocessSpec, Task

if TYPE_CHECKING:
    from vitesse.data.contract import Pictures

PARITY_IMAGES: Mapping[Task, int] = {"classify": 32, "detect": 4, "segment": 4}
FOR_TASKS: Mapping[str, tuple[Task, ...]] = {
    "--data": tuple(EXAMINATIONS),
    "--calibrate": tuple(EXAMINATIONS),
    "--dynamic-size": tuple(OUTPUTS),
    "--format": ("classify",),
}
"""The tasks that an option is for."""
HELD_OUT = "held out of training"
"""What the manifest calls the split of pictures that training left out of data without splits."""


def export(
    model: str | Path,
    out: str | Path,
    *,
    data: str | Path | Pictures | None = None,
    split: str = "test",
    arch: str | None = None,
    precision: str = "fp32",
    calibrate: str | Path | Pictures | None = None,
    dynamic_size: bool = False,
    formats: Sequence[str] = (),
    force: bool = False,
    trained_on: str = "",
    licence: str = "",
) -> Artefact:
    """Write a checkpoint, or a pretrained model by name, as an artefact; gives the artefact written.

    A model for promptable masks becomes two files, see `export_pair`, of which this gives the encoder.

    Args:
        model: a `.safetensors` checkpoint, or a model name whose published weights are fetched.
        out: the `.onnx` file; an existing one is replaced only when the new one is proven.
        data: pictures that say what is in them, as `vitesse.evaluate` takes them. Parity is proven on the
            first of them, and the accuracy of the written file is measured on all of them; where the model
            was trained on data without splits, on those that were held out. Without it parity is proven on
            noise and the manifest holds no accuracy.
        split: of `data`.
        arch: the architecture of a checkpoint whose header does not name it.
        precision: `fp32`; `fp16`, for GPUs; or `int8`, which needs `calibrate`.
        calibrate: labelled pictures as `data`, its training split where it has splits. Without `data` the
            accuracy of int8 is measured on pictures of it that were not calibrated on.
        dynamic_size: let the file take pictures of other sizes than the model's own.
        formats: of `targets.TARGETS`: files for other runtimes, written next to `out` for one picture at a
            time (OpenVINO's: for any batch), each with a sidecar `.json` that holds the manifest.
        force: write an int8 file that loses accuracy or is no faster than fp32, and an ExecuTorch program
            that mostly runs outside its delegate.
        trained_on, licence: for the manifest; those of published weights are known.

    Raises:
        ExportError: the model cannot be folded, traced or quantised, or the file disagrees with it; int8
            loses more than `int8.MAX_LOSS` or is no faster, and not `force`.
        WeightsError, DataError, MissingExtraError: see their messages.
    """
    out = Path(out)
    _check_request(out, precision, calibrate)
    check_formats(formats, precision)
    module, found_manifest = load_torch(model, arch)
    check_groups(formats, found_manifest.mux_width)
    _check_task(
        found_manifest.task,
        {"--data": data, "--calibrate": calibrate, "--dynamic-size": dynamic_size, "--format": formats},
    )
    manifest = replace(
        found_manifest,
        precision="fp16" if precision == "fp16" else "fp32",
        trained_on=trained_on or found_manifest.trained_on,
        licence=licence or found_manifest.licence,
        tools=versions(),
    )
    if isinstance(module, PromptableModel):
        return export_pair(module, manifest, out)
    source, dataset = None, {}
    if data is not None:
        everything = open_for(manifest.task, data, split)
        chosen = unseen(everything, manifest.provenance)
        source = EXAMINATIONS[manifest.task].of_classes(chosen, manifest.class_names)
        dataset = _called(data, split if chosen is everything else HELD_OUT, trained_on)
    preprocess = manifest.preprocess
    count = PARITY_IMAGES[manifest.task]
    images_BCHW = _noise(preprocess, count) if source is None else _real_images(source, preprocess, count)
    folded = fold(module) if isinstance(module, VisionModel) else module
    any_size = dynamic_size or preprocess.resize == "short"
    proto = to_onnx(folded, manifest.model, dynamic_size=any_size)
    if precision == "fp16":
        proto = to_half(proto)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artefact = _draft(proto, manifest, folder / out.name)
        proof = {**parity(artefact, module, images_BCHW), "images": len(images_BCHW)}
        artefact = _draft(proto, replace(manifest, parity=proof), folder / out.name)
        if calibrate is not None:
            artefact = to_int8(proto, artefact, calibrate, source, dataset=dataset, force=force)
            proto = as_proto(artefact)
        elif source is not None:
            accuracy = {**dataset, **_accuracy(artefact, source)}
            artefact = _draft(proto, replace(artefact.manifest, accuracy=accuracy), folder / out.name)
        context: dict[str, Any] = {"proto": proto, "artefact": artefact, "images_BCHW": images_BCHW}
        sidecars = [write_target(kind, folder, model=folded, force=force, **context) for kind in formats]
        for sidecar in sidecars:
            install(sidecar, out.parent)
        write_atomically(out, artefact.data)
    return read_artefact(out)


def _called(data: str | Path | Pictures, split: str, name: str) -> dict[str, Any]:
    """What the manifest calls the pictures that a file was scored on."""
    if isinstance(data, (str, Path)):
        return {"dataset": Path(data).name, "split": split}
    return {"dataset": name or data.fingerprint, "split": HELD_OUT}


def _check_request(out: Path, precision: str, calibrate: str | Path | Pictures | None) -> None:
    if out.suffix != ".onnx":
        raise ConfigError(
            f"--out: expected a file ending in .onnx, got {out}; other formats are written next to it"
        )
    if precision not in ("fp32", "fp16", "int8"):
        raise ConfigError(f"--precision: expected fp32, fp16 or int8, got {precision!r}")
    if (precision == "int8") != (calibrate is not None):
        raise ConfigError(
            "--precision int8 and --calibrate DATA go together: one was given without the other"
        )


def _check_task(task: Task, asked: Mapping[str, object]) -> None:
    """
    Raises:
        ConfigError: something is asked for that Vitesse does for other tasks alone.
    """
    for option, value in asked.items():
        if value and task not in FOR_TASKS[option]:
            tasks = " or ".join(FOR_TASKS[option])
            raise ConfigError(
                f"{option}: expected a model to {tasks}, got one of the task {task}; leave it out"
            )


def _draft(proto: Any, manifest: Manifest, path: Path) -> Artefact:
    write_artefact(proto, manifest, path)
    return read_artefact(path)


def _accuracy(artefact: Artefact, source: Any) -> Mapping[str, Any]:
    engine = create_engine(artefact, "onnxruntime")
    figures, groups = examine(engine, artefact, source)
    return {"engine": engine.name, **figures.brief(), "images": figures.images, **groups}


def _real_images(source: Pictures, preprocess: PreprocessSpec, count: int) -> NDArray[np.float32]:
    """The first `count` readable pictures of a source, preprocessed: (B, C, H, W)."""
    tensors: list[NDArray[np.float32]] = []
    for index in range(len(source)):
        if len(tensors) == count:
            break
        try:
            tensors.append(load_tensor(source.read(index), preprocess.of_one_size))
        except (ImageError, OSError):
            continue
    if not tensors:
        raise DataError("no picture could be read, so parity cannot be proven")
    return np.stack(tensors)


def _noise(preprocess: PreprocessSpec, count: int) -> NDArray[np.float32]:
    shape = (count, len(preprocess.mean), *preprocess.image_size)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
