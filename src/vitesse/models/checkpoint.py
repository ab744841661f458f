"""Checkpoint files to models, and foreign files to checkpoints."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vitesse.errors import WeightsError
from vitesse.models.create import build, spec_for
from vitesse.models.foreign import is_timm
from vitesse.models.release import release_metadata, weights_like
from vitesse.spec import ModelSpec
from vitesse.weights.convert import read_foreign, save_foreign
from vitesse.weights.files import parse_header, read_checkpoint_header, read_safetensors, save_weights, unwrap
from vitesse.weights.keymaps import OURS, keymap_for
from vitesse.weights.load import LoadReport, first_conv_name, load_tensors

if TYPE_CHECKING:
    from vitesse.models.backbone import VisionModel
    from vitesse.models.foreign import TimmModel


def load_checkpoint(
    path: str | Path, arch: str | None = None
) -> tuple[VisionModel | TimmModel, dict[str, Any]]:
    """The model in a `.safetensors` file with its weights, in training mode, and the file's metadata.

    Foreign weights with the size and classes of published ones get the metadata of those.

    Args:
        path: a file of `save_weights`; with `arch`, also safetensors of timm or of an original release.
        arch: the architecture's name, needed where the file does not say it.

    Raises:
        WeightsError: the file cannot be read, is of another architecture, or names none without `arch`.
        UnknownModelError: no model has this name.
    """
    tensors, header = read_safetensors(path)
    found = parse_header(header, path)
    if found is None and arch is not None:
        model = _model_of(unwrap(tensors, path), str(path), spec_for(arch))[0]
        return model, _metadata_of(model.spec)
    spec, metadata = found or read_checkpoint_header(path)  # which says what to do where none is found
    return _own_model(tensors, path, spec, arch)[0], metadata


def convert(
    source: str | Path,
    *,
    name: str,
    out: str | Path,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    to: str = OURS,
) -> LoadReport:
    """Read weights under any known names, prove that they are all of a model, and write them elsewhere.

    Args:
        source: `.pth`, `.pt` or `.safetensors`, of timm, an original release, or `save_weights`.
        name: the architecture of the weights.
        out: `.safetensors`; for the foreign names also `.pth`.
        num_classes: classes that the head must have; default those of the file.
        image_size: pixels that the weights were trained for; default the architecture's own.
        to: `vitesse`, `timm` or `original` names.

    Raises:
        WeightsError: the source holds code, is damaged, or is not all of the model; `out` has a wrong suffix.
        UnknownModelError: no model has this name.
    """
    wanted = spec_for(name, image_size)
    if written := _written_by_us(source):
        spec, metadata = written
        model, report = _own_model(read_foreign(source), source, spec, name)
        if image_size is not None and spec.image_size != wanted.image_size:
            raise WeightsError(f"{source}: expected weights for {wanted.image_size}, got {spec.image_size}")
        if num_classes not in (None, spec.num_classes):
            raise WeightsError(f"{source}: expected {num_classes} classes, the file has {spec.num_classes}")
    else:
        model, report = _model_of(read_foreign(source), str(source), wanted, num_classes)
        metadata = _metadata_of(model.spec)
    if to != OURS:
        save_foreign(out, model, to)
        return report
    if Path(out).suffix != ".safetensors":
        raise WeightsError(f"{out}: expected a name ending in .safetensors")
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    provenance = {"converted_from": Path(source).name, "sha256": digest, "naming": report.naming}
    save_weights(out, model, metadata | {"provenance": {**metadata.get("provenance", {}), **provenance}})
    return report


def _written_by_us(path: str | Path) -> tuple[ModelSpec, dict[str, Any]] | None:
    """What the header of our own checkpoint says; nothing for any other file."""
    if Path(path).suffix != ".safetensors":
        return None
    return parse_header(read_safetensors(path)[1], path)


def _own_model(
    tensors: Mapping[str, Tensor], path: str | Path, spec: ModelSpec, arch: str | None
) -> tuple[VisionModel | TimmModel, LoadReport]:
    """The model of a checkpoint that Vitesse wrote, as `arch` where that is given and has the same weights.

    So a plain ViT's checkpoint can run as the one that merges tokens.
    """
    model = build(spec if arch is None else dataclasses.replace(spec, name=spec_for(arch).name))
    if spec.name not in (model.spec.name, getattr(model, "same_weights", "")):
        raise WeightsError(f"{path}: expected weights of {arch}, the file holds {spec.name}")
    return model, load_tensors(model, tensors, str(path), image_size=spec.image_size, foreign=False)


def _metadata_of(spec: ModelSpec) -> dict[str, Any]:
    """Class names and preprocessing of the published weights that foreign ones of this shape must be."""
    weights = weights_like(spec)
    return {} if weights is None else release_metadata(weights)


def _model_of(
    tensors: Mapping[str, Tensor], label: str, spec: ModelSpec, num_classes: int | None = None
) -> tuple[VisionModel | TimmModel, LoadReport]:
    """The model of foreign weights: `spec` with their channels, classes and heads, nothing resampled.

    Raises:
        WeightsError: the weights are not all of this model at this image size, or in another channel order.
    """
    probe = build(spec)
    own, keymap = probe.state_dict(), keymap_for(spec.name)
    values = {name: tensor for name, _, tensor in keymap.read(tensors, keymap.detect(tensors, own))}
    heads = {name: tensor for name, tensor in values.items() if name.startswith(probe.head_prefixes)}
    classes = [len(tensor) for tensor in heads.values() if tensor.ndim > 1]
    stem = values.get(first_conv_name(own))
    spec = dataclasses.replace(
        spec,
        in_chans=spec.in_chans if stem is None or stem.ndim != 4 else stem.shape[1],
        num_classes=num_classes or (classes[0] if classes else spec.num_classes),
        distilled=not is_timm(spec.name) and not heads.keys() <= own.keys(),
    )
    model = build(spec)
    report = load_tensors(model, tensors, label, image_size=spec.image_size)
    if report.resampled:
        raise WeightsError(
            f"{label}: {report.resampled[0]}: not the weights of {spec.name} at {spec.image_size} pixels: "
            "convert them with the image size that they were trained for"
        )
    return model, report
