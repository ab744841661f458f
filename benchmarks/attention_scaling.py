"""Do time and memory of linear attention grow with the number of tokens, those of softmax attention faster?

    python benchmarks/attention_scaling.py
    python benchmarks/attention_scaling.py --plot scaling.png

Every model sees the same square images, batch 1, one thread, sizes and models interleaved in one process; a
size's time is the median over rounds. Tokens are those of a map at stride 16. The exponent is the slope of a
least-squares line through log(time) over log(tokens). Memory is the peak of what torch's allocator holds
during a forward pass, weights left out, from its own profiler; it is exact and needs no repetition.

The plain ViT runs as shipped, through `scaled_dot_product_attention`, whose CPU kernel never stores all pairs
of tokens; "vit_tiny, all pairs" is the same model with the textbook product, which does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from common import exponent, rounded, table, write_record
from vitesse.models import create_model

SIZES = (224, 320, 448, 640, 832, 1024)
STRIDE = 16
Run = Callable[[Tensor], Any]


def contenders() -> dict[str, tuple[nn.Module, Run]]:
    """Models by label, each with how it is run."""
    names = {
        "efficientvit_b1": "efficientvit_b1",
        "efficientvit_b1_single_scale": "efficientvit_b1_single_scale",
        "vit_tiny": "vit_tiny_patch16",
    }
    models = {label: create_model(name).eval() for label, name in names.items()}
    runs: dict[str, tuple[nn.Module, Run]] = {label: (model, model) for label, model in models.items()}

    def all_pairs(x_BCHW: Tensor) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return models["vit_tiny"](x_BCHW)

    runs["vit_tiny, all pairs"] = (models["vit_tiny"], all_pairs)
    return runs


def seconds(run: Run, x_BCHW: Tensor) -> float:
    started = time.perf_counter()
    run(x_BCHW)
    return time.perf_counter() - started


def peak_bytes(run: Run, x_BCHW: Tensor) -> int:
    """Largest sum of live allocations during one forward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run(x_BCHW)
    assert recorded.profiler is not None
    events = recorded.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())])
    return int(held.max())


def draw(found: dict[str, Any], path: Path) -> None:
    """Time and memory over tokens, logarithmic, a line a model."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, key, label in zip(axes, ("ms", "mib"), ("time (ms)", "peak memory (MiB)"), strict=True):
        for name, row in found["models"].items():
            values = [size[key] for size in row["sizes"]]
            slope = row[f"{key}_exponent"]
            axis.loglog(found["tokens"], values, marker="o", label=f"{name}: tokens^{slope:.2f}")
        axis.set_xlabel("tokens at stride 16")
        axis.set_ylabel(label)
        axis.set_xticks(
            found["tokens"], [f"{n}\n{s} px" for n, s in zip(found["tokens"], SIZES, strict=True)]
        )
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("One image, one thread: linear attention grows with the number of tokens")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, help="draw a PNG")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = contenders()
    images = {size: torch.randn(1, 3, size, size) for size in SIZES}
    samples: dict[str, dict[int, list[float]]] = {label: {size: [] for size in SIZES} for label in runs}
    with torch.inference_mode():
        for round_number in range(args.rounds + 1):
            for size, x_BCHW in images.items():
                for label, (_, run) in runs.items():
                    elapsed = seconds(run, x_BCHW)
                    if round_number:  # the first one warms up
                        samples[label][size].append(elapsed * 1000)
        memory = {
            label: [peak_bytes(run, images[size]) / 2**20 for size in SIZES]
            for label, (_, run) in runs.items()
        }
    tokens = [(size // STRIDE) ** 2 for size in SIZES]
    models = {}
    for label in runs:
        times = [statistics.median(samples[label][size]) for size in SIZES]
        models[label] = {
            "ms_exponent": round(exponent(tokens, times), 3),
            "mib_exponent": round(exponent(tokens, memory[label]), 3),
            "sizes": [
                {
                    "px": size,
                    "ms": round(ms, 3),
                    "mib": round(mib, 2),
                    "samples_ms": rounded(samples[label][size], 3),
                }
                for size, ms, mib in zip(SIZES, times, memory[label], strict=True)
            ],
        }
    found = {"threads": 1, "tokens": tokens, "models": models}
    path = write_record("attention_scaling", found, args.out)
    rows: list[list[object]] = [
        ["model", *(f"{size} px ms" for size in SIZES), "time ~ tokens^", "memory ~ tokens^"]
    ]
    for label, row in models.items():
        rows.append([label, *(s["ms"] for s in row["sizes"]), row["ms_exponent"], row["mib_exponent"]])
    print(table(rows), path, sep="\n")
    if args.plot:
        draw(found, args.plot)


if __name__ == "__main__":
    main()
