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
    RuntimeEngine,
    Threads,
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
    top_k: Annotated[int, typer.Option("--top-k", min=1, metavar="N", help="Labels a picture.")] = 5,
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
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="DIR", help="Write the pictures with labels, boxes, masks or colours drawn on."
        ),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, metavar="N", help="Largest picture to decode.")
    ] = 40_000_000,
    max_bytes: Annotated[
        int, typer.Option("--max-bytes", min=1, metavar="N", help="Largest file to read.")
    ] = 20 * 2**20,
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
      find . -name '*.jpg' | vitesse predict - --model mine.onnx --top-k 1
    """
    from vitesse.cli.show import show_records
    from vitesse.inputs import expand
    from vitesse.predictors import load
    from vitesse.progress import say
    from vitesse.runtime.decode import ImageLimits
    from vitesse.runtime.multiplex import dependence

    limits = ImageLimits(max_pixels=max_pixels, max_bytes=max_bytes)
    pictures = expand(sources, limits)
    predictor = load(
        model,
        arch=arch,
        engine=engine,
        threads=threads,
        image_size=as_pixels(image_size),
        streams=streams,
        top_k=top_k,
        min_score=min_score,
        batch_size=batch_size,
        limits=limits,
        ensemble=ensemble,
    )
    if (manifest := predictor.artefact.manifest).mux_width > 1:
        say(dependence(manifest))
    return show_records(pictures, predictor.stream(pictures), as_json=as_json, save=save, limits=limits)
