"""From names and files to contenders: every way to run each model, prepared with the same care.

A name is built with random weights, since speed does not depend on them, and exported as a user would:
folded, traced, slimmed, for int8 calibrated on noise. The files are kept in the cache folder. An `.onnx`
artefact runs as it is.
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitesse.bench.measure import Contender, Runner
from vitesse.bench.peers import PEERS, PREFIX
from vitesse.catalogue import ARTEFACT_SUFFIX, CHECKPOINT_SUFFIX, PICKLE_SUFFIXES, facts
from vitesse.errors import (
    ConfigError,
    EngineError,
    MissingExtraError,
    VitesseError,
    from_extra,
    one_line,
)
from vitesse.progress import say
from vitesse.provenance import versions
from vitesse.runtime.artefact import Artefact, cache_dir, kept_artefact, read_artefact
from vitesse.runtime.engines import ENGINES, Engine, available_engines, create_engine
from vitesse.spec import Manifest, ModelSpec, PreprocessSpec, Task, to_mapping

TORCH_ENGINES = ("torch", "torch-compile")
PRECISIONS = ("fp32", "int8")
CALIBRATION_IMAGES = 8
COMPILED_PROGRAMS = 512
PROBE = ("-m", "vitesse.bench.probe")


def contenders(
    models: Sequence[str], engines: Sequence[str], precisions: Sequence[str], threads: int
) -> Iterator[Contender]:
    """Every model on every engine in every precision that the engine has; what fails says why.

    Args:
        models: names of ours, `timm:NAME`, or `.onnx` artefacts.
        engines: of `available_engines()` and `TORCH_ENGINES`.
        precisions: of `PRECISIONS`; an artefact has its own alone.
        threads: of every engine.
    """
    for model in models:
        if Path(model).suffix in (CHECKPOINT_SUFFIX, *PICKLE_SUFFIXES):
            raise ConfigError(f"{model}: expected a name or an artefact (.onnx); run `vitesse export` first")
        if model.endswith(ARTEFACT_SUFFIX):
            yield from _of_file(Path(model), engines, threads)
        else:
            yield from _of_name(model, engines, precisions, threads)


def _of_file(path: Path, engines: Sequence[str], threads: int) -> Iterator[Contender]:
    artefact = read_artefact(path)
    manifest = artefact.manifest
    for engine in engines:
        if engine in TORCH_ENGINES:
            continue
        yield Contender(
            model=str(path),
            engine=engine,
            precision=manifest.precision,
            image_size=manifest.model.image_size,
            macs=_macs_of(manifest),
            top1=manifest.accuracy["top1"] if manifest.accuracy else None,
            top1_on=str((manifest.accuracy or {}).get("dataset", "")),
            in_chans=manifest.model.in_chans,
            start=_engine_starter(artefact, engine, threads),
            artefact=artefact,
        )


def _of_name(
    model: str, engines: Sequence[str], precisions: Sequence[str], threads: int
) -> Iterator[Contender]:
    spec, top1 = spec_and_accuracy(model)
    for precision in precisions:
        usable = [engine for engine in engines if precision == "fp32" or engine not in TORCH_ENGINES]
        common: dict[str, Any] = {
            "model": model,
            "precision": precision,
            "image_size": spec.image_size,
            "top1": top1,
        }
        try:
            artefact = exported(spec, precision)
        except Exception as error:  # whatever an exporter meets in a peer is that peer's row
            for engine in usable:
                yield Contender(engine=engine, error=f"export failed: {one_line(error)}", **common)
            continue
        macs = int(artefact.manifest.provenance["macs"])
        for engine in usable:
            start = (
                _torch_starter(spec, engine, threads)
                if engine in TORCH_ENGINES
                else _engine_starter(artefact, engine, threads)
            )
            yield Contender(engine=engine, macs=macs, start=start, artefact=artefact, **common)


def spec_and_accuracy(model: str) -> tuple[ModelSpec, float | None]:
    if not model.startswith(PREFIX):
        from vitesse.models.create import spec_for  # loads torch, which tables of artefacts do without

        spec = spec_for(model)
        return spec, None if spec.variant else facts(spec.name).top1
    name = model.removeprefix(PREFIX)
    if (peer := PEERS.get(name)) is not None:
        return ModelSpec(name=model, image_size=(peer.side, peer.side)), peer.top1
    try:  # a model of ours, as timm has it
        return ModelSpec(name=model, image_size=facts(name).image_size), None
    except VitesseError:
        return ModelSpec(name=model, image_size=_size_in_timm(model)), None


def _size_in_timm(model: str) -> tuple[int, int]:
    """Of timm's weights; of a model that timm does not have any: its export says so."""
    from vitesse.models.foreign import timm_preprocess

    try:
        return timm_preprocess(model).image_size
    except VitesseError:
        return (224, 224)


def _macs_of(manifest: Manifest) -> int | None:
    """Of a file: what it says, or what is known of its architecture at this size."""
    if (said := manifest.provenance.get("macs")) is not None:
        return int(said)
    if manifest.model.variant:
        return None
    try:
        known = facts(manifest.model.name)
    except VitesseError:
        return None
    return known.macs if known.image_size == manifest.model.image_size else None


def exported(spec: ModelSpec, precision: str) -> Artefact:
    """The artefact of a model with random weights, from the cache folder or made now.

    Raises:
        ExportError: the model cannot be exported or quantised.
        UnknownModelError, MissingExtraError: see `build`.
    """

    def make() -> tuple[Any, Manifest]:
        from vitesse.export.onnx import to_onnx
        from vitesse.export.quantize import quantize

        model = random_model(spec)
        width, macs = _width(model), count_macs(model, spec)
        proto = to_onnx(folded(model), spec)
        if precision == "int8":
            shape = (CALIBRATION_IMAGES, spec.in_chans, *spec.image_size)
            noise_BCHW = np.random.default_rng(0).standard_normal(shape, np.float32)
            proto = quantize(proto, noise_BCHW, mux_width=width)
        manifest = random_manifest(spec, {"macs": macs}, getattr(model, "task", "classify"))
        return proto, replace(manifest, precision=precision, mux_width=width)  # type: ignore[arg-type]

    size = "x".join(map(str, spec.image_size))
    return made_once(f"{spec.name}{_changed(spec)}-{size}-{precision}", make)


def _changed(spec: ModelSpec) -> str:
    """What tells the file of a variant from those of others."""
    if not spec.variant:
        return ""
    text = json.dumps(to_mapping(spec)["variant"], sort_keys=True)
    return f"+{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def made_once(name: str, make: Callable[[], tuple[Any, Manifest]]) -> Artefact:
    """The artefact of this name in the cache folder, or made now: an `onnx.ModelProto` and its manifest.

    Other versions, and other code of models or exports, make it again.
    """
    path = cache_dir() / "bench" / f"{name.replace(':', '-')}-{_key()}.onnx"
    if (kept := kept_artefact(path)) is not None:
        return kept
    with from_extra("export"):
        from vitesse.export.onnx import write_artefact

        say(f"{name}: exporting, once")
        write_artefact(*make(), path)
    return read_artefact(path)


@functools.cache
def _key() -> str:
    """Of what an export depends on: versions, and how models and exports are written here."""
    digest = hashlib.sha256(str(sorted(versions().items())).encode())
    package = Path(__file__).parents[1]
    for code in ("layers.py", "models/*.py", "heads/*.py", "export/*.py"):
        for path in sorted(package.glob(code)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def random_manifest(spec: ModelSpec, provenance: Mapping[str, Any], task: Task = "classify") -> Manifest:
    """Of a model with random weights."""
    return Manifest(
        model=spec,
        task=task,
        class_names=tuple(map(str, range(spec.num_classes))),
        preprocess=PreprocessSpec(
            image_size=spec.image_size, resize="crop" if task == "classify" else "squash"
        ),
        trained_on="nothing: random weights, for timing",
        provenance=provenance,
    )


def random_model(spec: ModelSpec) -> Any:
    """A torch model in evaluation mode whose branches all take part."""
    import torch

    from vitesse.models import build

    torch.manual_seed(0)
    model = build(spec).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return model


def folded(model: Any) -> Any:
    """Ours folded, any other as it is."""
    from vitesse.export.fold import fold
    from vitesse.models.backbone import VisionModel

    return fold(model) if isinstance(model, VisionModel) else model


def count_macs(model: Any, spec: ModelSpec) -> int:
    """Multiply-accumulates of a torch model for one picture."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    width = _width(model)
    with torch.inference_mode(), FlopCounterMode(display=False) as flops:
        model(torch.zeros(width, spec.in_chans, *spec.image_size))
    return int(flops.get_total_flops()) // 2 // width


def _width(model: Any) -> int:
    """Images that share a pass of a torch model."""
    return int(getattr(model, "mux_width", 1))


def _engine_starter(artefact: Artefact, engine: str, threads: int) -> Callable[[], Runner]:
    return lambda: started(artefact, engine, threads).run


def started(artefact: Artefact, engine: str, threads: int, streams: int = 1) -> Engine:
    """`create_engine`, for int8 files that an engine may not survive too.

    Raises:
        EngineError: it refuses the file, or crashes on it.
    """
    if artefact.manifest.precision == "int8":
        _survives(artefact, engine)
    return create_engine(artefact, engine, threads, streams)


def _survives(artefact: Artefact, engine: str) -> None:
    """Try an int8 file in a process of its own first: engines have been seen to crash on some graphs.

    Raises:
        EngineError: the process died.
    """
    command = [sys.executable, *PROBE, str(artefact.path), engine]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise EngineError(f"{engine} crashes on this file (signal {-done.returncode})")


def _torch_starter(spec: ModelSpec, engine: str, threads: int) -> Callable[[], Runner]:
    def start() -> Runner:
        import torch

        from vitesse.models.engine import TorchEngine

        torch.set_num_threads(threads)
        model = folded(random_model(spec))
        if engine == "torch-compile":
            # A program for each model and batch size; past the limit torch would go on uncompiled.
            torch._dynamo.config.recompile_limit = COMPILED_PROGRAMS
            model = torch.compile(model, dynamic=False)
        return TorchEngine(model.to(memory_format=torch.channels_last)).run

    return start


def chosen_engines(names: str) -> tuple[str, ...]:
    """`all`, or names separated by commas.

    Raises:
        ConfigError: an unknown name.
        MissingExtraError: an engine that is not installed.
    """
    known = (*ENGINES, *TORCH_ENGINES)
    if names == "all":
        return (*available_engines(), "torch")
    wanted = tuple(name.strip() for name in names.split(","))
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--engine: expected of {', '.join(known)}, got {name!r}")
        if name in ENGINES and name not in available_engines():
            raise MissingExtraError(name, "bench")
    return wanted
