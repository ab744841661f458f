"""`vitesse analyze heads`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitesse.cli.options import Arch, Json


def run(
    models: Annotated[
        list[str],
        typer.Argument(metavar="NAME|FILE...", help="Names, timm:NAME, .safetensors or .onnx files."),
    ],
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DATA", help="Pictures: a folder, class folders, a list, Parquet."),
    ],
    arch: Arch = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Which part of the data.")] = "test",
    limit: Annotated[
        int, typer.Option("--limit", min=1, metavar="N", help="Show so many pictures, drawn by seed 0.")
    ] = 64,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, metavar="N", help="Pictures a run of the model.")
    ] = 16,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write heads.json, .md and .png there.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Whether the attention heads of a block repeat each other, by their attention on real pictures.

    Of every two heads of a block the cosine similarity of their attention maps, and of each head that to the
    nearest other head. A name has its published weights where they are in the cache, else random ones.

    \b
    Examples:
      vitesse analyze heads runs/mine/checkpoints/best/model.safetensors --data photos/
      vitesse analyze heads deit_tiny.safetensors --arch timm:deit_tiny_patch16_224 --data photos/
      vitesse analyze heads plain.safetensors split.safetensors --data cifar100/ --out out/heads
    """
    from vitesse.cli.show_analyze import show_heads
    from vitesse.errors import from_extra, require

    require("onnx", "bench")
    if out is not None:  # what would fail after the runs fails before them
        require("matplotlib", "bench")
        out.mkdir(parents=True, exist_ok=True)
    with from_extra("bench"):
        from vitesse.analyze.heads import analyze_heads

    analyses = analyze_heads(models, data, arch=arch, split=split, limit=limit, batch_size=batch_size)
    return show_heads(analyses, out=out, as_json=as_json)
