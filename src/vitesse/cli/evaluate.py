"""`vitesse evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitesse.cli.options import (
    AnyEngine,
    Arch,
    EngineOption,
    Ensemble,
    ImageSize,
    Json,
    Model,
    Overlap,
    Threads,
    Tile,
    as_pixels,
)


def run(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Class folders, a list, Parquet, shards, SET:FOLDER; COCO, YOLO or VOC boxes; label maps.",
        ),
    ],
    model: Model = None,
    arch: Arch = None,
    engine: Annotated[AnyEngine, EngineOption] = "auto",
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Which part of the data.")] = "test",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, metavar="N", help="Pictures a run of the model.")
    ] = 64,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Score so many, drawn by seed 0.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", metavar="FILE", help="Other labels, JSON, such as ImageNet-ReaL's real.json."
        ),
    ] = None,
    threads: Threads = None,
    image_size: ImageSize = None,
    ensemble: Ensemble = False,
    tile: Tile = None,
    overlap: Overlap = None,
    as_json: Json = False,
) -> int:
    """Measure accuracy and speed, of a classifier also calibration, on pictures that say what is in them.

    \b
    Examples:
      vitesse evaluate photos/ --model mine.onnx
      vitesse evaluate photos/ --model runs/mine/checkpoints/best/model.safetensors --split val
      vitesse evaluate cifar100/ --engine openvino --json
      vitesse evaluate imagenet/ --model efficientvit_m5 --engine torch
      vitesse evaluate imagenet/ --labels real.json
      vitesse evaluate boxes/ --model detector.onnx
      vitesse evaluate aerial/ --model detector.onnx --tile 640
    """
    from vitesse.cli.show import show_evaluation
    from vitesse.evaluate import evaluate

    result = evaluate(
        data,
        model=model,
        arch=arch,
        engine=engine,
        split=split,
        batch_size=batch_size,
        limit=limit,
        threads=threads,
        image_size=as_pixels("--image-size", image_size),
        ensemble=ensemble,
        tile=as_pixels("--tile", tile),
        overlap=overlap,
        labels=labels,
    )
    return show_evaluation(result, as_json=as_json)
