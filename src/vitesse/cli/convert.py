"""`vitesse convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vitesse.cli.options import Json


def run(
    source: Annotated[Path, typer.Argument(metavar="FILE", help=".pth, .pt or .safetensors.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Architecture of the weights.")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write.")] = ...,  # type: ignore[assignment]
    to: Annotated[
        Literal["vitesse", "timm", "original"], typer.Option("--to", help="Whose names to write.")
    ] = "vitesse",
    num_classes: Annotated[
        int | None, typer.Option("--num-classes", min=1, metavar="N", help="Default those of the file.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, metavar="PX", help="Default the architecture's.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Turn foreign weights into a checkpoint, or a checkpoint into foreign weights. Runs no code in them.

    \b
    Examples:
      vitesse convert efficientvit_m5.pth --model efficientvit_m5 --out m5.safetensors
      vitesse convert m5.safetensors --model efficientvit_m5 --to timm --out m5_timm.safetensors
    """
    from vitesse.cli.show import show_conversion
    from vitesse.errors import from_extra

    with from_extra("torch"):
        from vitesse.models import convert

    report = convert(source, name=model, out=out, num_classes=num_classes, image_size=image_size, to=to)
    return show_conversion(report, out, as_json=as_json)
