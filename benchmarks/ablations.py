"""What does each part of a paper's design buy? Named variants, trained alike and timed side by side.

    python benchmarks/ablations.py --runs runs/ablations
    python benchmarks/ablations.py --runs runs/ablations --only speed

Accuracy: CIFAR-100 at 64 px from scratch with the recipe `cifar100`, the same 15 000 pictures twice and the
same seeds for every row, scored on the same 5000 test pictures; finished runs in `--runs` are kept. A run has
a standard error of 0.6 points from those pictures alone, and seeds differ by about as much: small differences
mean nothing at this scale. The papers' changes are of ImageNet-1k, 100 or 300 epochs at 224 px, on larger
siblings (M4 and S3).

Speed: random weights at 224 px in fp32, interleaved in one process, one thread (`vitesse.bench`). A ratio is
the unchanged model's median time a picture over the row's, each on the engine that runs it fastest.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vitesse
from common import DATA, RECORDS, fastest, markdown, spread, trained, write_record
from vitesse.bench import benchmark
from vitesse.files import atomic_path, write_atomically
from vitesse.models import create_model
from vitesse.models.efficientvit_msra import ABLATIONS as EFFICIENTVIT
from vitesse.models.shvit import ABLATIONS as SHVIT

RECIPE = "cifar100"
OVERRIDES = {"epochs": 2, "limit_train": 15_000, "eval_every": 2, "limit_val": 1000}
SCORED = 5000
BASES: Mapping[str, Mapping[str, Any]] = {"efficientvit_m0": EFFICIENTVIT, "shvit_s1": SHVIT}
BATCHES = (1, 16)
NOISE = 1.6
"""Points: two standard errors of the difference of two runs, from the pictures scored alone."""
PAPER: Mapping[str, float] = {
    "efficientvit_m0+alternating": -3.0,
    "efficientvit_m0+full_heads": -1.1,
    "efficientvit_m0+no_cascade": -1.5,
    "efficientvit_m0+equal_qkv": -1.4,
    "efficientvit_m0+wide_ffn": -1.5,
    "efficientvit_m0+no_local_mixing": -1.4,
    "efficientvit_m0+layer_norm": -0.9,
    "shvit_s1+no_attention": -1.1,
    "shvit_s1+eighth": -0.3,
    "shvit_s1+half": 0.1,
}
"""Points of ImageNet-1k top-1: EfficientViT's Table 6, of M4; SHViT's Table 6, of S3."""


def names(base: str) -> list[str]:
    """The unchanged model, then each of its named variants."""
    return [base, *(f"{base}+{change}" for change in BASES[base])]


def accuracy(runs: Path, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Top-1 of every model, one for each seed; what is not trained yet is trained."""
    found: dict[str, list[float]] = {}
    for name in (name for base in BASES for name in names(base)):
        for seed in seeds:
            run = runs / f"{name}-{seed}"
            checkpoint = trained(name, run, RECIPE, {**OVERRIDES, "seed": seed})
            scores = vitesse.evaluate(DATA / "cifar100", model=checkpoint, engine="torch", limit=SCORED)
            found.setdefault(name, []).append(scores.to_dict()["top1"])
    return found


def speed(rounds: int) -> dict[str, Any]:
    """By model: MACs at 224 px, and how many times as fast as the unchanged one, by batch size."""
    found: dict[str, Any] = {}
    for base in BASES:
        timings = benchmark(
            names(base),
            engines="onnxruntime,openvino",
            precisions=["fp32"],
            batch_sizes=BATCHES,
            rounds=rounds,
        )
        for name in names(base):
            best = {batch: fastest(timings, name, batch) for batch in BATCHES}
            plain = {batch: fastest(timings, base, batch) for batch in BATCHES}
            found[name] = {
                "macs": best[1].contender.macs,
                "speed": {batch: plain[batch].median_s / best[batch].median_s for batch in BATCHES},
                "engines": {batch: best[batch].contender.engine for batch in BATCHES},
                "samples_s": {batch: best[batch].samples_s for batch in BATCHES},
            }
    return found


def parameters(name: str) -> int:
    return sum(parameter.numel() for parameter in create_model(name).parameters())


def table(top1: Mapping[str, Sequence[float]], timed: Mapping[str, Any]) -> str:
    """A line for each variant, below the model that it changes."""
    head = ["model", "parameters, M", "MACs, M", "top-1, %", "over seeds", "change", "paper's"]
    lines: list[list[object]] = [[*head, *(f"speed, batch {batch}" for batch in BATCHES)]]
    for base in BASES:
        for name in names(base):
            cells: list[object] = [name, f"{parameters(name) / 1e6:.2f}", f"{timed[name]['macs'] / 1e6:.0f}"]
            points = 100 * statistics.mean(top1[name])
            plain = 100 * statistics.mean(top1[base])
            paper = f"{PAPER[name]:+.1f}" if name in PAPER else ""
            cells += [
                f"{points:.1f}",
                spread(top1[name]),
                "" if name == base else f"{points - plain:+.1f}",
                paper,
            ]
            lines.append([*cells, *(f"{timed[name]['speed'][batch]:.2f}" for batch in BATCHES)])
    return markdown(lines)


def draw(top1: Mapping[str, Sequence[float]], timed: Mapping[str, Any], path: Path) -> None:
    """A line for each variant: how fast it is, and how accurate beside the unchanged model."""
    from matplotlib.figure import Figure

    figure = Figure((10, 7), layout="constrained")
    heights = [len(BASES[base]) for base in BASES]
    for base, (speeds, points) in zip(
        BASES, figure.subplots(2, 2, sharey="row", height_ratios=heights), strict=True
    ):
        changed = names(base)[1:]
        plain = statistics.mean(top1[base])
        for batch, colour in zip(BATCHES, ("#9cc5c1", "#0b7a75"), strict=True):
            values = [timed[name]["speed"][batch] for name in changed]
            speeds.plot(values, range(len(changed)), "o", color=colour, label=f"batch {batch}")
        values = [100 * (statistics.mean(top1[name]) - plain) for name in changed]
        points.plot(values, range(len(changed)), "o", color="#c8553d", label="here")
        known = [(PAPER[name], row) for row, name in enumerate(changed) if name in PAPER]
        points.plot(*zip(*known, strict=True), "D", mfc="none", color="#8a6d3b", label="paper, ImageNet-1k")
        points.axvspan(-NOISE, NOISE, color="#eeeeee", zorder=0, label="two standard errors")
        speeds.set_yticks(range(len(changed)), [name.partition("+")[2] for name in changed])
        speeds.invert_yaxis()
        speeds.axvline(1, color="#bbbbbb", linewidth=1, zorder=0)
        speeds.set_title(f"{base}, one thing changed", loc="left")
        speeds.set_xlabel("times as fast, 224 px")
        points.set_xlabel("points of top-1, CIFAR-100 at 64 px, short training")
        for axis in (speeds, points):
            axis.legend(frameon=False, fontsize=8)
            axis.grid(axis="y", alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--only", choices=("accuracy", "speed"), help="print that alone, write no record")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.only == "accuracy":
        print(accuracy(args.runs, args.seeds))
        return
    timed = speed(args.rounds)
    if args.only == "speed":
        print({name: row["speed"] for name, row in timed.items()})
        return
    top1 = accuracy(args.runs, args.seeds)
    settings = {"recipe": RECIPE, "overrides": OVERRIDES, "scored": SCORED, "seeds": args.seeds}
    rows = {name: {"parameters": parameters(name), "top1": top1[name], **timed[name]} for name in timed}
    write_record("ablations", {"settings": settings, "rows": rows})
    draw(top1, timed, RECORDS / "ablations.png")
    text = table(top1, timed)
    write_atomically(RECORDS / "ablations.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
