"""`vitesse train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vitesse.cli.options import Json


def run(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Class folders, a list, Parquet, shards, SET:FOLDER; COCO, YOLO or VOC boxes; label maps.",
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Changes to the recipe.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="See `vitesse models`; default by what DATA is."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run; default runs/DATA.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME|FILE", help="Shipped, or a YAML file; default by task."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Read every picture first; refuse data with unreadable ones.")
    ] = False,
    export: Annotated[
        Literal["fp32", "fp16", "int8"] | None,
        typer.Option("--export", help="Afterwards write DIR/model.onnx of the best weights, and its card."),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Train on a Ray cluster: the one at RAY_ADDRESS, or this machine.")
    ] = False,
    ray_workers: Annotated[
        int | None,
        typer.Option("--ray-workers", min=1, metavar="N", help="Processes; default one a GPU or node."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Train or fine-tune a model for what DATA is; goes on by itself where DIR holds an unfinished run.

    SIGTERM and Ctrl-C save the run and end it with exit code 75: the same command goes on with it. DIR holds
    report.html for a person, metrics.jsonl for a program, and checkpoints/.

    \b
    Examples:
      vitesse train photos/
      vitesse train photos/ --model efficientvit_m1 --out runs/mine epochs=10 lr=5e-4 --export int8
      vitesse train photos.csv --recipe my.yaml
      vitesse train flowers102:DIR --recipe transfer
      vitesse train boxes.yaml --model fcos_e2e_efficientvit_m0 --export fp32
      torchrun --nproc-per-node 2 --no-python vitesse train photos/ --out runs/two
    """
    from vitesse.cli.show import FAILED, show_training
    from vitesse.errors import ExportError, from_extra
    from vitesse.progress import is_first_process, say

    with from_extra("train"):
        from vitesse.data.annotated import kind_of
        from vitesse.train import train
        from vitesse.train.tasks import STARTERS
    if export is not None:
        from vitesse.ship import check_tools, ship

        check_tools()

    model = model or STARTERS[kind_of(data)]
    name = Path(data).name if Path(data).is_dir() else Path(data).stem.partition(":")[0]
    folder = out or Path("runs") / (name or "run")
    options: dict[str, Any] = {"model": model, "out": folder, "recipe": recipe, "strict": strict}
    options["overrides"] = overrides or []
    if ray:
        from vitesse.train.ray import train_on_ray

        result = train_on_ray(data, workers=ray_workers, **options)
    else:
        result = train(data, **options)
    if not is_first_process():
        return 0
    artefact, refused = None, False
    if export is not None:
        try:
            artefact = ship(result, folder, export)
        except ExportError as error:
            if export == "fp32":
                raise
            say(f"error: {error}; fp32 is written instead")
            artefact, refused = ship(result, folder), True
    code = show_training(result, model, artefact, as_json=as_json)
    return FAILED if refused else code
