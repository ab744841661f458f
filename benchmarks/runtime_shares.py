"""How much of a model's time does memory bound, and in which part of it?

    python benchmarks/runtime_shares.py

EfficientViT's first finding (arXiv 2305.07027, section 2.1 and figure 2), repeated on today's engines as
`vitesse analyze runtime` does it: Swin-T and DeiT-T of timm, EfficientViT-M5 and SHViT-S4, at 224 px, S4 at
256, fp32, one thread. Shares are of the time inside operators; every operator has the median of its runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RECORDS, markdown, write_record
from vitesse.analyze import analyze_runtime
from vitesse.analyze.kinds import MEMORY_KINDS
from vitesse.files import atomic_path, write_atomically

MODELS = (
    "timm:swin_tiny_patch4_window7_224",
    "timm:deit_tiny_patch16_224",
    "efficientvit_m5",
    "shvit_s4",
)
LABELS = ("Swin-T", "DeiT-T", "EfficientViT-M5", "SHViT-S4")
ENGINES = ("torch", "onnxruntime", "openvino")
PARTS = {"mixer": "attention and token mixing", "ffn": "feed-forward", "rest": "stem, subsampling, head"}
COLOURS = {"mixer": "#a83a2a", "ffn": "#4878a8", "rest": "#9a9a9a"}


def row(model: str, engine: str, shares: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """By part of the model: its share of the time, and the share that memory bounds in it."""
    memory = {part: sum(kinds[kind] for kind in MEMORY_KINDS) for part, kinds in shares.items()}
    time = {part: sum(kinds.values()) for part, kinds in shares.items()}
    grouped = {
        name: {
            key: sum(value for part, value in values.items() if (part if part in PARTS else "rest") == key)
            for key in PARTS
        }
        for name, values in (("memory", memory), ("time", time))
    }
    return {"model": model, "engine": engine, "memory_bound_share": sum(memory.values()), **grouped}


def measured(batch: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for model, label in zip(MODELS, LABELS, strict=True):
        analysis = analyze_runtime(model, engines=",".join(ENGINES), batch_size=batch, rounds=rounds)
        profiles = {profile.engine: profile for profile in analysis.profiles}
        rows += [row(label, engine, profiles[engine].by_role_and_kind()) for engine in ENGINES]
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "model",
        "engine",
        "memory-bound",
        *(f"of it in {part}" for part in PARTS),
        "time in mixer",
        "in ffn",
    ]
    lines: list[list[object]] = [head]
    for found in rows:
        share = found["memory_bound_share"]
        parts = [f"{found['memory'][part] / share:.0%}" for part in PARTS]
        times = [f"{found['time'][part]:.0%}" for part in ("mixer", "ffn")]
        lines.append([found["model"], found["engine"], f"{share:.1%}", *parts, *times])
    return markdown(lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """For each model a bar an engine: the share that memory bounds, split by part of the model."""
    from matplotlib.figure import Figure

    figure = Figure((9.5, 4.6), layout="constrained")
    axis = figure.add_subplot()
    for place, found in enumerate(rows):
        x, bottom = place + 0.8 * (place // len(ENGINES)), 0.0
        for part, label in PARTS.items():
            share = 100 * found["memory"][part]
            axis.bar(x, share, 0.85, bottom, color=COLOURS[part], label=None if place else label)
            bottom += share
        axis.text(x, bottom + 0.5, f"{bottom:.0f} %", ha="center", fontsize=8)
        axis.text(x, -0.8, found["engine"], ha="center", va="top", fontsize=7, rotation=25)
    middle = (len(ENGINES) - 1) / 2
    for group, label in enumerate(LABELS):
        axis.text(group * (len(ENGINES) + 0.8) + middle, -7.2, label, ha="center", va="top", fontsize=10)
    axis.set_xticks([])
    axis.set_ylabel("% of the time in operators")
    axis.set_title("Time in operators that memory bounds", loc="left")
    axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = measured(args.batch_size, args.rounds)
    write_record("runtime_shares", {"batch_size": args.batch_size, "rounds": args.rounds, "rows": rows})
    draw(rows, RECORDS / "runtime_shares.png")
    text = table(rows)
    write_atomically(RECORDS / "runtime_shares.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
