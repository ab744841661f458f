"""Photos in, results out: decoding and inference overlap, memory is bounded, order is kept.

Shape suffixes: B pictures, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitesse.errors import ConfigError, ImageError, VitesseError
from vitesse.results import Record, regions
from vitesse.runtime.artefact import Artefact, bundled_artefact, read_artefact
from vitesse.runtime.engines import Engine, create_engine, usable_cpus
from vitesse.runtime.imaging import (
    DEFAULT_LIMITS,
    ImageLimits,
    load_tensor_and_size,
    place,
    preprocess,
    preprocess_array,
    to_rgb,
)
from vitesse.runtime.multiplex import EnsembledEngine, whole_groups
from vitesse.runtime.postprocess import RECORDS, found_objects, in_picture, top_k
from vitesse.spec import PreprocessSpec

Source = str | Path | bytes | tuple[str, bytes] | Image.Image | NDArray[Any]
"""A path, the bytes of a file (with or without a name), an opened picture, or an array.

Arrays are as `preprocess_array` takes them: RGB (H, W, 3) uint8, or bands (H, W, C).
"""

Sized = tuple[NDArray[np.float32], tuple[int, int]]
"""The tensor (C, H, W) of a picture, and its own (height, width)."""

Loaded = Sized | str
"""What came of a source, or why there is nothing."""

Outcome = Mapping[str, Any] | str
"""What came of a tensor: what its record says beside source and model, or why there is nothing."""

AHEAD = 4
"""Batches under way at most: one that runs, the others decoded meanwhile. A further stream adds one."""


class Predictor:
    """Says what is in pictures, with one artefact: classes, objects or maps, as the model's task is.

    Attributes:
        artefact: the model.
        engine: what runs it.

    Raises:
        ArtefactError: the artefact cannot be used.
        EngineError, MissingExtraError: the engine cannot be had, or refuses the model.
        ConfigError: a number out of its range, or `ensemble` of a model that takes pictures alone.
    """

    def __init__(
        self,
        model: str | Path | Artefact | None = None,
        *,
        engine: str | Engine = "auto",
        threads: int | None = None,
        batch_size: int = 8,
        top_k: int = 5,
        min_score: float = 0.25,
        limits: ImageLimits = DEFAULT_LIMITS,
        workers: int | None = None,
        streams: int = 1,
        ensemble: bool = False,
    ) -> None:
        """
        Args:
            model: path of an artefact, one already read, or None for the one that ships in the package.
            engine: `auto`, `onnxruntime` or `openvino`, or an engine of your own that runs this model.
            threads: of the engine; the CPUs that this process may use by default.
            batch_size: pictures a run of the engine; 1 for an artefact whose batch is fixed to 1, of a
                multiplexed one rounded up to whole groups.
            top_k: classes a picture, of a classifier.
            min_score: objects that score less are left out, of a detector; 0 to 1.
            limits: the largest picture to decode.
            workers: threads that decode; as many as CPUs by default, at most 8.
            streams: batches that run at once, sharing the engine's threads (`create_engine`).
            ensemble: of a multiplexed model, see every picture in every slot (`EnsembledEngine`).
        """
        workers = min(8, usable_cpus()) if workers is None else workers
        for name, value in (
            ("batch_size", batch_size),
            ("top_k", top_k),
            ("workers", workers),
            ("streams", streams),
        ):
            if value < 1:
                raise ConfigError(f"{name}: expected at least 1, got {value}")
        if not 0 <= min_score <= 1:
            raise ConfigError(f"min_score: expected 0 to 1, got {min_score}")
        if not isinstance(model, Artefact):
            model = read_artefact(bundled_artefact() if model is None else model)
        if model.manifest.task not in RECORDS:
            raise ConfigError(f"{model.path}: makes masks of what prompts show; use `vitesse segment`")
        self.artefact = model
        self.engine = (
            create_engine(model, engine, threads, streams, keep_compiled=True)
            if isinstance(engine, str)
            else engine
        )
        width = model.manifest.mux_width
        if ensemble:
            self.engine = EnsembledEngine(self.engine, width)
        self._batch_size = whole_groups(batch_size, width) if model.input_shape[0] is None else 1
        self._top_k, self._min_score = top_k, min_score
        self._limits, self._workers, self._streams = limits, workers, streams
        self._record = RECORDS[model.manifest.task]

    def predict(self, sources: Iterable[Source]) -> list[Record]:
        """One record for each source, in their order; see `stream`."""
        return list(self.stream(sources))

    def stream(self, sources: Iterable[Source]) -> Iterator[Record]:
        """Records of sources as they come, however many.

        Every source gives one record, in order; what cannot be decoded, or makes the engine fail, gives one
        with `error` set and does not affect others. Sources are read at most `AHEAD` batches ahead, with N
        streams `AHEAD` + N - 1. Closing the iterator early stops the decoding. An unnamed source is called
        `input N`, counted from 0.

        Raises:
            ConfigError: `sources` is one picture and not a collection of them.
            Exception: whatever iterating over `sources` raises, after the records of all sources before it.
        """
        if isinstance(sources, str | bytes | Path | Image.Image | np.ndarray):
            raise ConfigError(
                f"expected a collection of pictures, got one {type(sources).__name__}: put it in a list"
            )
        return self._stream(iter(sources))

    def _stream(self, sources: Iterator[Source]) -> Iterator[Record]:
        decoders = ThreadPoolExecutor(self._workers, "vitesse-decode")
        runners = ThreadPoolExecutor(self._streams, "vitesse-run")
        feed = _Feed(sources, lambda source: decoders.submit(self._load, source))
        running: deque[tuple[list[str], list[Loaded], Future[list[Outcome]]]] = deque()
        try:
            while True:
                feed.fill((AHEAD + self._streams - 1) * self._batch_size)
                names, loaded = feed.take(self._batch_size)
                if names:
                    readable = [item for item in loaded if not isinstance(item, str)]
                    running.append((names, loaded, runners.submit(self._infer, readable)))
                if not running:
                    break
                if len(running) == self._streams or not names:
                    yield from self._records(*running.popleft())
            if feed.failure is not None:
                raise feed.failure
        finally:
            for pool in (decoders, runners):
                pool.shutdown(cancel_futures=True)

    def _load(self, source: Source) -> Loaded:
        try:
            return tensor_and_size(source, self.artefact.manifest.preprocess, self._limits)
        except Exception as error:
            return _one_line(error)

    def _records(
        self, names: list[str], loaded: list[Loaded], inferred: Future[list[Outcome]]
    ) -> Iterator[Record]:
        outcomes = iter(inferred.result())
        for name, item in zip(names, loaded, strict=True):
            outcome = item if isinstance(item, str) else next(outcomes)
            says = {"error": outcome} if isinstance(outcome, str) else outcome
            yield self._record(source=name, model=self.artefact.manifest.model.name, **says)

    def _infer(self, loaded: list[Sized]) -> list[Outcome]:
        """What the records say, or an error, for each tensor; those of one shape run together."""
        groups = groupby(loaded, lambda item: item[0].shape)
        return [outcome for _, group in groups for outcome in self._infer_batch(list(group))]

    def _infer_batch(self, loaded: list[Sized]) -> list[Outcome]:
        """The same of one shape. A batch that fails is run again one by one, so that one picture cannot spoil
        the others."""
        try:
            outputs = self.engine.run(np.stack([x_CHW for x_CHW, _ in loaded]))
            return self._read(outputs, [size for _, size in loaded])
        except Exception as error:
            if len(loaded) == 1:
                return [_one_line(error)]
            return [self._infer_batch([item])[0] for item in loaded]

    def _read(self, outputs: Sequence[NDArray[Any]], sizes: Sequence[tuple[int, int]]) -> list[Outcome]:
        """What the outputs of a batch mean for pictures of these (height, width)."""
        manifest = self.artefact.manifest
        names = manifest.class_names
        if manifest.task == "classify":
            return [{"predictions": classes} for classes in top_k(outputs[0], names, self._top_k)]
        placed = [place(size, manifest.preprocess) for size in sizes]
        if manifest.task == "detect":
            rows = zip(zip(*outputs, strict=True), placed, strict=True)
            found = [
                found_objects(boxes_N4, scores_N, labels_N, placement, names, self._min_score, *masks)
                for (boxes_N4, scores_N, labels_N, *masks), placement in rows
            ]
            return [
                {"predictions": objects, "size": size} for objects, size in zip(found, sizes, strict=True)
            ]
        maps = [in_picture(*row, len(names)) for row in zip(outputs[0], placed, strict=True)]
        return [{"classes_HW": classes_HW, "predictions": regions(classes_HW, names)} for classes_HW in maps]


class _Feed:
    """Sources on their way through the decoders, in order."""

    def __init__(self, sources: Iterator[Source], submit: Callable[[Source], Future[Loaded]]) -> None:
        self._sources, self._submit = sources, submit
        self._pending: deque[tuple[str, Future[Loaded]]] = deque()
        self._count = 0
        self._ended = False
        self.failure: Exception | None = None

    def fill(self, ahead: int) -> None:
        """Send sources to the decoders until `ahead` are under way."""
        while len(self._pending) < ahead and not self._ended:
            try:
                source = next(self._sources)
            except StopIteration:
                self._ended = True
            except Exception as error:
                self._ended, self.failure = True, error
            else:
                self._pending.append((name_of(source, self._count), self._submit(source)))
                self._count += 1

    def take(self, count: int) -> tuple[list[str], list[Loaded]]:
        """The next `count` sources, fewer at the end: names, and what came of them."""
        taken = [self._pending.popleft() for _ in range(min(count, len(self._pending)))]
        return [name for name, _ in taken], [future.result() for _, future in taken]


def tensor_and_size(
    source: Source, spec: PreprocessSpec, limits: ImageLimits
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """A source preprocessed, (C, H, W), and its own (height, width).

    Raises:
        ImageError: the source is refused.
    """
    if isinstance(source, np.ndarray):
        return preprocess_array(source, spec, limits), (source.shape[0], source.shape[1])
    if isinstance(source, Image.Image):
        image = to_rgb(source, limits)
        return preprocess(image, spec), (image.height, image.width)
    if isinstance(source, tuple):
        source = source[1]
    if not isinstance(source, str | Path | bytes):
        raise ImageError(f"expected a path, bytes, a picture or an array, got {type(source).__name__}")
    return load_tensor_and_size(Path(source) if isinstance(source, str) else source, spec, limits)


def name_of(source: Source, index: int) -> str:
    """What records call a source: its own name, or its place in the order."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, tuple):
        return str(source[0])
    named = getattr(source, "filename", None)
    return os.fspath(named) if named else f"input {index}"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text and isinstance(error, VitesseError) else f"{type(error).__name__}: {text}"
