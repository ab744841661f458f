"""A torch model together with the manifest that says what its weights need and mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitesse.catalogue import (
    ARTEFACT_SUFFIX,
    CHECKPOINT_SUFFIX,
    PICKLE_SUFFIXES,
    facts,
    is_untrained,
    resolve,
    untrained,
)
from vitesse.errors import ConfigError
from vitesse.models.backbone import FeatureExtractor
from vitesse.models.checkpoint import load_checkpoint
from vitesse.models.create import create_model
from vitesse.models.foreign import is_timm, timm_preprocess
from vitesse.models.promptable import PromptableModel
from vitesse.models.release import release_metadata
from vitesse.spec import Manifest, ModelSpec, PreprocessSpec, Resize, from_mapping
from vitesse.weights.keymaps import TIMM_PREFIX

if TYPE_CHECKING:
    from vitesse.models.backbone import VisionModel
    from vitesse.models.foreign import TimmModel


def load_torch(model: str | Path, arch: str | None = None) -> tuple[VisionModel | TimmModel, Manifest]:
    """A checkpoint's model (a path ending in `.safetensors`), or a name's with its published weights.

    Raises:
        ConfigError: a file of another kind, or a model that is not ours.
        UnknownModelError, WeightsError, MissingExtraError: see `load_checkpoint` and `create_model`.
    """
    if not str(model).endswith(CHECKPOINT_SUFFIX):
        if (refusal := _why_not(str(model))) is not None:
            raise ConfigError(
                f"{model}: expected a checkpoint ({CHECKPOINT_SUFFIX}) or a model's name, {refusal}"
            )
        return _published(str(model))
    module, metadata = load_checkpoint(model, arch)
    return module, _manifest_of(module, metadata)


def _manifest_of(module: VisionModel | TimmModel, metadata: Mapping[str, Any]) -> Manifest:
    """`manifest_for` with what a model knows by itself. Without preprocessing, what is dense sees it all, of
    ADE20K's pictures as its authors do: at a shorter side of the model's; timm's models have timm's."""
    manifest = manifest_for(module.spec, metadata)
    own: dict[str, Any] = {
        "task": getattr(module, "task", "classify"),
        "mux_width": getattr(module, "mux_width", 1),
    }
    if isinstance(module, PromptableModel):
        own |= {"class_names": module.class_names, "preprocess": module.preprocess}
    elif own["task"] != "classify" and not metadata.get("preprocess"):
        resize: Resize = "short" if facts(module.spec.name).dataset == "ADE20K" else "fit"
        own["preprocess"] = dataclasses.replace(manifest.preprocess, resize=resize)
    elif is_timm(module.spec.name) and not metadata.get("preprocess"):
        preprocess = timm_preprocess(module.spec.name)
        own["preprocess"] = dataclasses.replace(preprocess, image_size=module.spec.image_size)
    return dataclasses.replace(manifest, **own)


def _why_not(model: str) -> str | None:
    if model.endswith(ARTEFACT_SUFFIX):
        return "this is an ONNX file already; name what it was made from"
    if Path(model).suffix in PICKLE_SUFFIXES:
        return "this may hold code; run `vitesse convert` first"
    if is_untrained(model):
        return untrained(model)
    if model.startswith(TIMM_PREFIX):
        return "this is a timm model; train it with `vitesse train`, then name its checkpoint"
    return None


def manifest_for(spec: ModelSpec, metadata: Mapping[str, Any]) -> Manifest:
    """What a checkpoint says of itself as a manifest; without names, classes are called by their index.

    Raises:
        ConfigError: the metadata does not fit the model.
    """
    return Manifest(
        model=spec,
        class_names=tuple(metadata.get("class_names") or map(str, range(spec.num_classes))),
        preprocess=from_mapping(
            PreprocessSpec, metadata.get("preprocess") or {"image_size": spec.image_size}
        ),
        provenance=metadata.get("provenance") or {},
    )


def _published(name: str) -> tuple[VisionModel | TimmModel, Manifest]:
    weights = resolve(name)[1]
    model = create_model(
        name, pretrained=True, num_classes=weights.num_classes, image_size=weights.image_size
    )
    assert not isinstance(model, FeatureExtractor)
    manifest = _manifest_of(model, release_metadata(weights))
    return model, dataclasses.replace(
        manifest,
        trained_on=weights.trained_on,
        licence=weights.licence,
        provenance={"hub_id": weights.hub_id, "published": {"top1": weights.top1, "source": weights.source}},
    )
