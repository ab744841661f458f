"""The artefact: one `.onnx` file with everything that inference needs, checked before any engine sees it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import platformdirs

from vitesse.errors import ArtefactError, ConfigError
from vitesse.progress import say
from vitesse.runtime.protobuf import MalformedError, OnnxFacts, read_onnx
from vitesse.spec import MANIFEST_SCHEMA, Manifest

DEFAULT_MODEL = "efficientvit_m1_cifar100"
"""The bundled artefact that is used where no model is named."""
METADATA_KEY = "vitesse"
MIN_OPSET = 17
MAX_BYTES = 2**31 - 1
"""Protobuf's own limit for one message."""

_FLOAT32 = 1  # onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class Artefact:
    """A checked artefact.

    Attributes:
        path: where it was read.
        manifest: what the file says of itself.
        sha256: of the whole file, hexadecimal.
        opset: version of the default operator set.
        input_shape: (B, C, H, W) of the one input; None where it is free, as B always may be. Of a decoder,
            (N, P, 3) of the first input.
        data: the file's bytes.
    """

    path: Path
    manifest: Manifest
    sha256: str
    opset: int
    input_shape: tuple[int | None, ...]
    data: bytes = field(repr=False)

    def at_size(self, image_size: tuple[int, int]) -> Artefact:
        """The same model for pictures of another (height, width), where its graph takes any.

        Raises:
            ConfigError: the graph takes one size alone.
        """
        if any(
            side not in (None, wanted) for side, wanted in zip(self.input_shape[2:], image_size, strict=True)
        ):
            height, width = self.manifest.model.image_size
            raise ConfigError(
                f"{self.path}: takes {height}x{width} pixels alone, got {image_size[0]}x{image_size[1]}; "
                "export it with --dynamic-size, or for that size"
            )
        model = replace(self.manifest.model, image_size=image_size)
        preprocess = replace(self.manifest.preprocess, image_size=image_size)
        return replace(self, manifest=replace(self.manifest, model=model, preprocess=preprocess))


def read_artefact(path: str | Path) -> Artefact:
    """Read and check an artefact: ONNX, manifest, schema, opset, input shape, weights inside.

    Raises:
        ArtefactError: the file cannot be read, or any check fails; the message says which and what to do.
    """
    path = Path(path)
    data = _read_bytes(path)
    try:
        facts = read_onnx(data)
    except MalformedError as error:
        raise ArtefactError(
            f"{path}: expected an ONNX model, this is none or is cut short ({error}); copy it again"
        ) from error
    manifest = _read_manifest(path, facts)
    _check_graph(path, facts, manifest)
    digest = hashlib.sha256(data).hexdigest()
    return Artefact(path, manifest, digest, facts.opset, facts.input_shape, data)


def kept_artefact(path: Path) -> Artefact | None:
    """An artefact of the cache folder; None where it has yet to be made, or to be made again."""
    if not path.is_file():
        return None
    try:
        return read_artefact(path)
    except ArtefactError as error:
        say(f"{error}; making it again")
        return None


def is_decoder(manifest: Manifest) -> bool:
    """Whether this is the second file of a `promptable` model, which takes prompts and no pictures."""
    return manifest.task == "promptable" and not manifest.decoder


def decoder_path(encoder: Path) -> Path:
    """Where the decoder of an encoder NAME.onnx lies: NAME.decoder.onnx."""
    return encoder.with_name(f"{encoder.stem}.decoder{encoder.suffix}")


def bundled_names() -> tuple[str, ...]:
    """Of the artefacts in the package, their files' names without suffix; `DEFAULT_MODEL` first."""
    names = (path.stem for path in _assets().glob("*.onnx"))
    return tuple(sorted(names, key=lambda name: (name != DEFAULT_MODEL, name)))


def bundled_artefact(name: str = DEFAULT_MODEL) -> Path:
    """Path of an artefact that ships in the package.

    Raises:
        ArtefactError: this installation has none of this name.
    """
    path = _assets() / f"{name}.onnx"
    if not path.is_file():
        raise ArtefactError(f"{path}: expected a bundled artefact, it is not there; reinstall vitesse")
    return path


def _assets() -> Path:
    return Path(__file__).parents[1] / "assets"


def cache_dir() -> Path:
    """Folder for what Vitesse remembers between runs: `VITESSE_CACHE`, or the user's cache folder."""
    named = os.environ.get("VITESSE_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("vitesse")


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            state = "is not a file" if path.exists() else "does not exist"
            raise ArtefactError(f"{path}: expected an artefact (.onnx), the path {state}; check its spelling")
        if path.stat().st_size > MAX_BYTES:
            raise ArtefactError(f"{path}: expected an artefact of less than 2 GiB; this file is no artefact")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _read_manifest(path: Path, facts: OnnxFacts) -> Manifest:
    text = facts.metadata.get(METADATA_KEY)
    if text is None:
        raise ArtefactError(
            f"{path}: expected an artefact, this is a plain ONNX model without a Vitesse manifest; "
            "make one with `vitesse export`"
        )
    try:
        raw = json.loads(text)
        schema = raw["schema"]
        if isinstance(schema, int) and schema > MANIFEST_SCHEMA:
            raise ConfigError(
                f"schema {schema} is newer than this Vitesse reads ({MANIFEST_SCHEMA}); upgrade vitesse"
            )
        manifest = Manifest.from_dict(raw)
        _check_types(manifest)
    except ConfigError as error:
        raise ArtefactError(f"{path}: the manifest is refused: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtefactError(
            f"{path}: the manifest cannot be read ({type(error).__name__}: {error}); export the model again"
        ) from error
    return manifest


def _check_types(manifest: Manifest) -> None:
    """JSON can put anything anywhere; what the runtime computes with must be of the kind it expects."""
    model, preprocess = manifest.model, manifest.preprocess
    whole: list[Any] = [*model.image_size, *preprocess.image_size, model.in_chans, model.num_classes]
    whole.append(manifest.mux_width)
    real: list[Any] = [*preprocess.mean, *preprocess.std, preprocess.crop_pct]
    text: list[Any] = [model.name, *manifest.class_names]
    if not all(type(value) is int for value in whole):
        raise TypeError(f"sizes and counts: expected whole numbers, got {whole}")
    if not all(type(value) in (int, float) and math.isfinite(value) for value in real):
        raise TypeError(f"mean, std and crop_pct: expected finite numbers, got {real}")
    if not all(isinstance(value, str) for value in text):
        raise TypeError("model name and class names: expected text")


def _check_graph(path: Path, facts: OnnxFacts, manifest: Manifest) -> None:
    if facts.external:
        raise ArtefactError(
            f"{path}: expected one file, its weights lie in another; export with the weights inside"
        )
    if facts.opset < MIN_OPSET:
        raise ArtefactError(
            f"{path}: expected opset {MIN_OPSET} or later, got {facts.opset}; export it again"
        )
    if facts.input_type != _FLOAT32:
        raise ArtefactError(
            f"{path}: expected a float32 input, got ONNX type {facts.input_type}; export it again"
        )
    if is_decoder(manifest):
        if facts.input_shape != (None, None, 3):
            raise ArtefactError(
                f"{path}: the manifest says prompts (N, P, 3), the graph takes {facts.input_shape}; "
                "export it again"
            )
        return
    wanted = (manifest.model.in_chans, *manifest.preprocess.image_size)
    batch, *image = facts.input_shape or (0,)
    agrees = len(image) == 3 and all(got in (None, want) for got, want in zip(image, wanted, strict=True))
    if manifest.preprocess.resize == "short" and any(image[1:]):
        raise ArtefactError(
            f"{path}: the manifest gives each picture a size of its own, the graph takes "
            f"{facts.input_shape}; export it again"
        )
    if batch not in (None, 1) or not agrees:
        raise ArtefactError(
            f"{path}: the manifest says input (B, {', '.join(map(str, wanted))}), the graph takes "
            f"{facts.input_shape}; export it again with a free batch"
        )
