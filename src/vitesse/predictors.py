"""From whatever names a model to a predictor: the one place that chooses between the two wings.

Torch is imported for checkpoints and for published weights, never for artefacts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitesse.catalogue import resolve
from vitesse.errors import ArtefactError, ConfigError, require
from vitesse.runtime.artefact import Artefact, bundled_artefact, read_artefact
from vitesse.runtime.predictor import Predictor
from vitesse.spec import Manifest, ModelSpec, PreprocessSpec, from_mapping

if TYPE_CHECKING:
    from vitesse.models import Backbone
    from vitesse.models.foreign import TimmModel

CHECKPOINT_SUFFIX, ARTEFACT_SUFFIX = ".safetensors", ".onnx"


def load(
    model: str | Path | Artefact | None = None,
    *,
    engine: str = "auto",
    arch: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> Predictor:
    """A `Predictor` for an artefact, a checkpoint or a name: `vitesse.load("model.onnx").predict(["a.jpg"])`.

    Args:
        model: an `.onnx` artefact, a `.safetensors` checkpoint (run by torch), the name of the bundled model,
            or None for it. With `engine="torch"` also any model name, whose published weights are fetched.
        engine: `auto`, `onnxruntime`, `openvino`, or `torch`.
        arch: the architecture of a checkpoint whose header does not name it.
        threads: of the engine; for torch of the whole process. Default all usable CPUs.
        options: `batch_size`, `top_k`, `limits` and `workers` of `Predictor`.

    Raises:
        UnknownModelError: no model has this name; the message lists the nearest.
        ConfigError: an engine that cannot run this kind of model, or an impossible number.
        ArtefactError: the artefact cannot be used, or the name has none in this installation.
        WeightsError, EngineError, MissingExtraError: see their messages.
    """
    if not isinstance(model, Artefact) and _wants_torch(model, engine, arch):
        return _torch_predictor(str(model), arch, threads, options)
    artefact = model if isinstance(model, Artefact) else find_artefact(model)
    return Predictor(artefact, engine=engine, threads=threads, **options)


def find_artefact(model: str | Path | None) -> Artefact:
    """The artefact at a path, or the bundled one by its file's or its model's name, or for None.

    Raises:
        UnknownModelError: neither a path nor a model's name.
        ArtefactError: the file cannot be used, or no artefact of this model is in this installation.
    """
    if model is not None and (str(model).endswith(ARTEFACT_SUFFIX) or Path(model).exists()):
        return read_artefact(model)
    bundled = read_artefact(bundled_artefact())
    if model is None or str(model) in (bundled.path.stem, bundled.manifest.model.name):
        return bundled
    if Path(model).suffix in (".pth", ".pt", ".bin", ".ckpt"):
        raise ConfigError(f"{model}: expected .onnx or .safetensors; run `vitesse convert` first")
    resolve(str(model))
    raise ArtefactError(
        f"{model}: no artefact of it is in this installation, only {bundled.path.stem}; make one with "
        f"`vitesse export {model} --out {model}.onnx`, then give --model {model}.onnx"
    )


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


def _wants_torch(model: str | Path | None, engine: str, arch: str | None) -> bool:
    checkpoint = str(model).endswith(CHECKPOINT_SUFFIX)
    if checkpoint and engine not in ("auto", "torch"):
        raise ConfigError(
            f"engine {engine}: runs artefacts, {model} is a checkpoint; run `vitesse export` first"
        )
    if arch is not None and not checkpoint:
        raise ConfigError(f"arch: expected a checkpoint ({CHECKPOINT_SUFFIX}), got model {model}")
    if engine == "torch" and (model is None or str(model).endswith(ARTEFACT_SUFFIX)):
        raise ConfigError(
            "engine torch: expected a checkpoint (.safetensors) or a model name, got an artefact"
        )
    return checkpoint or engine == "torch"


def _torch_predictor(
    model: str, arch: str | None, threads: int | None, options: Mapping[str, Any]
) -> Predictor:
    torch = require("torch", "torch")
    from vitesse.models.engine import TorchEngine

    if threads is not None:
        torch.set_num_threads(threads)
    module, manifest = load_torch(model, arch)
    shape = (None, manifest.model.in_chans, *manifest.model.image_size)
    virtual = Artefact(Path(model), manifest, sha256="", opset=0, input_shape=shape, data=b"")
    return Predictor(virtual, engine=TorchEngine(module), **options)


def load_torch(model: str | Path, arch: str | None = None) -> tuple[Backbone | TimmModel, Manifest]:
    """A checkpoint's model (a path ending in `.safetensors`), or a name's with its published weights.

    Raises:
        UnknownModelError, WeightsError, MissingExtraError: see `vitesse.models.load_checkpoint` and
            `vitesse.create_model`.
    """
    require("torch", "torch")
    return _checkpoint(str(model), arch) if str(model).endswith(CHECKPOINT_SUFFIX) else _published(str(model))


def _checkpoint(path: str, arch: str | None) -> tuple[Backbone | TimmModel, Manifest]:
    from vitesse.models import load_checkpoint

    model, metadata = load_checkpoint(path, arch)
    return model, manifest_for(model.spec, metadata)


def _published(name: str) -> tuple[Backbone | TimmModel, Manifest]:
    from vitesse.models import FeatureExtractor, create_model

    weights = resolve(name)[1]
    preprocess = {"image_size": weights.image_size, "crop_pct": weights.crop_pct}
    model = create_model(
        name, pretrained=True, num_classes=weights.num_classes, image_size=weights.image_size
    )
    assert not isinstance(model, FeatureExtractor)
    return model, manifest_for(model.spec, {"preprocess": preprocess})
