"""`vitesse analyze runtime`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitesse.cli.options import Arch, Json, as_pixels


def run(
    model: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A name, timm:NAME, .safetensors or .onnx file.")
    ],
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAMES", help="onnxruntime, openvino, torch.")
    ] = "all",
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Pictures a batch.")] = 1,
    threads: Annotated[int, typer.Option("--threads", metavar="N", help="Of every engine.")] = 1,
    image_size: Annotated[
        str | None,
        typer.Option("--image-size", metavar="PX", help="Pixels, or HxW; default the model's own."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="Runs of each engine.")] = 10,
    arch: Arch = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write analysis.json, .md and .png there."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Where a model's time goes: by kind of operator, by module, and under this machine's roofline.

    Every engine runs the model with and without its profiler, in turn; medians are printed, with what the
    profiler adds. Names have random weights, speed does not depend on them.

    \b
    Examples:
      vitesse analyze runtime efficientvit_m5
      vitesse analyze runtime timm:swin_tiny_patch4_window7_224 --engine torch --out out/swin
      vitesse analyze runtime mine.onnx --engine onnxruntime,openvino --threads 2 --json
    """
    from vitesse.cli.show_analyze import show_runtime
    from vitesse.errors import from_extra, require

    require("onnx", "bench")
    if out is not None:  # what would fail after the runs fails before them
        require("matplotlib", "bench")
        out.mkdir(parents=True, exist_ok=True)
    with from_extra("bench"):
        from vitesse.analyze import analyze_runtime

    analysis = analyze_runtime(
        model,
        engines=engine,
        batch_size=batch_size,
        threads=threads,
        image_size=as_pixels("--image-size", image_size),
        arch=arch,
        rounds=rounds,
    )
    return show_runtime(analysis, out=out, as_json=as_json)
