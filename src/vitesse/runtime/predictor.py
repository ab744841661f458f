"""Photos in, results out: decoding and inference overlap, memory is bounded, order is kept.

Shape suffixes: B pictures, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitesse.errors import ConfigError, TooLargeError, one_line
from vitesse.results import Record, regions
from vitesse.runtime.artefact import Artefact, bundled_artefact, read_artefact
from vitesse.runtime.decode import DEFAULT_LIMITS, TILED_LIMITS, ImageLimits
from vitesse.runtime.engines import Engine, create_engine, usable_cpus
from vitesse.runtime.imaging import place
from vitesse.runtime.multiplex import EnsembledEngine, whole_groups
from vitesse.runtime.postprocess import RECORDS, Outcome, found_objects, in_picture, top_k
from vitesse.runtime.sources import Size, Source, name_of, tensor_and_size
from vitesse.runtime.tiling import TILED_TASKS, Look, TensorAndSize, Tiler
from vitesse.runtime.windows import OVERLAP, Tiling
from vitesse.spec import as_size

T = TypeVar("T")

Loaded = TensorAndSize | str
"""What was loaded for a look, or why nothing was."""

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
        ConfigError: a number out of its range, `ensemble` of a model that takes pictures alone, or `tile` of
            a classifier.
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
        limits: ImageLimits | None = None,
        workers: int | None = None,
        streams: int = 1,
        ensemble: bool = False,
        tile: int | Size | None = None,
        overlap: float | None = None,
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
            limits: the largest picture to decode; `DEFAULT_LIMITS`, with tiles `TILED_LIMITS`.
            workers: threads that decode; as many as CPUs by default, at most 8.
            streams: batches that run at once, sharing the engine's threads (`create_engine`).
            ensemble: of a multiplexed model, see every picture in every slot (`EnsembledEngine`).
            tile: side, or (height, width), in pixels of the windows in which a detector or segmenter looks at
                pictures that are larger (`Tiler`); by default it looks at all pictures in one piece.
            overlap: least share of a tile that neighbours have in common; 0.2 by default.
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
        if overlap is not None and tile is None:
            raise ConfigError("overlap: expected tile beside it, the side of the windows that overlap")
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
        self._limits = limits or (DEFAULT_LIMITS if tile is None else TILED_LIMITS)
        self._workers, self._streams = workers, streams
        self._record = RECORDS[model.manifest.task]
        self._tiler: Tiler | None = None
        if tile is not None:
            tiling = Tiling(as_size(tile), OVERLAP if overlap is None else overlap)
            self._tiler = Tiler(tiling, model.manifest, self._limits, self._read)

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
        named = ((name_of(source, index), source) for index, source in enumerate(sources))
        outcomes = (
            self._in_one_piece(named) if self._tiler is None else self._tiler.outcomes(named, self._run)
        )
        return self._records(outcomes)

    def _in_one_piece(self, named: Iterator[tuple[str, Source]]) -> Generator[tuple[str, Outcome]]:
        return self._run(Look(key=name, load=partial(self._load, it), read=self._read) for name, it in named)

    def _records(self, outcomes: Generator[tuple[str, Outcome]]) -> Iterator[Record]:
        with contextlib.closing(outcomes):
            for name, outcome in outcomes:
                says = {"error": outcome} if isinstance(outcome, str) else outcome
                yield self._record(source=name, model=self.artefact.manifest.model.name, **says)

    def _run(self, looks: Iterator[Look[T]]) -> Generator[tuple[T, Outcome]]:
        decoders = ThreadPoolExecutor(self._workers, "vitesse-decode")
        runners = ThreadPoolExecutor(self._streams, "vitesse-run")
        feed = _Feed(looks, lambda look: decoders.submit(self._loaded, look))
        running: deque[tuple[list[Look[T]], Future[list[Outcome]]]] = deque()
        try:
            while True:
                feed.fill((AHEAD + self._streams - 1) * self._batch_size)
                taken, loaded = feed.take(self._batch_size)
                if taken:
                    running.append((taken, runners.submit(self._seen, taken, loaded)))
                if not running:
                    break
                if len(running) == self._streams or not taken:
                    done, outcomes = running.popleft()
                    yield from zip((look.key for look in done), outcomes.result(), strict=True)
            if feed.failure is not None:
                raise feed.failure
        finally:
            for pool in (decoders, runners):
                pool.shutdown(cancel_futures=True)

    def _load(self, source: Source) -> TensorAndSize:
        return tensor_and_size(source, self.artefact.manifest.preprocess, self._limits)

    def _loaded(self, look: Look[T]) -> Loaded:
        try:
            return look.load()
        except TooLargeError as error:
            return f"{error}{self._way_out()}"
        except Exception as error:
            return one_line(error)

    def _way_out(self) -> str:
        """What else can be done about a picture that is too large."""
        if self.artefact.manifest.task not in TILED_TASKS or self._limits != DEFAULT_LIMITS:
            return ""
        pixels, size = TILED_LIMITS.max_pixels / 1e6, TILED_LIMITS.max_bytes >> 20
        return f", or look at it by tiles (--tile): up to {pixels:g} megapixels and {size} MiB"

    def _seen(self, looks: list[Look[T]], loaded: list[Loaded]) -> list[Outcome]:
        """What came of each look."""
        pairs = zip(looks, loaded, strict=True)
        came = iter(self._infer([(look, item) for look, item in pairs if not isinstance(item, str)]))
        return [item if isinstance(item, str) else next(came) for item in loaded]

    def _infer(self, items: list[tuple[Look[T], TensorAndSize]]) -> list[Outcome]:
        """What came of tensors, or an error for each; those of one shape run together."""
        groups = groupby(items, lambda item: item[1][0].shape)
        return [outcome for _, group in groups for outcome in self._infer_batch(list(group))]

    def _infer_batch(self, items: list[tuple[Look[T], TensorAndSize]]) -> list[Outcome]:
        """The same of one shape. A batch that fails is run again one by one, so that one picture cannot spoil
        the others."""
        try:
            outputs = self.engine.run(np.stack([x_CHW for _, (x_CHW, _) in items]))
            return [
                look.read([output[row] for output in outputs], size)
                for row, (look, (_, size)) in enumerate(items)
            ]
        except Exception as error:
            if len(items) == 1:
                return [one_line(error)]
            return [self._infer_batch([item])[0] for item in items]

    def _read(self, outputs: Sequence[NDArray[Any]], size: Size) -> Mapping[str, Any]:
        """What the outputs for a picture of this (height, width) mean."""
        manifest = self.artefact.manifest
        names = manifest.class_names
        if manifest.task == "classify":
            return {"predictions": top_k(outputs[0][None], names, self._top_k)[0]}
        placement = place(size, manifest.preprocess)
        if manifest.task == "detect":
            boxes_N4, scores_N, labels_N, *masks = outputs
            found = found_objects(boxes_N4, scores_N, labels_N, placement, names, self._min_score, *masks)
            return {"predictions": found, "size": size}
        classes_HW = in_picture(outputs[0], placement, len(names))
        return {"classes_HW": classes_HW, "predictions": regions(classes_HW, names)}


class _Feed(Generic[T]):
    """Looks on their way through the decoders, in order."""

    def __init__(self, looks: Iterator[Look[T]], submit: Callable[[Look[T]], Future[Loaded]]) -> None:
        self._looks, self._submit = looks, submit
        self._pending: deque[tuple[Look[T], Future[Loaded]]] = deque()
        self._ended = False
        self.failure: Exception | None = None

    def fill(self, ahead: int) -> None:
        """Send looks to the decoders until `ahead` are under way."""
        while len(self._pending) < ahead and not self._ended:
            try:
                look = next(self._looks)
            except StopIteration:
                self._ended = True
            except Exception as error:
                self._ended, self.failure = True, error
            else:
                self._pending.append((look, self._submit(look)))

    def take(self, count: int) -> tuple[list[Look[T]], list[Loaded]]:
        """The next `count` looks, fewer at the end, and what was loaded for them."""
        taken = [self._pending.popleft() for _ in range(min(count, len(self._pending)))]
        return [look for look, _ in taken], [future.result() for _, future in taken]
