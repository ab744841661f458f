"""From a model's name or file to profiles of the engines that run it, under the roof of this machine.

EfficientViT, arXiv 2305.07027, section 2.1 and figure 2, for any model and engine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitesse.analyze.kinds import OTHER
from vitesse.analyze.profile import Operator, Profile, as_shares, median_of
from vitesse.analyze.roofline import Machine, below_ridge_share, measure_machine, place
from vitesse.analyze.subject import TORCH, Subject, find_subject
from vitesse.bench.contenders import started
from vitesse.bench.measure import Runner
from vitesse.bench.run import check_numbers
from vitesse.errors import EngineError, ExportError, one_line
from vitesse.progress import track
from vitesse.runtime.engines import OnnxRuntimeEngine
from vitesse.spec import as_size

WARM_UP = 2
MENTIONED_SHARE = 0.001
FAR_OFF = 0.25
"""Overhead of a profiler from which on its shares are to be taken with care."""


class Profiler(Protocol):
    """An engine that profiles its runs."""

    def run(self, batch_BCHW: NDArray[np.float32]) -> float:
        """One more run, or the mean of several; gives its seconds."""

    def runs(self) -> list[list[Operator]]:
        """The operators of every run, in their order."""


@dataclass(frozen=True, kw_only=True)
class RuntimeAnalysis:
    """Where each engine spends its time on a model.

    Attributes:
        model: as the user named it.
        profiles: of the engines that ran it.
        failures: by engine, why it did not.
    """

    model: str
    precision: str
    image_size: tuple[int, int]
    batch_size: int
    machine: Machine
    profiles: tuple[Profile, ...]
    failures: Mapping[str, str] = field(default_factory=dict)

    def remarks(self) -> list[str]:
        """What a reader should know beside the figures, a line each."""
        found = [f"{engine}: failed: {error}" for engine, error in self.failures.items()]
        for profile in self.profiles:
            parts, kinds = profile.by_role(), profile.by_kind()
            if not parts["mixer"]:
                found.append(f"{profile.engine}: no attention or other token mixer found, its share is 0")
            for what, share in (("modules", parts[OTHER]), ("operators", kinds[OTHER])):
                if share >= MENTIONED_SHARE:
                    names = ", ".join(profile.other(what))
                    found.append(f"{profile.engine}: {what} of no known place, {share:.1%}: {names}")
            if abs(profile.overhead) >= FAR_OFF:
                found.append(
                    f"{profile.engine}: profiling adds {profile.overhead:+.0%} of time: it bends the shares, "
                    "or the machine is busy"
                )
        return found

    def records(self, with_operators: bool = False) -> list[dict[str, Any]]:
        """One JSON record an engine; shares are fractions of the time inside operators."""
        common = {
            "model": self.model,
            "precision": self.precision,
            "image_size": list(self.image_size),
            "batch_size": self.batch_size,
            "threads": self.machine.threads,
        }
        found = [{**common, **_record(profile, self.machine, with_operators)} for profile in self.profiles]
        failed = {"memory_bound_share": None}
        return found + [
            {**common, "engine": engine, **failed, "error": error} for engine, error in self.failures.items()
        ]


def _record(profile: Profile, machine: Machine, with_operators: bool) -> dict[str, Any]:
    placements = [place(operator, machine) for operator in profile.operators]
    record = {
        "engine": profile.engine,
        "memory_bound_share": round(profile.memory_bound_share, 4),
        "compute_bound_share": round(profile.compute_bound_share, 4),
        "below_ridge_share": round(below_ridge_share(profile, machine), 4),
        "kinds": as_shares(profile.by_kind()),
        "modules": as_shares(profile.by_role()),
        "modules_by_kind": {role: as_shares(kinds) for role, kinds in profile.by_role_and_kind().items()},
        "p50_ms": _milliseconds(profile.plain_s),
        "profiled_ms": _milliseconds(profile.profiled_s),
        "operators_ms": _milliseconds(profile.operators_s),
        "profiling_overhead": round(profile.overhead, 4),
        "flops": sum(placement.flops for placement in placements),
        "bytes": sum(placement.nbytes for placement in placements),
        "machine": {**asdict(machine), "ridge_flops_per_byte": machine.ridge},
        "error": None,
    }
    if with_operators:
        rows = zip(profile.operators, profile.roles, placements, strict=True)
        record["operators"] = [
            {
                "name": operator.name,
                "type": operator.type,
                "kind": operator.kind,
                "module": operator.module,
                "part": role,
                "us": round(1e6 * operator.seconds, 2),
                "flops": placement.flops,
                "bytes": placement.nbytes,
                "bound": placement.bound,
                "attained": placement.attained and round(placement.attained, 4),
            }
            for operator, role, placement in rows
        ]
    return record


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 4)


def analyze_runtime(
    model: str,
    *,
    engines: str = "all",
    batch_size: int = 1,
    threads: int = 1,
    image_size: int | tuple[int, int] | None = None,
    arch: str | None = None,
    rounds: int = 10,
) -> RuntimeAnalysis:
    """Profile a model on the engines, interleaved with runs without profiler.

    Args:
        model: a name of ours or `timm:NAME`, with random weights, since speed does not depend on them; a
            `.safetensors` checkpoint; an `.onnx` artefact, `hf:OWNER/REPO` or a bundled one, which torch
            does not run.
        engines: names separated by commas, of `onnxruntime`, `openvino` and `torch`; `all` are those that are
            installed and run the model.
        batch_size: pictures in a batch.
        threads: of every engine; for torch of the whole process.
        image_size: (height, width) in pixels, or one number for both; default the model's own.
        arch: the architecture of a checkpoint whose header does not name it.
        rounds: runs with and without profiler of each engine.

    Raises:
        UnknownModelError: no model has this name; the message lists the nearest.
        ConfigError: an impossible number, an unknown engine, or one that cannot run this kind of model.
        ArtefactError, WeightsError, ExportError, MissingExtraError: see their messages.
        EngineError: no engine ran it.
    """
    check_numbers((batch_size,), threads, rounds)
    subject = find_subject(model, None if image_size is None else as_size(image_size), arch)
    pairs: dict[str, tuple[Runner, Profiler]] = {}
    failures: dict[str, str] = {}
    for engine in subject.engines(engines):
        try:
            pairs[engine] = _started(subject, engine, threads)
        except (EngineError, ExportError) as error:
            failures[engine] = one_line(error)
    shape = (batch_size, subject.spec.in_chans, *subject.spec.image_size)
    batch_BCHW = np.random.default_rng(0).standard_normal(shape, np.float32)
    profiles = []
    for engine, times in _interleaved(pairs, batch_BCHW, rounds).items():
        try:
            operators = median_of(pairs[engine][1].runs()[-rounds:], engine)
        except EngineError as error:
            failures[engine] = one_line(error)
            continue
        plain_s, profiled_s = map(statistics.median, times)
        profiles.append(Profile(engine=engine, operators=operators, plain_s=plain_s, profiled_s=profiled_s))
    if not profiles:
        raise EngineError(f"{model}: no engine runs it: {'; '.join(failures.values())}")
    return RuntimeAnalysis(
        model=model,
        precision=subject.precision,
        image_size=subject.spec.image_size,
        batch_size=batch_size,
        machine=measure_machine(threads, "int8" if subject.precision == "int8" else "fp32"),
        profiles=tuple(profiles),
        failures=failures,
    )


def _interleaved(
    pairs: Mapping[str, tuple[Runner, Profiler]], batch_BCHW: NDArray[np.float32], rounds: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of every run by engine, without and with profiler, in turn."""
    for plain, profiler in pairs.values():
        profiler.run(batch_BCHW)
        for _ in range(WARM_UP):
            plain(batch_BCHW)
    times: dict[str, tuple[list[float], list[float]]] = {engine: ([], []) for engine in pairs}
    for _ in track(range(rounds), "analyze", rounds):
        for engine, (plain, profiler) in pairs.items():
            begin = time.perf_counter()
            plain(batch_BCHW)
            times[engine][0].append(time.perf_counter() - begin)
            times[engine][1].append(profiler.run(batch_BCHW))
    return times


def _started(subject: Subject, engine: str, threads: int) -> tuple[Runner, Profiler]:
    """How an engine runs the subject: without profiler, and with it."""
    if engine == TORCH:
        import torch

        from vitesse.analyze.torch_profile import TorchProfiler
        from vitesse.models.engine import TorchEngine

        assert subject.module is not None
        torch.set_num_threads(threads)
        running = TorchEngine(subject.module().to(memory_format=torch.channels_last))
        return running.run, TorchProfiler(running.model)
    from vitesse.analyze.onnx_profile import OnnxRuntimeProfiler, OpenVinoProfiler

    artefact = subject.artefact()
    plain = started(artefact, engine, threads).run
    profiler = OnnxRuntimeProfiler if engine == OnnxRuntimeEngine.name else OpenVinoProfiler
    return plain, profiler(artefact, threads)
