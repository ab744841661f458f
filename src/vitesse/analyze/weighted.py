"""What is analysed where weights matter: a torch model or an artefact, and where its weights come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitesse.analyze.subject import check_task
from vitesse.catalogue import ARTEFACT_SUFFIX, CHECKPOINT_SUFFIX, PICKLE_SUFFIXES, SPEC_SUFFIX, resolve
from vitesse.errors import ConfigError, WeightsError, from_extra
from vitesse.predictors import HUB_PREFIX, find_artefact
from vitesse.runtime.artefact import Artefact, bundled_names
from vitesse.spec import Manifest

RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A model with its weights.

    Attributes:
        name: as the user gave it.
        weights: `file`, `published`, or `random` where a name's weights are not in the cache.
        module: the torch model, or an artefact's file.
    """

    name: str
    weights: str
    manifest: Manifest
    module: Any

    @property
    def batch(self) -> int | None:
        """Pictures that it takes in a run; None for any number."""
        return self.module.input_shape[0] if isinstance(self.module, Artefact) else None


def find_weighted(models: Sequence[str], arch: str | None = None) -> list[Weighted]:
    """The models that a user names: checkpoints, artefacts, and names.

    A name's published weights are taken where they are in the cache, or are asked for by their tag; else its
    weights are random.

    Args:
        models: `.safetensors`, `.onnx`, `hf:OWNER/REPO`, a name, `arch.tag`, `timm:NAME`, or a bundled one.
        arch: the architecture of those checkpoints that do not say theirs.

    Raises:
        UnknownModelError: no model has this name; the message lists the nearest.
        ConfigError: a file of another kind, a model for promptable masks, or `arch` without a checkpoint.
        ArtefactError, WeightsError, MissingExtraError: see their messages.
    """
    checkpoints = [model for model in models if model.endswith(CHECKPOINT_SUFFIX)]
    if arch is not None and not checkpoints:
        raise ConfigError(f"--arch: expected a checkpoint ({CHECKPOINT_SUFFIX}), got {', '.join(models)}")
    found = []
    for model in models:
        if Path(model).suffix in PICKLE_SUFFIXES:
            raise ConfigError(f"{model}: expected .onnx or .safetensors; run `vitesse convert` first")
        if model in checkpoints:
            weighted = _of_checkpoint(model, arch, len(models) == 1)
        elif model.endswith(ARTEFACT_SUFFIX) or model.startswith(HUB_PREFIX) or model in bundled_names():
            artefact = find_artefact(model)
            weighted = Weighted(name=model, weights="file", manifest=artefact.manifest, module=artefact)
        else:
            weighted = _of_name(model)
        check_task(weighted.manifest.task, model)
        found.append(weighted)
    return found


def _of_checkpoint(model: str, arch: str | None, alone: bool) -> Weighted:
    """With `arch` where the file does not say it; where it is the only one `arch` has to agree."""
    with from_extra("torch"):
        from vitesse.models.loading import load_torch
        from vitesse.weights.files import parse_header, read_safetensors

    unsaid = alone or parse_header(read_safetensors(model)[1], model) is None
    module, manifest = load_torch(model, arch if unsaid else None)
    return Weighted(name=model, weights="file", manifest=manifest, module=module)


def _of_name(model: str) -> Weighted:
    with from_extra("bench"):
        from vitesse.bench.contenders import random_manifest, random_model
        from vitesse.models.create import create_model, spec_for
        from vitesse.models.foreign import is_timm, timm_preprocess
        from vitesse.models.loading import load_torch
        from vitesse.models.registry import task_of_model

    if is_timm(model):
        preprocess = timm_preprocess(model)
        spec = spec_for(model, preprocess.image_size)
        manifest = replace(random_manifest(spec, {}), preprocess=preprocess)
        if _is_cached(model):
            module = create_model(model, pretrained=True, image_size=preprocess.image_size)
            return Weighted(name=model, weights="published", manifest=manifest, module=module)
    else:
        spec = spec_for(model)
        manifest = random_manifest(spec, {}, task_of_model(spec.name) or "classify")
        check_task(manifest.task, model)
        unchanged = not spec.variant and not model.endswith(SPEC_SUFFIX)
        if unchanged and ("." in model or _is_cached(model)):
            module, manifest = load_torch(model)
            return Weighted(name=model, weights="published", manifest=manifest, module=module)
    return Weighted(name=model, weights=RANDOM, manifest=manifest, module=random_model(spec))


def _is_cached(model: str) -> bool:
    """Whether a name's published weights are there without fetching them."""
    from vitesse.models.foreign import is_timm, timm_weights
    from vitesse.weights.hub import is_cached

    try:
        if is_timm(model):
            return is_cached(timm_weights(model)[0])
        weights = resolve(model)[1]
    except WeightsError:  # none were published
        return False
    return is_cached(weights.hub_id, weights.file)
