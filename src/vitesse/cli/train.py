"""`vitesse train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitesse.cli.options import Json


def run(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Class folders, Parquet, or labels.tsv with images/.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Changes to the recipe.")
    ] = None,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="See `vitesse models`.")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Checkpoints and metrics.")] = ...,  # type: ignore[assignment]
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME|FILE", help="A shipped recipe, or a YAML file.")
    ] = "finetune",
    as_json: Json = False,
) -> int:
    """Train or fine-tune a classifier; goes on by itself where DIR holds an unfinished run.

    \b
    Examples:
      vitesse train photos/ --model efficientvit_m1 --out runs/mine
      vitesse train photos/ --model efficientvit_m0 --out runs/small image_size=128 epochs=10 lr=5e-4
      vitesse train photos/ --model efficientvit_m1 --out runs/mine --recipe my.yaml
    """
    from vitesse.cli.show import show_training
    from vitesse.errors import from_extra

    with from_extra("train"):
        from vitesse.train import train

    result = train(data, model=model, out=out, recipe=recipe, overrides=overrides or [])
    return show_training(result, model, as_json=as_json)
