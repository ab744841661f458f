"""`vitesse prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitesse.cli.options import Arch, Json


def run(
    model: Annotated[str, typer.Argument(metavar="NAME|CKPT", help="A .safetensors checkpoint, or a name.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Changes to the recipe.")
    ] = None,
    data: Annotated[
        Path, typer.Option("--data", metavar="DATA", help="Labelled pictures of the model's classes.")
    ] = ...,  # type: ignore[assignment]
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The checkpoint to write (.safetensors).")
    ] = ...,  # type: ignore[assignment]
    keep: Annotated[float, typer.Option("--keep", metavar="SHARE", help="Of the cost, at most.")] = 0.7,
    cost: Annotated[str, typer.Option("--cost", metavar="NAME", help="macs or params.")] = "macs",
    of: Annotated[
        str | None,
        typer.Option(
            "--of",
            metavar="KINDS",
            help="Of ffn,qk,width: feed-forwards, queries with keys, widths of stages. Default: all.",
        ),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="Part of the data that importance is taken from.")
    ] = "train",
    limit: Annotated[
        int, typer.Option("--limit", min=1, metavar="N", help="So many pictures of it, drawn by seed 0.")
    ] = 512,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, metavar="N", help="Pictures at a time.")
    ] = 16,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME|FILE", help="Fine-tune with it, in FILE without its suffix."),
    ] = None,
    arch: Arch = None,
    as_json: Json = False,
) -> int:
    """Take out the channels that matter least: a smaller EfficientViT (MSRA), SHViT or ViT, without masks.

    Beside FILE comes FILE.json with the architecture. Both are as those of any other model: train, evaluate,
    export, bench and convert take them. Accuracy drops at first and comes back with fine-tuning.

    \b
    Examples:
      vitesse prune mine.safetensors --data photos/ --out small.safetensors
      vitesse prune mine.safetensors --data photos/ --out small.safetensors --keep 0.5 --of ffn,qk
      vitesse prune mine.safetensors --data photos/ --out small.safetensors --recipe finetune epochs=5
    """
    from vitesse.cli.show_prune import show_pruned
    from vitesse.errors import from_extra

    with from_extra("train"):
        from vitesse.prune import prune

    pruned = prune(
        model,
        data,
        out,
        keep=keep,
        of=None if of is None else tuple(kind.strip() for kind in of.split(",")),
        cost=cost,
        split=split,
        limit=limit,
        batch_size=batch_size,
        arch=arch,
        recipe=recipe,
        overrides=overrides or (),
    )
    return show_pruned(pruned, as_json=as_json)
