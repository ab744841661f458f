"""`vitesse push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitesse.cli.options import Json


def run(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="An artefact (.onnx), a checkpoint (.safetensors)."),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="OWNER/REPO", help="The repository; made if absent.")
    ] = ...,  # type: ignore[assignment]
    private: Annotated[bool, typer.Option("--private", help="A new repository is not public.")] = False,
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", metavar="DIR", help="Write what would be uploaded to DIR.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Publish your own model on the Hugging Face Hub, with a model card made from what the files say.

    Others then use it by `--model hf:OWNER/REPO`. You must be logged in: `hf auth login`, or HF_TOKEN.

    \b
    Examples:
      vitesse push mine.onnx --to me/my-flowers --dry-run out
      vitesse push mine.onnx runs/mine/checkpoints/best/model.safetensors --to me/my-flowers
    """
    from vitesse.cli.show import show_push
    from vitesse.errors import from_extra

    with from_extra("torch"):
        from vitesse.publish import prepare, push, write

    repository = prepare(files, to)
    where = push(repository, private=private) if dry_run is None else write(repository, dry_run)
    return show_push(where, list(repository.files), as_json=as_json)
