"""What is timed: the model alone, from files to tensors, or from files to labels.

The stages with files take real photos, several batches a sample, so that decoding and inference overlap as
they do in use. Beside ours runs the usual way: Pillow, torchvision's transforms and, to labels, a loop over
batches of eager torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitesse.bench.contenders import TORCH_ENGINES, started
from vitesse.bench.measure import Contender, Runner
from vitesse.errors import ConfigError, require
from vitesse.inputs import expand
from vitesse.runtime.artefact import Artefact
from vitesse.runtime.imaging import load_tensor
from vitesse.runtime.predictor import Predictor
from vitesse.spec import PreprocessSpec

STAGES = ("model", "data", "end-to-end")
PHOTOS = 64
OURS, USUAL = "vitesse", "torchvision"


def of_stage(
    stage: str, contenders: Iterable[Contender], data: str | Path | None, threads: int
) -> list[Contender]:
    """The contenders that time a stage, from those that time the model.

    Args:
        stage: of `STAGES`.
        contenders: of the model; for `data` only their preprocessing counts.
        data: a folder of photos, for the other stages.
        threads: that decode, beside those of the engine.

    Raises:
        ConfigError: an unknown stage, or one that needs photos and has none.
    """
    if stage not in STAGES:
        raise ConfigError(f"--stage: expected {', '.join(STAGES)}, got {stage!r}")
    if stage == "model":
        return list(contenders)
    if data is None or not Path(data).is_dir():
        raise ConfigError(f"--stage {stage}: expected --data DIR with photos, got {data}")
    photos = [picture for picture in expand([str(data)]) if isinstance(picture, Path)][:PHOTOS]
    if stage == "data":
        return list(_decoding(contenders, photos, threads))
    return [_to_labels(contender, photos, threads) for contender in contenders]


def _decoding(contenders: Iterable[Contender], photos: Sequence[Path], threads: int) -> Iterator[Contender]:
    """Ours and the usual way to make each model's tensors."""
    seen = set()
    for contender in contenders:
        if contender.artefact is None or contender.model in seen:
            continue
        seen.add(contender.model)
        spec = contender.artefact.manifest.preprocess
        ways = {OURS: _loader(spec), USUAL: _usual_loader(spec)}
        for name, load in ways.items():
            yield replace(
                contender,
                engine=name,
                precision="fp32",
                stage="data",
                top1=None,
                start=_mapper(load, photos, threads),
                feed=lambda batch_size: batch_size,
                pictures=len(photos),
            )


def _loader(spec: PreprocessSpec) -> Callable[[Path], Any]:
    return lambda photo: load_tensor(photo, spec)


def _usual_loader(spec: PreprocessSpec) -> Callable[[Path], Any]:
    transforms = require("torchvision.transforms", "torch")
    from PIL import Image

    height, width = spec.image_size
    mode = transforms.InterpolationMode(spec.interpolation)
    squash = spec.resize == "squash"
    transform = transforms.Compose(
        [
            transforms.Resize((height, width) if squash else round(min(height, width) / spec.crop_pct), mode),
            transforms.CenterCrop((height, width)),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )

    def load(photo: Path) -> Any:
        with Image.open(photo) as image:
            return transform(image.convert("RGB"))

    return load


def _mapper(load: Callable[[Path], Any], photos: Sequence[Path], threads: int) -> Callable[[], Runner]:
    def start() -> Runner:
        def run(_: int) -> None:
            with ThreadPoolExecutor(threads) as pool:
                for _tensor in pool.map(load, photos):
                    pass

        return run

    return start


def _to_labels(contender: Contender, photos: Sequence[Path], threads: int) -> Contender:
    way = _usual_loop if contender.engine in TORCH_ENGINES else _pipeline
    return replace(
        contender,
        stage="end-to-end",
        start=way(contender, photos, threads) if contender.start else None,
        feed=lambda batch_size: batch_size,
        pictures=len(photos),
    )


def _pipeline(contender: Contender, photos: Sequence[Path], threads: int) -> Callable[[], Runner]:
    """`Predictor` as for the most photos a second: one batch at once for each thread."""

    def start() -> Runner:
        artefact: Artefact = contender.artefact  # type: ignore[assignment]
        engine = started(artefact, contender.engine, threads, streams=threads)

        def run(batch_size: int) -> None:
            predictor = Predictor(
                artefact, engine=engine, batch_size=batch_size, workers=threads, streams=threads
            )
            refused = [record.error for record in predictor.stream(photos) if record.error]
            if refused:
                raise ConfigError(f"--data: {len(refused)} of {len(photos)} photos are refused: {refused[0]}")

        return run

    return start


def _usual_loop(contender: Contender, photos: Sequence[Path], threads: int) -> Callable[[], Runner]:
    """One batch after the other: decode, transform, stack, run the eager model."""

    def start() -> Runner:
        assert contender.start is not None
        artefact: Artefact = contender.artefact  # type: ignore[assignment]
        model, load = contender.start(), _usual_loader(artefact.manifest.preprocess)

        def run(batch_size: int) -> None:
            for first in range(0, len(photos), batch_size):
                model(np.stack([load(photo) for photo in photos[first : first + batch_size]]))

        return run

    return start
