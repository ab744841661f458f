"""From whatever names a model to a predictor: the one place that chooses between the two wings.

Torch is imported for checkpoints, and once for a published model to make its artefact; never for artefacts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitesse.catalogue import (
    ARTEFACT_SUFFIX,
    CHECKPOINT_SUFFIX,
    PICKLE_SUFFIXES,
    is_untrained,
    models,
    resolve,
    untrained,
)
from vitesse.errors import ConfigError, UnknownModelError, did_you_mean, from_extra, require
from vitesse.progress import say
from vitesse.provenance import versions
from vitesse.results import Record
from vitesse.runtime.artefact import (
    Artefact,
    bundled_artefact,
    bundled_names,
    cache_dir,
    kept_artefact,
    read_artefact,
)
from vitesse.runtime.predictor import Predictor
from vitesse.runtime.promptable import MaskPredictor
from vitesse.runtime.sources import Source
from vitesse.spec import as_size

HUB_PREFIX, HUB_FILE = "hf:", "model.onnx"
"""`hf:OWNER/REPO` names a repository of the Hugging Face Hub that holds an artefact, as `push` makes them."""


def load(
    model: str | Path | Artefact | None = None,
    *,
    engine: str = "auto",
    arch: str | None = None,
    threads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> Predictor:
    """A `Predictor` for an artefact, a checkpoint or a name: `vitesse.load("model.onnx").predict(["a.jpg"])`.

    Args:
        model: an `.onnx` artefact; a `.safetensors` checkpoint, run by torch; a model's name, whose published
            weights are fetched and exported once; `hf:OWNER/REPO`; `bccd` or None for bundled ones.
        engine: `auto`, `onnxruntime`, `openvino`, or `torch`, which runs checkpoints and names.
        arch: the architecture of a checkpoint whose header does not name it.
        threads: of the engine; for torch of the whole process. Default all usable CPUs.
        image_size: (height, width) in pixels, or one number for both, of an artefact that takes any size.
        options: of `Predictor`, such as `batch_size`, `top_k` and `min_score`.

    Raises:
        UnknownModelError: no model has this name; the message lists the nearest.
        ConfigError: an engine that cannot run this kind of model, or an impossible number.
        ArtefactError: the artefact cannot be used.
        WeightsError, EngineError, ExportError, MissingExtraError: see their messages.
    """
    if not isinstance(model, Artefact) and _wants_torch(model, engine, arch):
        if image_size is not None:
            raise ConfigError(
                f"image_size: expected an artefact, got {model}; `vitesse convert` changes its size"
            )
        return _torch_predictor(str(model), arch, threads, options)
    artefact = model if isinstance(model, Artefact) else find_artefact(model)
    if image_size is not None:
        artefact = artefact.at_size(as_size(image_size))
    return Predictor(artefact, engine=engine, threads=threads, **options)


def load_masks(model: str | Path | Artefact, **options: Any) -> MaskPredictor:
    """A `MaskPredictor` for an artefact, or a name whose published weights are fetched and exported once.

    Args:
        model: NAME.onnx with its decoder NAME.decoder.onnx beside it, or a model's name.
        options: `engine`, `threads` and `limits` of `MaskPredictor`.

    Raises:
        UnknownModelError: no model has this name; the message lists the nearest.
        ConfigError: a checkpoint, or a model that is not for masks.
        ArtefactError, WeightsError, EngineError, ExportError, MissingExtraError: see their messages.
    """
    if not isinstance(model, Artefact):
        if str(model).endswith(CHECKPOINT_SUFFIX):
            raise ConfigError(
                f"{model}: expected an artefact, this is a checkpoint; run `vitesse export` first"
            )
        model = find_artefact(model)
    return MaskPredictor(model, **options)


def predict(
    sources: Iterable[Source], model: str | Path | Artefact | None = None, **options: Any
) -> list[Record]:
    """One record for each source, in their order; the model and options are those of `load`."""
    return load(model, **options).predict(sources)


def find_artefact(model: str | Path | None) -> Artefact:
    """The artefact of a path, of `hf:OWNER/REPO`, of a model's published weights, or one in the package.

    Those in the package have the names of `bundled_names`; None is the first of them.

    Raises:
        UnknownModelError: neither a path nor a model's name.
        ArtefactError: the file cannot be used.
        ConfigError: a file of a kind that is no artefact.
        WeightsError, ExportError, MissingExtraError: published weights cannot be fetched or exported.
    """
    if model is None:
        return read_artefact(bundled_artefact())
    name = str(model)
    if name.startswith(HUB_PREFIX):
        with from_extra("torch"):
            from vitesse.weights.hub import fetch
        return read_artefact(fetch(name.removeprefix(HUB_PREFIX), HUB_FILE))
    if is_untrained(name):
        raise ConfigError(f"{name}: expected .onnx or .safetensors; {untrained(name)}")
    if name.endswith(ARTEFACT_SUFFIX) or Path(name).is_file():
        return read_artefact(name)
    if Path(name).suffix in PICKLE_SUFFIXES:
        raise ConfigError(f"{name}: expected .onnx or .safetensors; run `vitesse convert` first")
    try:
        return _published_artefact(name)
    except UnknownModelError:
        if name in bundled_names():
            return read_artefact(bundled_artefact(name))
        if "." in name:
            raise
        known = (*bundled_names(), *(model.name for model in models()))
        raise UnknownModelError(f"no model is named {name!r}; {did_you_mean(name, known)}") from None


def _published_artefact(name: str) -> Artefact:
    """The artefact of published weights, made at the first call and kept in the cache folder."""
    model, weights = resolve(name)
    full_name = f"{model.name}.{weights.tag}"
    path = cache_dir() / "artefacts" / f"{full_name}-{versions()['vitesse']}{ARTEFACT_SUFFIX}"
    if (kept := kept_artefact(path)) is not None:
        return kept
    with from_extra("export"):
        from vitesse.export import export
    say(f"{full_name}: fetching {weights.hub_id} and exporting it, once")
    return export(full_name, path)


def _wants_torch(model: str | Path | None, engine: str, arch: str | None) -> bool:
    checkpoint = str(model).endswith(CHECKPOINT_SUFFIX)
    if checkpoint and engine not in ("auto", "torch"):
        raise ConfigError(
            f"engine {engine}: runs artefacts, {model} is a checkpoint; run `vitesse export` first"
        )
    if arch is not None and not checkpoint:
        raise ConfigError(f"arch: expected a checkpoint ({CHECKPOINT_SUFFIX}), got model {model}")
    if engine == "torch" and (model in (None, *bundled_names()) or _names_artefact(str(model))):
        raise ConfigError(
            "engine torch: expected a checkpoint (.safetensors) or a model name, got an artefact"
        )
    if engine == "torch" and Path(str(model)).suffix in PICKLE_SUFFIXES:
        raise ConfigError(f"{model}: expected .safetensors; run `vitesse convert` first")
    return checkpoint or engine == "torch"


def _names_artefact(name: str) -> bool:
    return name.endswith(ARTEFACT_SUFFIX) or name.startswith(HUB_PREFIX)


def _torch_predictor(
    model: str, arch: str | None, threads: int | None, options: Mapping[str, Any]
) -> Predictor:
    torch = require("torch", "torch")
    with from_extra("torch"):
        from vitesse.models.engine import TorchEngine
        from vitesse.models.loading import load_torch

    if threads is not None:
        torch.set_num_threads(threads)
    module, manifest = load_torch(model, arch)
    shape = (None, manifest.model.in_chans, *manifest.model.image_size)
    virtual = Artefact(Path(model), manifest, sha256="", opset=0, input_shape=shape, data=b"")
    return Predictor(virtual, engine=TorchEngine(module), **options)
