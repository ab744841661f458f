"""Engines run an artefact: numpy batch in, numpy outputs out. Ask for one and get it, or an error.

Shape suffixes: B pictures, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import EngineError, VitesseError, did_you_mean, require
from vitesse.provenance import cpu_model
from vitesse.runtime import autoselect
from vitesse.runtime.artefact import Artefact
from vitesse.runtime.compiled import Blob

_ORT_PROVIDER = "CPUExecutionProvider"
WORTH_KEEPING_S = 0.3
"""A model that compiles faster is compiled at every start; int8 takes OpenVINO over a second."""


class Engine(Protocol):
    """Runs one artefact."""

    name: str

    def run(self, batch_BCHW: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """The outputs of the model, each with B rows, all finite.

        Args:
            batch_BCHW: preprocessed pictures, float32, of the artefact's input shape.

        Raises:
            EngineError: another shape or dtype, NaN or infinity in an output, or the engine failed.
        """


class ArtefactEngine(Engine, Protocol):
    """What `create_engine` makes; it runs artefacts with more than one input too."""

    def run(self, batch_BCHW: NDArray[np.float32], *others: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """See `Engine.run`; `others` are the further inputs, in the model's order."""


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU. `threads` defaults to the CPUs that this process may use.

    Raises:
        EngineError: ONNX Runtime refuses the model.
    """

    name = "onnxruntime"

    def __init__(
        self, artefact: Artefact, threads: int | None = None, streams: int = 1, keep_compiled: bool = False
    ) -> None:
        require("onnxruntime", "core")  # what is not installed is no refusal
        # The callers of `run` are threads too; those of the session help all of them.
        with _refusing(self.name, "refused the model"):
            self._session = onnxruntime_session(artefact.data, (threads or usable_cpus()) - streams + 1)
        if (used := self._session.get_providers()[0]) != _ORT_PROVIDER:
            raise EngineError(
                f"{self.name}: asked for {_ORT_PROVIDER}, it chose {used}; reinstall onnxruntime"
            )
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._shape = artefact.input_shape

    def run(self, batch_BCHW: NDArray[np.float32], *others: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """See `Engine.run`. May be called from several threads at once."""
        _check_batch(batch_BCHW, self._shape)
        with _refusing(self.name, "failed"):
            outputs = self._session.run(None, dict(zip(self._inputs, (batch_BCHW, *others), strict=True)))
        return checked_outputs(outputs, len(batch_BCHW), self.name)


class OpenVinoEngine:
    """OpenVINO on the CPU in float32, so that its figures are comparable.

    Raises:
        MissingExtraError: the extra `openvino` is not installed.
        EngineError: OpenVINO refuses the model.
    """

    name = "openvino"

    def __init__(
        self, artefact: Artefact, threads: int | None = None, streams: int = 1, keep_compiled: bool = False
    ) -> None:
        require("openvino", "openvino")  # what is not installed is no refusal
        with _refusing(self.name, "refused the model"):
            compiled = _compiled(artefact, threads or usable_cpus(), streams, keep_compiled)
            used = compiled.get_property("EXECUTION_DEVICES")
        if used != ["CPU"]:
            raise EngineError(f"{self.name}: asked for CPU, it chose {used}; reinstall openvino")
        self._shape, self._num_inputs = artefact.input_shape, len(compiled.inputs)
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self._idle.put(compiled.create_infer_request())

    def run(self, batch_BCHW: NDArray[np.float32], *others: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """See `Engine.run`. Of calls from several threads as many run at once as there are streams."""
        _check_batch(batch_BCHW, self._shape)
        request = self._idle.get()
        try:
            with _refusing(self.name, "failed"):
                inputs = dict(zip(range(self._num_inputs), (batch_BCHW, *others), strict=True))
                outputs = list(request.infer(inputs, share_inputs=True).values())
        finally:
            self._idle.put(request)
        return checked_outputs(outputs, len(batch_BCHW), self.name)


def onnxruntime_session(model: bytes, threads: int, profile: str = "") -> Any:
    """An `onnxruntime.InferenceSession` on the CPU for an ONNX model.

    With `profile` it keeps one, in a file whose name begins so, until `end_profiling` gives that name.
    """
    ort = require("onnxruntime", "core")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads that spin take the processor from those that decode: 3.8 against 2.6 ms a photo in all.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_profiling, options.profile_file_prefix = bool(profile), profile
    options.log_severity_level = 4  # fatal only: what fails comes back as an exception
    return ort.InferenceSession(model, options, providers=[_ORT_PROVIDER])


@functools.cache
def openvino_core() -> Any:
    """The one `openvino.Core` of this process.

    Its CPU plugin gives signal handlers a stack of its own (for AMX) and unmaps that stack with the plugin.
    Were the plugin freed by another thread than the one that loaded it, the next signal would end the
    process: Ctrl-C, or a child that exits while torch's data loader watches them. So it is never freed.

    Raises:
        MissingExtraError: the extra `openvino` is not installed.
    """
    return require("openvino", "openvino").Core()


def openvino_settings(threads: int, streams: int = 1) -> dict[str, Any]:
    """How OpenVINO runs here: as many batches at once as `streams`, which share the threads."""
    return {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # its default is bfloat16 where the CPU has it
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
    }


def _compiled(artefact: Artefact, threads: int, streams: int, keep: bool) -> Any:
    """The artefact compiled by OpenVINO: that of an earlier run where one was kept."""
    core, settings = openvino_core(), openvino_settings(threads, streams)
    blob = Blob("openvino", autoselect.version_of("openvino"), cpu_model(), artefact.sha256, settings)
    if (known := blob.recall()) is not None:
        with contextlib.suppress(RuntimeError):
            return core.import_model(known, "CPU", settings)
    started = time.perf_counter()
    compiled = core.compile_model(core.read_model(artefact.data), "CPU", settings)
    if keep and time.perf_counter() - started > WORTH_KEEPING_S:
        with contextlib.suppress(RuntimeError):
            blob.remember(compiled.export_model().getvalue())
    return compiled


ENGINES: dict[str, Callable[[Artefact, int | None, int, bool], ArtefactEngine]] = {
    OnnxRuntimeEngine.name: OnnxRuntimeEngine,
    OpenVinoEngine.name: OpenVinoEngine,
}


def available_engines() -> tuple[str, ...]:
    """Names of the installed engines; nothing is imported."""
    return tuple(name for name in ENGINES if find_spec(name) is not None)


def create_engine(
    artefact: Artefact,
    name: str = "auto",
    threads: int | None = None,
    streams: int = 1,
    keep_compiled: bool = False,
) -> ArtefactEngine:
    """The engine of this name, or with `auto` the fastest of those installed.

    `auto` with one engine installed takes it. With more it runs each on this artefact, keeps the one that
    `vitesse.runtime.autoselect.fastest` names, and remembers it for this artefact, CPU, numbers of threads
    and streams, and these engine versions. An engine that fails on the artefact is left out.

    Args:
        artefact: what to run.
        name: `auto`, `onnxruntime` or `openvino`.
        threads: of the engine; the CPUs that this process may use by default.
        streams: batches that may run at once, sharing the threads: 1 gives the first result soonest, as many
            as threads the most results a second, to callers who run that many batches at once.
        keep_compiled: keep what takes long to compile for the next start, in the cache folder.

    Raises:
        EngineError: an unknown name, or the engine refuses the model.
        MissingExtraError: the named engine is not installed.
    """
    for option, value in (("threads", threads), ("streams", streams)):
        if value is not None and value < 1:
            raise EngineError(f"{option}: expected at least 1, got {value}")
    if streams > (threads or usable_cpus()):
        raise EngineError(
            f"streams: expected at most one a thread, {threads or usable_cpus()}, got {streams}"
        )
    if name == "auto":
        return _fastest_engine(artefact, threads, streams, keep_compiled)
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}; {did_you_mean(name, ['auto', *ENGINES])}")
    return ENGINES[name](artefact, threads, streams, keep_compiled)


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fastest_engine(
    artefact: Artefact, threads: int | None, streams: int, keep_compiled: bool
) -> ArtefactEngine:
    names = available_engines()
    if len(names) == 1:
        return ENGINES[names[0]](artefact, threads, streams, keep_compiled)
    height, width = artefact.manifest.model.image_size
    model = f"{artefact.sha256}@{height}x{width}"
    memory = autoselect.Memory(names, model, threads or usable_cpus(), streams)
    if (known := memory.recall()) is not None:
        with contextlib.suppress(VitesseError):
            return ENGINES[known](artefact, threads, streams, keep_compiled)
    engines: dict[str, ArtefactEngine] = {}
    failures = []
    for name in names:
        try:
            engines[name] = ENGINES[name](artefact, threads, streams, keep_compiled)
            engines[name].run(autoselect.sample_batch(artefact, 1))
        except VitesseError as error:
            engines.pop(name, None)
            failures.append(str(error))
    if not engines:
        raise EngineError("no installed engine runs this artefact: " + "; ".join(failures))
    with ThreadPoolExecutor(streams, "vitesse-measure") as callers:
        runners = {name: _by_all(callers, streams, engine.run) for name, engine in engines.items()}
        winner = autoselect.fastest(runners, artefact)
    memory.remember(winner)
    return engines[winner]


def _by_all(callers: ThreadPoolExecutor, streams: int, run: autoselect.Runner) -> autoselect.Runner:
    """A batch run by as many callers at once as there are streams."""
    return lambda batch_BCHW: list(callers.map(run, [batch_BCHW] * streams))


@contextlib.contextmanager
def _refusing(engine: str, what: str) -> Iterator[None]:
    """Whatever the engine's library raises becomes an `EngineError` of one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise EngineError(f"{engine} {what}: {reason or type(error).__name__}") from error


def _check_batch(batch_BCHW: NDArray[np.float32], shape: tuple[int | None, ...]) -> None:
    got = batch_BCHW.shape
    agrees = len(got) == len(shape) and all(
        want in (None, side) for side, want in zip(got, shape, strict=True)
    )
    if batch_BCHW.dtype != np.float32 or not agrees or got[0] < 1:
        sides = ", ".join("any" if side is None else str(side) for side in shape)
        raise EngineError(f"expected a batch ({sides}) of float32, got {got} of {batch_BCHW.dtype}")


def checked_outputs(outputs: Sequence[NDArray[Any]], rows: int, engine: str) -> tuple[NDArray[Any], ...]:
    """What an engine gave, with `rows` rows each, all finite.

    Raises:
        EngineError: it is not so.
    """
    for index, output in enumerate(outputs):
        if len(output) != rows:
            raise EngineError(f"{engine}: output {index} has {len(output)} rows for {rows} pictures")
        if not np.isfinite(output).all():
            bad = [row for row in range(rows) if not np.isfinite(output[row]).all()]
            raise EngineError(
                f"{engine}: output {index} holds NaN or infinity for {len(bad)} of {rows} pictures, "
                f"first for picture {bad[0]} of the batch"
            )
    return tuple(outputs)
