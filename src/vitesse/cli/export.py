"""`vitesse export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vitesse.cli.options import Arch, Json


def run(
    model: Annotated[str, typer.Argument(metavar="NAME|CKPT", help="A .safetensors checkpoint, or a name.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The artefact to write (.onnx).")] = ...,  # type: ignore[assignment]
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option("--precision", help="Of weights and activations.")
    ] = "fp32",
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", metavar="DATA", help="Pictures that int8 takes its ranges from."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write int8 that loses accuracy or time, or .pte mostly not delegated."),
    ] = False,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="The file takes pictures of any size.")
    ] = False,
    format: Annotated[
        str,
        typer.Option(
            "--format", metavar="NAMES", help="Besides onnx: openvino, executorch, coreml, next to the file."
        ),
    ] = "onnx",
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

    The file is written only when its logits equal those of the torch model on every installed engine. An int8
    file is written only when it loses at most 0.5 points of top-1 against fp32 on the same pictures and is
    faster on this machine; both figures are printed. Files of other formats lie next to it, each with a .json
    that holds the manifest and what was proven. A model for masks by prompts becomes two files: the encoder,
    NAME.onnx, and NAME.decoder.onnx.

    \b
    Examples:
      vitesse export runs/mine/checkpoints/best/model.safetensors --out mine.onnx --data photos/
      vitesse export efficientvit_m5 --out m5.onnx
      vitesse export model.safetensors --out mine.onnx --precision int8 --calibrate photos/
      vitesse export shvit_s1 --out s1.onnx --format openvino,executorch,coreml
    """
    from vitesse.cli.show import show_export
    from vitesse.errors import from_extra

    with from_extra("export"):
        from vitesse.export import export
        from vitesse.export.targets import sidecar_of

    formats = [name for name in map(str.strip, format.split(",")) if name != "onnx"]
    artefact = export(
        model,
        out,
        data=data,
        split=split,
        arch=arch,
        precision=precision,
        calibrate=calibrate,
        dynamic_size=dynamic_size,
        formats=formats,
        force=force,
        trained_on=trained_on,
        licence=licence,
    )
    return show_export(artefact, [sidecar_of(out, name) for name in formats], as_json=as_json)
