"""`vitesse models`."""

from __future__ import annotations

from typing import Annotated

import typer

from vitesse.cli.options import Json


def run(
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help="Names to list, as in '*_m?'.")] = "*",
    as_json: Json = False,
) -> int:
    """List the models with their size, cost and published accuracy.

    \b
    Examples:
      vitesse models
      vitesse models 'efficientvit_m*' --json
    """
    from vitesse.cli.show import show_models

    return show_models(pattern, as_json=as_json)
