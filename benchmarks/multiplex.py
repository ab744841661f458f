"""What does sharing a ViT between images buy, beside ways that need no sharing?

    python benchmarks/multiplex.py --runs runs/multiplex
    python benchmarks/multiplex.py --runs runs/multiplex --only speed

Accuracy: CIFAR-100 at 32 px with the recipe `cifar100_multiplex`. A plain ViT is tuned from DeiT-tiny; every
row then starts from that ViT, trains on the same 20 000 pictures for one epoch, and is scored on the same
5000 test pictures, drawn into groups at random. `guided` adds what else there is: a retrieval warm-up, and
distillation from the row of the plain ViT. Finished runs in `--runs` are kept.

A picture keeps its label beside other pictures in the same slot, in so many cases. The ensemble's gain, in
points, is on 1000 of the pictures. Top-1 has a standard error of 0.7 points; slots are scored on different
pictures, that of a slot at N = 2 has 1.0, at N = 4 it has 1.4.

Speed: models with random weights, interleaved in one process, one thread (`vitesse.bench`). A ratio is the
plain ViT's median time a picture over the row's, each on the engine that runs it fastest. The ideal is the
ratio of MACs in whole groups; a single picture costs the shared layers of a whole group.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vitesse
from common import DATA, RECORDS, WEIGHTS, fastest, trained, write_record
from vitesse.bench import benchmark
from vitesse.bench.measure import Timing
from vitesse.catalogue import facts
from vitesse.errors import VitesseError
from vitesse.files import write_atomically
from vitesse.progress import say

PLAIN, MERGING = "vit_tiny_patch4", "vit_tiny_patch4_tome"
ROWS = (
    PLAIN,
    "vit_tiny_patch4_d9",
    MERGING,
    *(f"concatplexer_tiny_patch4_n2{variant}" for variant in ("", "_pool", "_dim0")),
    *(f"concatplexer_tiny_patch4_n4{variant}" for variant in ("", "_pool", "_dim0")),
    "imagemux_tiny_patch4_n2",
)
GUIDED = "concatplexer_tiny_patch4_n2"
RECIPE = "cifar100_multiplex"
INITIAL = DATA / "deit_tiny_in1k_lnq_fp16.safetensors"
SCORED, ENSEMBLED = 5000, 1000
BASE = [
    "vit_base_patch16",
    *(f"vit_base_patch16_{control}" for control in ("d9", "tome")),
    *(f"concatplexer_base_n4{variant}" for variant in ("", "_dim0")),
]
BASE_BATCHES, SMALL_BATCHES = (1, 8), (1, 16)


def accuracy(runs: Path) -> list[dict[str, Any]]:
    """Train what is not trained yet, and score every row on the same test pictures."""
    first = trained(PLAIN, runs / "plain", RECIPE, {"init": str(INITIAL)})
    start = {"init": str(first)}
    found = [scored(name, name, trained(name, runs / name, RECIPE, start)) for name in ROWS]
    plain = runs / PLAIN / WEIGHTS
    found.append(scored(f"{MERGING}, not trained", MERGING, plain))
    guided = start | {"teacher": str(plain), "retrieval_epochs": 0.25, "retrieval": 0.1}
    checkpoint = trained(GUIDED, runs / f"{GUIDED}-guided", RECIPE, guided)
    found.append(scored(f"{GUIDED}, guided", GUIDED, checkpoint))
    return found


def scored(label: str, name: str, checkpoint: Path) -> dict[str, Any]:
    say(f"scoring {label}")
    options = {"model": checkpoint, "arch": name, "engine": "torch"}
    row = vitesse.evaluate(DATA / "cifar100", limit=SCORED, **options).to_dict()
    keep = ("top1", "top5", "images", "mux_width", "slots", "agreement")
    found = {"model": label, "macs": facts(name).macs, **{key: row[key] for key in keep if key in row}}
    if "slots" in row:
        gain = {
            how: vitesse.evaluate(DATA / "cifar100", ensemble=how == "all slots", limit=ENSEMBLED, **options)
            for how in ("one slot", "all slots")
        }
        found["ensemble"] = {how: scores.top1 for how, scores in gain.items()} | {"images": ENSEMBLED}
    return found


def speed(names: Sequence[str], batch_sizes: Sequence[int], rounds: int) -> list[Timing]:
    """Each model in fp32 on both engines; the first name is the plain ViT that all are compared with."""
    return benchmark(
        names,
        engines="onnxruntime,openvino",
        precisions=["fp32"],
        batch_sizes=batch_sizes,
        rounds=rounds,
    )


def accuracy_table(rows: Sequence[dict[str, Any]]) -> str:
    plain = facts(PLAIN).macs
    lines = [
        "| model | MACs saved | top-1 | top-5 | worst slot | best slot | keeps its label | ensemble |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        slots, gain = row.get("slots") or [], row.get("ensemble")
        cells = [
            f"{1 - row['macs'] / plain:.1%}",
            *(f"{row[key]:.1%}" for key in ("top1", "top5")),
            *(f"{pick(slots):.1%}" if slots else "" for pick in (min, max)),
            f"{row['agreement']:.1%}" if "agreement" in row else "",
            f"{100 * (gain['all slots'] - gain['one slot']):+.1f}" if gain else "",
        ]
        lines.append(f"| {row['model']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def speed_table(timings: Sequence[Timing]) -> str:
    """The plain ViT's time a picture over each model's, both on the engine that runs them fastest."""
    names = list(dict.fromkeys(timing.contender.model for timing in timings))
    batches = sorted({timing.batch_size for timing in timings})
    ratios = [f"batch {batch}" for batch in batches]
    lines = [f"| model | ideal | {' | '.join(ratios)} |", "|---" * (2 + len(batches)) + "|"]
    for name in names:
        cells = [f"{facts(names[0]).macs / facts(name).macs:.2f}"]
        for batch in batches:
            plain, mine = (fastest(timings, model, batch) for model in (names[0], name))
            cells.append(f"{plain.median_s / mine.median_s:.2f} ({mine.contender.engine})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy as bars, what shares a pass apart from what does not, each with the MACs that it saves."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = {False: ("#4878a8", "each image alone"), True: ("#c8553d", "images share a pass")}
    ranked = sorted(rows, key=lambda row: row["top1"])
    figure = Figure((8, 5), layout="constrained")
    axes = figure.add_subplot()
    shares = [100 * row["top1"] for row in ranked]
    bars = axes.barh(
        [row["model"] for row in ranked], shares, color=[colours["slots" in row][0] for row in ranked]
    )
    saved = [1 - row["macs"] / facts(PLAIN).macs for row in ranked]
    axes.bar_label(
        bars,
        [f"{top1:.1f} %, {less:.0%} fewer MACs" for top1, less in zip(shares, saved, strict=True)],
        padding=4,
        fontsize=8,
    )
    axes.set_xlabel("top-1 on CIFAR-100, %")
    axes.set_xlim(0, 100)
    axes.set_title("The same recipe, start and pictures for all", loc="left")
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        handles=[Patch(color=colour, label=label) for colour, label in colours.values()],
        loc="lower right",
        frameon=False,
    )
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/multiplex"))
    parser.add_argument("--only", choices=("accuracy", "speed"))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    text = []
    if args.only != "speed":
        rows = accuracy(args.runs)
        write_record("multiplex_accuracy", {"recipe": RECIPE, "rows": rows})
        draw(rows, RECORDS / "multiplex.png")
        text.append(accuracy_table(rows))
        write_atomically(RECORDS / "multiplex_accuracy.md", text[-1].encode() + b"\n")
    if args.only != "accuracy":
        groups = {
            "base": speed(BASE, BASE_BATCHES, args.rounds),
            "small": speed(ROWS, SMALL_BATCHES, args.rounds),
        }
        samples = {key: [timing.to_dict() for timing in group] for key, group in groups.items()}
        write_record("multiplex_speed", samples)
        text.append("\n\n".join(map(speed_table, groups.values())))
        write_atomically(RECORDS / "multiplex_speed.md", text[-1].encode() + b"\n")
    print("\n\n".join(text))


if __name__ == "__main__":
    try:
        main()
    except VitesseError as error:
        raise SystemExit(f"error: {error}") from error
