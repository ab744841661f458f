"""`vitesse analyze importance`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitesse.cli.options import Arch, Json, as_pixels


def run(
    model: Annotated[
        str, typer.Argument(metavar="NAME|CKPT", help="A .safetensors checkpoint, a name, or timm:NAME.")
    ],
    data: Annotated[
        Path, typer.Option("--data", metavar="DATA", help="Labelled pictures of the model's classes.")
    ] = ...,  # type: ignore[assignment]
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Which part of it.")] = "test",
    cut: Annotated[
        float, typer.Option("--cut", metavar="P", help="Per cent of all channels to leave out.")
    ] = 50,
    own_labels: Annotated[
        bool, typer.Option("--self", help="Take the model's own first choices for labels.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="So many pictures, drawn by seed 0.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, metavar="N", help="Pictures at a time.")
    ] = 16,
    image_size: Annotated[
        str | None,
        typer.Option("--image-size", metavar="PX", help="Pixels, or HxW; default the model's own."),
    ] = None,
    arch: Arch = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write importance.json, .md and .png there."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Which channels matter: of queries, keys, values, feed-forwards and stage widths, block by block.

    Importance is how much the loss changes, to first order, when a channel is taken out. Printed is how many
    channels of each kind and block stay when the least important of all are left out. `vitesse prune` makes a
    smaller model that way.

    \b
    Examples:
      vitesse analyze importance mine.safetensors --data photos/
      vitesse analyze importance efficientvit_m5 --data imagenet/ --limit 500 --cut 30 --out out/m5
      vitesse analyze importance deit.safetensors --arch timm:deit_tiny_patch16_224 --data imagenet/ --json
    """
    from vitesse.cli.show_prune import show_importance
    from vitesse.errors import ConfigError, from_extra, require

    if not 0 <= cut < 100:
        raise ConfigError(f"--cut: expected per cent, 0 to below 100, got {cut:g}")
    if out is not None:  # what would fail afterwards fails before
        require("matplotlib", "bench")
        out.mkdir(parents=True, exist_ok=True)
    with from_extra("bench"):
        from vitesse.analyze.importance import analyze_importance

    analysis = analyze_importance(
        model,
        data,
        split=split,
        limit=limit,
        batch_size=batch_size,
        image_size=as_pixels("--image-size", image_size),
        arch=arch,
        own_labels=own_labels,
    )
    return show_importance(analysis, cut / 100, out=out, as_json=as_json)
