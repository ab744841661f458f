"""`vitesse analyze`: a verb for each question about a model."""

from __future__ import annotations

import typer

from vitesse.cli import analyze_heads, analyze_importance, analyze_runtime

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _question in (analyze_runtime, analyze_heads, analyze_importance):
    app.command(_question.__name__.rpartition("_")[2])(_question.run)


@app.callback()
def _analyze() -> None:
    """Look into a model: where its time goes, which heads repeat each other, which channels matter.

    \b
    Examples:
      vitesse analyze runtime efficientvit_m5
      vitesse analyze heads model.safetensors --data photos/
      vitesse analyze importance mine.safetensors --data photos/
    """
