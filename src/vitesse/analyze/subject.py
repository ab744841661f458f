"""What is analysed: a model as the engines take it, from a name or a file."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitesse.bench.contenders import chosen_engines, exported, folded, random_model
from vitesse.bench.peers import PREFIX
from vitesse.catalogue import ARTEFACT_SUFFIX, CHECKPOINT_SUFFIX, PICKLE_SUFFIXES
from vitesse.errors import ConfigError, from_extra
from vitesse.predictors import HUB_PREFIX, find_artefact
from vitesse.runtime.artefact import Artefact, bundled_names, read_artefact
from vitesse.runtime.engines import ENGINES
from vitesse.spec import Manifest, ModelSpec

TORCH = "torch"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model as the engines take it.

    Attributes:
        artefact: gives what inference engines run.
        module: gives the folded torch module; None for a file that has none.
    """

    spec: ModelSpec
    precision: str
    artefact: Callable[[], Artefact]
    module: Callable[[], Any] | None

    def engines(self, names: str) -> tuple[str, ...]:
        """Those that `names` means, separated by commas: `all` are the installed ones that run this.

        Raises:
            ConfigError: an unknown engine, or one that cannot run this.
            MissingExtraError: an engine that is not installed.
        """
        wanted = chosen_engines(names)
        for name in wanted:
            if name not in (*ENGINES, TORCH):
                raise ConfigError(f"--engine: expected of {', '.join((*ENGINES, TORCH))}, got {name!r}")
        if self.module is not None:
            return wanted
        if names != "all" and TORCH in wanted:
            raise ConfigError(f"--engine torch: expected a name or {CHECKPOINT_SUFFIX}, got an artefact")
        return tuple(name for name in wanted if name != TORCH)


def find_subject(model: str, image_size: tuple[int, int] | None = None, arch: str | None = None) -> Subject:
    """The subject that a user names, see `vitesse.analyze.analyze_runtime`.

    Raises:
        UnknownModelError: no model has this name; the message lists the nearest.
        ConfigError: a file of another kind, a model for promptable masks, or a size that it does not take.
        ArtefactError, WeightsError, MissingExtraError: see their messages.
    """
    if Path(model).suffix in PICKLE_SUFFIXES:
        raise ConfigError(f"{model}: expected .onnx or .safetensors; run `vitesse convert` first")
    if arch is not None and not model.endswith(CHECKPOINT_SUFFIX):
        raise ConfigError(f"--arch: expected a checkpoint ({CHECKPOINT_SUFFIX}), got {model}")
    if model.endswith(ARTEFACT_SUFFIX) or model.startswith(HUB_PREFIX) or model in bundled_names():
        return _of_artefact(find_artefact(model), image_size)
    with from_extra("export"):
        import vitesse.export.onnx  # noqa: F401  (what follows imports it where it is needed)
    if model.endswith(CHECKPOINT_SUFFIX):
        return _of_checkpoint(model, image_size, arch)
    return _of_name(model, image_size)


def _of_artefact(artefact: Artefact, image_size: tuple[int, int] | None) -> Subject:
    if image_size is not None:
        artefact = artefact.at_size(image_size)
    manifest = artefact.manifest
    check_task(manifest.task, str(artefact.path))
    return Subject(spec=manifest.model, precision=manifest.precision, artefact=lambda: artefact, module=None)


def _of_checkpoint(model: str, image_size: tuple[int, int] | None, arch: str | None) -> Subject:
    from vitesse.export.fold import fold
    from vitesse.models.backbone import VisionModel
    from vitesse.models.loading import load_torch

    module, manifest = load_torch(model, arch)
    check_task(manifest.task, model)
    if image_size not in (None, manifest.model.image_size):
        raise ConfigError(f"--image-size: {model} is of one size; `vitesse convert` changes it")
    folded = fold(module) if isinstance(module, VisionModel) else module.eval()
    return Subject(
        spec=manifest.model,
        precision="fp32",
        artefact=functools.partial(_exported, folded, manifest),
        module=lambda: folded,
    )


def _exported(module: Any, manifest: Manifest) -> Artefact:
    from vitesse.export.onnx import to_onnx, write_artefact

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_artefact(to_onnx(module, manifest.model), manifest, path)
        return read_artefact(path)


def _of_name(model: str, image_size: tuple[int, int] | None) -> Subject:
    """With random weights."""
    from vitesse.models.create import spec_for
    from vitesse.models.foreign import timm_preprocess
    from vitesse.models.registry import task_of_model

    if model.startswith(PREFIX):
        spec = spec_for(model, timm_preprocess(model).image_size)
    else:
        spec = spec_for(model)
        check_task(task_of_model(spec.name) or "classify", model)
    spec = spec if image_size is None else replace(spec, image_size=image_size)
    return Subject(
        spec=spec,
        precision="fp32",
        artefact=functools.partial(exported, spec, "fp32"),
        module=lambda: folded(random_model(spec)),
    )


def check_task(task: str, model: str) -> None:
    """Refuse what pictures alone are not enough for.

    Raises:
        ConfigError: a model for promptable masks.
    """
    if task == "promptable":
        raise ConfigError(
            f"{model}: expected a model from pictures to labels, boxes or maps, got one for prompts"
        )
