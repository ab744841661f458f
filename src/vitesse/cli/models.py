"""`vitesse models`."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from vitesse.cli.options import Json
from vitesse.spec import Task

MILLION = 1e6


def run(
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help="Names to list, as in '*_m?'.")] = "*",
    family: Annotated[
        str | None, typer.Option("--family", metavar="NAME", help="Only models of this family.")
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option("--task", help="Only models for this."),
    ] = None,
    max_params: Annotated[
        float,
        typer.Option(
            "--max-params", min=0, metavar="M", show_default=False, help="At most so many million parameters."
        ),
    ] = math.inf,
    max_macs: Annotated[
        float,
        typer.Option(
            "--max-macs",
            min=0,
            metavar="M",
            show_default=False,
            help="At most so many million MACs a picture.",
        ),
    ] = math.inf,
    min_top1: Annotated[
        float,
        typer.Option(
            "--min-top1", metavar="PERCENT", show_default=False, help="At least this published accuracy."
        ),
    ] = 0.0,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Only models with published weights.")
    ] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="List every set of published weights instead.")
    ] = False,
    as_json: Json = False,
) -> int:
    """List the models with their size, cost, published accuracy and weights.

    Parameters count a head for the data set of the published accuracy, 1000 classes of a classifier; MACs are
    those of one picture of the listed size. In JSON parameters and MACs are plain numbers and accuracies
    fractions; every model comes with its weights.

    \b
    Examples:
      vitesse models
      vitesse models --max-params 10 --min-top1 75
      vitesse models 'efficientvit_b*' --weights
      vitesse models --task segment
      vitesse models --family shvit --json
    """
    from vitesse.catalogue import select
    from vitesse.cli.show_models import show_models
    from vitesse.errors import ConfigError

    if 0 < min_top1 < 1 or not 0 <= min_top1 <= 100:
        raise ConfigError(f"--min-top1: expected per cent, such as 75, got {min_top1:g}")
    found = select(
        pattern,
        family=family,
        max_params=max_params * MILLION,
        max_macs=max_macs * MILLION,
        min_top1=min_top1 / 100,
        pretrained=pretrained or weights,
        task=task,
    )
    return show_models(found, weights=weights, as_json=as_json)
