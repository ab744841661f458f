"""`vitesse export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vitesse.cli.options import Arch, Json


def run(
    model: Annotated[str, typer.Argument(metavar="NAME|CKPT", help="A .safetensors checkpoint, or a name.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The artefact to write (.onnx).")] = ...,  # type: ignore[assignment]
    precision: Annotated[Literal["fp32"], typer.Option("--precision", help="Of the weights.")] = "fp32",
    format: Annotated[Literal["onnx"], typer.Option("--format", help="Of the file.")] = "onnx",
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DATA", help="Labelled pictures: proves parity, records accuracy."),
    ] = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Which part of it.")] = "test",
    arch: Arch = None,
    trained_on: Annotated[
        str, typer.Option("--trained-on", metavar="TEXT", help="The data set, for the manifest.")
    ] = "",
    licence: Annotated[
        str, typer.Option("--licence", metavar="TEXT", help="Of the weights, for the manifest.")
    ] = "",
    as_json: Json = False,
) -> int:
    """Write a model as an artefact: one .onnx file that runs without torch.

    The file is written only when its logits equal those of the torch model on every installed engine.

    \b
    Examples:
      vitesse export runs/mine/checkpoints/best/model.safetensors --out mine.onnx --data photos/
      vitesse export efficientvit_m5 --out m5.onnx
    """
    from vitesse.cli.show import show_export
    from vitesse.errors import from_extra

    with from_extra("export"):
        from vitesse.export import export

    artefact = export(model, out, data=data, split=split, arch=arch, trained_on=trained_on, licence=licence)
    return show_export(artefact, as_json=as_json)
