"""`vitesse bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vitesse.cli.options import Json


def run(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|FILE]...", help="Models, timm:NAME, or .onnx files.")
    ] = None,
    peers: Annotated[
        str, typer.Option("--peers", metavar="NAMES", help="Well-known timm models beside them; 'all'.")
    ] = "",
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAMES", help="onnxruntime, openvino, torch, torch-compile.")
    ] = "all",
    precision: Annotated[str, typer.Option("--precision", metavar="NAMES", help="Of names.")] = "fp32,int8",
    batch_size: Annotated[
        str, typer.Option("--batch-size", metavar="N,N", help="Pictures a batch.")
    ] = "1,16",
    threads: Annotated[int, typer.Option("--threads", metavar="N", help="Of every engine.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="Samples of each contender.")] = 15,
    stage: Annotated[
        Literal["model", "data", "end-to-end"],
        typer.Option("--stage", help="The model alone, photos to tensors, or photos to labels."),
    ] = "model",
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Photos for the other stages.")
    ] = None,
    goal: Annotated[
        str, typer.Option("--goal", metavar="TEXT", help="Which to take, as 'top1>=75, batch=1, ms<=10'.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write bench.json, bench.md and bench.png there."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Time models on this machine, beside their peers, on every engine and precision.

    All run interleaved in rounds, so that a busy machine slows all alike; medians are printed. Names are
    timed with random weights, speed does not depend on them. A contender that fails is listed with its
    reason.

    \b
    Examples:
      vitesse bench efficientvit_m5 shvit_s1
      vitesse bench mine.onnx efficientvit_m2 --engine onnxruntime --threads 2
      vitesse bench efficientvit_m2 efficientvit_m5 shvit_s4 --peers all --out out
      vitesse bench mine.onnx --stage end-to-end --data photos/ --threads 2
      vitesse bench shvit_s1 shvit_s2 efficientvit_m5 --goal 'top1>=75, batch=1'
    """
    from vitesse.bench import Goal, benchmark
    from vitesse.bench.limits import gemm_rates
    from vitesse.cli.show_bench import show_bench
    from vitesse.errors import ConfigError, require

    wanted = Goal.parse(goal) if goal else None
    try:
        sizes = tuple(int(size) for size in batch_size.split(","))
    except ValueError:
        raise ConfigError(f"--batch-size: expected numbers such as 1,16, got {batch_size!r}") from None
    if out is not None:  # what would fail after the timing fails before it
        require("matplotlib", "bench")
        out.mkdir(parents=True, exist_ok=True)
    require("onnx", "bench")
    timings = benchmark(
        models or [],
        peers=peers,
        engines=engine,
        precisions=tuple(name.strip() for name in precision.split(",")),
        batch_sizes=sizes,
        threads=threads,
        rounds=rounds,
        stage=stage,
        data=data,
    )
    return show_bench(timings, gemm_rates(threads), goal=wanted, out=out, as_json=as_json)
