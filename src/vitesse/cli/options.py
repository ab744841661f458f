"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout; the rest on stderr.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Artefact (.onnx), checkpoint (.safetensors), name of published weights or hf:OWNER/REPO; "
        "default the bundled model.",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option("--arch", help="Architecture of a .safetensors file that does not say it.", metavar="NAME"),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of the engine; default all CPUs.", metavar="N")
]
ImageSize = Annotated[
    str | None,
    typer.Option("--image-size", help="Pixels, or HxW, for an artefact that takes any size.", metavar="PX"),
]
Ensemble = Annotated[
    bool,
    typer.Option("--ensemble", help="Of multiplexed models: each picture in every slot, the mean of all."),
]
Tile = Annotated[
    str | None,
    typer.Option(
        "--tile",
        help="Of detectors and segmenters: cut larger pictures into windows of so many pixels, or HxW.",
        metavar="PX",
    ),
]
Overlap = Annotated[
    float | None,
    typer.Option(
        "--overlap", min=0, max=0.9, help="Share of a tile that the next shows too; 0.2.", metavar="X"
    ),
]
RuntimeEngine = Literal["auto", "onnxruntime", "openvino"]
AnyEngine = Literal["auto", "onnxruntime", "openvino", "torch"]
EngineOption = typer.Option("--engine", help="What runs the model; auto measures once and keeps the fastest.")


def as_pixels(option: str, text: str | None) -> int | tuple[int, int] | None:
    """`384` or `384x512` as a number or (height, width).

    Raises:
        ConfigError: something else.
    """
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) for side in sides):
        from vitesse.errors import ConfigError

        raise ConfigError(f"{option}: expected pixels such as 384, or 384x512, got {text!r}")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def as_numbers(option: str, text: str) -> list[float]:
    """`10,20.5` as numbers.

    Raises:
        ConfigError: something else.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        from vitesse.errors import ConfigError

        raise ConfigError(f"{option}: expected numbers such as 40,60, got {text!r}") from error
