"""`vitesse predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitesse.cli.options import (
    Arch,
    EngineOption,
    Ensemble,
    ImageSize,
    Json,
    Model,
    Overlap,
    RuntimeEngine,
    Threads,
    Tile,
    as_pixels,
)


def run(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files, folders, globs, '-' (stdin: one picture, or paths line by line), sample:rocket.",
        ),
    ],
    model: Model = None,
    arch: Arch = None,
    engine: Annotated[RuntimeEngine, EngineOption] = "auto",
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, metavar="N", help="Of a classifier: labels a picture.")
    ] = 5,
    min_score: Annotated[
        float,
        typer.Option("--min-score", min=0, max=1, metavar="X", help="Of a detector: its surest objects."),
    ] = 0.25,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, metavar="N", help="Pictures a run of the model.")
    ] = 8,
    threads: Threads = None,
    streams: Annotated[
        int,
        typer.Option("--streams", min=1, metavar="N", help="Batches at once, sharing the threads."),
    ] = 1,
    image_size: ImageSize = None,
    ensemble: Ensemble = False,
    tile: Tile = None,
    overlap: Overlap = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="DIR", help="Write the pictures with labels, boxes, masks or colours drawn on."
        ),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            "--max-pixels",
            min=1,
            metavar="N",
            help="Largest picture to decode; 40 million, with --tile 250 million.",
        ),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            "--max-bytes", min=1, metavar="N", help="Largest file to read; 20 MiB, with --tile 200 MiB."
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Say what is in pictures: classes, objects with boxes or masks, or the class of every pixel.

    A picture that cannot be read gets a record with the reason; the others go on, and the exit code is 3.

    \b
    Examples:
      vitesse predict photo.jpg
      vitesse predict holiday/ --json > labels.jsonl
      vitesse predict archive/ --batch-size 16 --threads 4 --streams 4 --json > labels.jsonl
      vitesse predict sample:rocket sample:coffee --save out
      vitesse predict holiday/ --model multiplexed.onnx --ensemble
      vitesse predict smear.jpg --model detector.onnx --min-score 0.4 --save out
      vitesse predict aerial.jpg --model detector.onnx --tile 640 --save out
      find . -name '*.jpg' | vitesse predict - --model mine.onnx --top-k 1
    """
    from vitesse.cli.show import show_records
    from vitesse.inputs import expand
    from vitesse.predictors import load
    from vitesse.progress import say
    from vitesse.runtime.decode import DEFAULT_LIMITS, TILED_LIMITS, ImageLimits
    from vitesse.runtime.multiplex import dependence

    usual = DEFAULT_LIMITS if tile is None else TILED_LIMITS
    limits = ImageLimits(max_pixels=max_pixels or usual.max_pixels, max_bytes=max_bytes or usual.max_bytes)
    pictures = expand(sources, limits)
    predictor = load(
        model,
        arch=arch,
        engine=engine,
        threads=threads,
        image_size=as_pixels("--image-size", image_size),
        streams=streams,
        top_k=top_k,
        min_score=min_score,
        batch_size=batch_size,
        limits=limits,
        ensemble=ensemble,
        tile=as_pixels("--tile", tile),
        overlap=overlap,
    )
    if (manifest := predictor.artefact.manifest).mux_width > 1:
        say(dependence(manifest))
    return show_records(pictures, predictor.stream(pictures), as_json=as_json, save=save, limits=limits)
