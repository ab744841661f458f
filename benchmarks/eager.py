"""Is any family slower in eager torch than timm's same model, and how much faster is it folded?

    python benchmarks/eager.py
    python benchmarks/eager.py --models efficientvit_b1 shvit_s1 --rounds 30

timm's model, ours with the same weights, and ours after `export.fold`, channels_last all three, one thread,
batches of 1 and 16, interleaved in one process. A round runs all three; a speed-up is the median over rounds
of timm's time over ours in the same round, given with its quartiles. Above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from common import IN_TIMM, rounded, table, write_record
from vitesse.catalogue import facts
from vitesse.export import fold
from vitesse.models import create_model
from vitesse.weights.load import load_weights

MODELS = (
    "efficientvit_m1",
    "efficientvit_m5",
    "shvit_s1",
    "shvit_s4",
    "efficientvit_b0",
    "efficientvit_b1",
    "efficientvit_l1",
    "vit_tiny_patch16",
)
BATCHES = (1, 16)
FOLDED_TARGET = 1.15


def contenders(name: str) -> dict[str, nn.Module]:
    """timm's model, ours and ours folded, with the same random weights."""
    theirs = timm.create_model(IN_TIMM.get(name, name)).eval()
    ours = create_model(name).eval()
    load_weights(ours, theirs.state_dict())
    models = {"timm": theirs, "eager": ours, "folded": fold(ours)}
    return {label: model.to(memory_format=torch.channels_last) for label, model in models.items()}


def seconds(model: nn.Module, x_BCHW: Tensor) -> float:
    started = time.perf_counter()
    model(x_BCHW)
    return time.perf_counter() - started


@torch.inference_mode()
def measure(models: dict[str, nn.Module], batch: int, side: int, rounds: int) -> dict[str, Any]:
    """Times of every round in ms, and the speed-ups over timm."""
    x_BCHW = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
    samples: dict[str, list[float]] = {label: [] for label in models}
    for _ in range(2):
        for model in models.values():
            model(x_BCHW)
    labels = list(models)
    for _ in range(rounds):
        labels.append(labels.pop(0))  # no contender is always the first
        for label in labels:
            samples[label].append(1000 * seconds(models[label], x_BCHW))
    found: dict[str, Any] = {"batch": batch, "samples_ms": {k: rounded(v, 2) for k, v in samples.items()}}
    for label in ("eager", "folded"):
        ratios = np.divide(samples["timm"], samples[label])
        found[label] = dict(
            zip(("q1", "median", "q3"), np.quantile(ratios, (0.25, 0.5, 0.75)).round(3).tolist(), strict=True)
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rounds", type=int, default=25, help="of batch 1; batch 16 has a third of them")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    rows: list[list[object]] = [
        ["model", "batch", "eager", "(quartiles)", "folded", "(quartiles)", "short of"]
    ]
    for name in args.models:
        models, side = contenders(name), facts(name).image_size[0]
        found[name] = [
            measure(models, batch, side, args.rounds if batch == 1 else max(3, args.rounds // 3))
            for batch in BATCHES
        ]
        for result in found[name]:
            short = [
                f"{label} {target}"
                for label, target in (("eager", 1.0), ("folded", FOLDED_TARGET))
                if result[label]["median"] < target
            ]
            cells = [
                cell
                for label in ("eager", "folded")
                for cell in (result[label]["median"], f"{result[label]['q1']:.2f}-{result[label]['q3']:.2f}")
            ]
            rows.append([name, result["batch"], *cells, ", ".join(short) or "-"])
    path = write_record("eager", {"threads": 1, "memory_format": "channels_last", "models": found}, args.out)
    print(table(rows), path, sep="\n")


if __name__ == "__main__":
    main()
