"""`vitesse segment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitesse.cli.options import EngineOption, Json, RuntimeEngine, Threads, as_numbers


def run(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="A picture, '-' (standard input), or sample:rocket.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="FILE|NAME",
            help="NAME.onnx of `vitesse export`, with NAME.decoder.onnx beside it, or a model's name.",
        ),
    ] = ...,  # type: ignore[assignment]
    point: Annotated[
        list[str] | None,
        typer.Option(
            "--point",
            metavar="X,Y[,LABEL]",
            help="In pixels: on the object (label 1, the default) or not on it (0). Several mean one object.",
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            "--box",
            metavar="X0,Y0,X1,Y1",
            help="Left, top, right and bottom in pixels. Several mean an object each.",
        ),
    ] = None,
    multimask: Annotated[
        bool,
        typer.Option("--multimask", help="The best of three masks, where a prompt may mean several things."),
    ] = False,
    engine: Annotated[RuntimeEngine, EngineOption] = "auto",
    threads: Threads = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="DIR", help="Write the picture with its masks, and each mask as PNG."),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, metavar="N", help="Largest picture to decode.")
    ] = 40_000_000,
    max_bytes: Annotated[
        int, typer.Option("--max-bytes", min=1, metavar="N", help="Largest file to read.")
    ] = 20 * 2**20,
    as_json: Json = False,
) -> int:
    """Cut out the objects that points or boxes show, as masks.

    \b
    Examples:
      vitesse segment photo.jpg --model sam.onnx --box 40,60,320,240 --save out
      vitesse segment photo.jpg --model sam.onnx --point 180,150 --multimask
      vitesse segment photo.jpg --model sam.onnx --point 180,150 --point 60,200,0 --json
      vitesse segment photo.jpg --model efficientvit_sam_l0 --box 0,0,90,80 --box 40,60,320,240
    """
    from vitesse.cli.show_masks import show_masks
    from vitesse.inputs import expand_one
    from vitesse.predictors import load_masks
    from vitesse.runtime.decode import ImageLimits

    limits = ImageLimits(max_pixels=max_pixels, max_bytes=max_bytes)
    points = [as_numbers("--point", text) for text in point or ()]
    boxes = [as_numbers("--box", text) for text in box or ()]
    picture = expand_one(image, limits)
    predictor = load_masks(model, engine=engine, threads=threads, limits=limits)
    predictor.set_image(picture)
    result = predictor.predict(points=points, boxes=boxes, multimask=multimask)
    return show_masks(picture, result, as_json=as_json, save=save, limits=limits)
