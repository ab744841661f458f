"""`vitesse search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitesse.cli.options import Json


def run(
    data: Annotated[
        str, typer.Option("--data", metavar="DIR", help="Pictures with one class each, as for `train`.")
    ],
    max_latency: Annotated[
        str,
        typer.Option(
            "--max-latency", metavar="TIME|NAME", help="Of a batch: 5ms, 0.005s; or as fast as a model."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Changes to the recipe.")
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", metavar="N", help="Candidates to train, hand-made ones included.")
    ] = 50,
    family: Annotated[
        str, typer.Option("--family", metavar="NAME", help="efficientvit_m or shvit.")
    ] = "efficientvit_m",
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="Where models run: cpu.")] = "cpu",
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="onnxruntime, openvino or torch.")
    ] = "onnxruntime",
    threads: Annotated[int, typer.Option("--threads", metavar="N", help="Of the engine.")] = 1,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", help="Pictures in a timed batch.")
    ] = 1,
    image_size: Annotated[
        str | None,
        typer.Option("--image-size", metavar="PX,PX", help="Sides to choose from; default the recipe's."),
    ] = None,
    max_macs: Annotated[
        float | None, typer.Option("--max-macs", metavar="M", help="Millions a picture, at most.")
    ] = None,
    floor: Annotated[
        float,
        typer.Option("--floor", metavar="X", help="Train none below this share of the latency; 0 for all."),
    ] = 0.5,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", help="Models timed at first, to predict others.")
    ] = 24,
    confirm: Annotated[
        int, typer.Option("--confirm", metavar="N", help="Seeds that the best is trained with again.")
    ] = 2,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of all that is drawn.")] = 0,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME|FILE", help="Of the short training of candidates.")
    ] = "finetune",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder; default runs/search.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Look for the most accurate architecture of a family within a latency on this machine.

    Candidates are timed on the engine, and trained from scratch for as long as the recipe says; make that
    short. Goes on by itself where the folder holds an interrupted search. It then holds front/*.json, which
    train, bench and analyze take as a model, search.json, search.md and search.png.

    \b
    Examples:
      vitesse search --max-latency 5ms --data photos/ --trials 40 epochs=5 image_size=128
      vitesse search --max-latency efficientvit_m0 --data photos/ --recipe cifar100 limit_train=10000
      vitesse search --max-latency 20ms --data photos/ --family shvit --engine openvino --threads 2
      vitesse train photos/ --model runs/search/front/best.json
    """
    from vitesse.cli.options import as_numbers
    from vitesse.cli.show_search import show_search
    from vitesse.errors import from_extra, require

    for package in ("optuna", "onnxslim", "matplotlib"):  # what would fail after hours fails before them
        require(package, "search")
    with from_extra("search"):
        from vitesse.search import search

    sizes = None if image_size is None else tuple(map(int, as_numbers("--image-size", image_size)))
    result = search(
        data,
        max_latency=max_latency,
        out=out or Path("runs/search"),
        recipe=recipe,
        overrides=overrides or [],
        image_sizes=sizes,
        trials=trials,
        family=family,
        device=device,
        engine=engine,
        threads=threads,
        batch_size=batch_size,
        max_macs=max_macs,
        floor=floor,
        samples=samples,
        confirm=confirm,
        seed=seed,
    )
    return show_search(result, as_json=as_json)
