"""How large a share of a transformer's layers should be attention, at equal speed?

    python benchmarks/proportion.py --runs runs/proportion

After EfficientViT (arXiv 2305.07027, section 2.1 and figure 2): sub-networks of a DeiT-like and a Swin-like
transformer whose layers are attention to 20, 30, 40, 50 (as usual) and 60 %, the rest feed-forwards, evenly
spread. Each gets the width at which it is 1.25 times as fast as the usual one is: widths are timed
interleaved (`vitesse.bench`, one thread, batch 16), and a power law through their times gives the one.

Accuracy: CIFAR-100 at 32 px from scratch, recipe `cifar100`, the same 10 000 pictures three times and the
same seeds for every row, scored on 5000 test pictures (standard error of a run 0.6 points). Widths and
finished runs in `--runs` are kept. The share of time that memory bounds is that of `vitesse analyze runtime`.

Shape suffixes: B images, C channels, H rows, W columns, N tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vitesse
from common import DATA, RECORDS, fastest, markdown, spread, trained, write_record
from vitesse.analyze import analyze_runtime
from vitesse.bench import benchmark
from vitesse.files import atomic_path, write_atomically
from vitesse.layers import Residual
from vitesse.models.backbone import StagedBackbone
from vitesse.models.registry import configured, register
from vitesse.models.transformer import MLP_RATIO, NormedAttention
from vitesse.models.variants import write_spec
from vitesse.spec import FeatureSpec, ModelSpec

SIDE, CLASSES = 32, 100
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6)
USUAL = 0.5
FASTER = 1.25
HEADS = 4
"""Of the first stage; widths are multiples of it."""
TRIED = (0.65, 0.85, 1.0)
"""Widths that are timed, of the usual one's."""
BATCH = 16
RECIPE = "cifar100"
OVERRIDES = {"image_size": SIDE, "epochs": 3, "limit_train": 10_000, "eval_every": 3, "limit_val": 1000}
SCORED = 5000


@dataclass(frozen=True, kw_only=True)
class Config:
    """Layers and the side of windows (0: none) of each stage; the width doubles from stage to stage."""

    width: int
    depths: tuple[int, ...]
    windows: tuple[int, ...]
    patch: int
    share: float = USUAL


CONFIGS = {
    "proportion_deit": Config(width=96, depths=(20,), windows=(0,), patch=4),
    "proportion_swin": Config(width=48, depths=(10, 10), windows=(4, 4), patch=2),
}


class Patches(nn.Module):
    """Patches with learned positions: images (B, C, H, W) to the first stage's map."""

    def __init__(self, spec: ModelSpec, dim: int, patch: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(spec.in_chans, dim, patch, patch)
        self.pos_embed_1CHW = nn.Parameter(torch.zeros(1, dim, *(side // patch for side in spec.image_size)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        patches_BCHW: Tensor = self.conv(x_BCHW)
        return patches_BCHW + self.pos_embed_1CHW


class Windows(nn.Module):
    """Attention in windows, of every second layer moved by half a window: (B, C, H, W) to the same."""

    def __init__(self, dim: int, heads: int, window: int, moved: bool) -> None:
        super().__init__()
        self.attention = NormedAttention(dim, heads)
        self.window, self.step = window, window // 2 if moved else 0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        size = self.window or max(x_BCHW.shape[2:])
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        if self.step:
            x_BHWC = x_BHWC.roll((-self.step, -self.step), (1, 2))
        rows, columns = x_BHWC.shape[1] // size, x_BHWC.shape[2] // size
        windows = x_BHWC.unflatten(2, (columns, size)).unflatten(1, (rows, size)).transpose(2, 3)
        out_BNC = self.attention(windows.flatten(3, 4).flatten(0, 2))
        windows = out_BNC.unflatten(1, (size, size)).unflatten(0, (-1, rows, columns))
        x_BHWC = windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.step:
            x_BHWC = x_BHWC.roll((self.step, self.step), (1, 2))
        return x_BHWC.permute(0, 3, 1, 2)


class FeedForward(nn.Module):
    """Normalisation and two linear layers: (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.act, self.fc2 = (
            nn.Linear(dim, MLP_RATIO * dim),
            nn.GELU(),
            nn.Linear(MLP_RATIO * dim, dim),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = self.fc2(self.act(self.fc1(self.norm(x_BCHW.permute(0, 2, 3, 1)))))
        return x_BHWC.permute(0, 3, 1, 2)


def is_attention(depth: int, share: float) -> list[bool]:
    """Which of so many layers are attention: a share of them, spread evenly, the first among them."""
    return [int(layer * share) != int((layer - 1) * share) or not layer for layer in range(depth)]


class Transformer(StagedBackbone):
    """Patches, stages of attention and feed-forward layers between 2x2 mergings, mean, linear head."""

    def __init__(self, spec: ModelSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.min_image_size = self.size_multiple = config.patch * 2 ** (len(config.depths) - 1)
        dims = [config.width * 2**stage for stage in range(len(config.depths))]
        self.feature_specs = tuple(
            FeatureSpec(name=f"stage{i}", channels=dim, stride=config.patch * 2**i)
            for i, dim in enumerate(dims)
        )
        self.stem = Patches(spec, dims[0], config.patch)
        self.stages = nn.ModuleList()
        for i, (dim, depth, window) in enumerate(zip(dims, config.depths, config.windows, strict=True)):
            merging = [nn.Conv2d(dims[i - 1], dim, 2, 2)] if i else []
            self.stages.append(
                nn.Sequential(*merging, *_layers(dim, HEADS * 2**i, depth, window, config.share))
            )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dims[-1], spec.num_classes)
        )


def _layers(dim: int, heads: int, depth: int, window: int, share: float) -> Iterator[Residual]:
    moved = True
    for attends in is_attention(depth, share):
        moved = moved != attends
        yield Residual(Windows(dim, heads, window, moved and window > 0) if attends else FeedForward(dim))


def build(spec: ModelSpec) -> Transformer:
    """The transformer that `spec` describes."""
    return Transformer(spec, configured(CONFIGS, spec))


def spec_file(folder: Path, name: str, share: float, width: int) -> str:
    """A file with the spec of one sub-network."""
    spec = ModelSpec(
        name=name, image_size=(SIDE, SIDE), num_classes=CLASSES, variant={"share": share, "width": width}
    )
    path = folder / f"{name}-{share:.0%}-{width}.json"
    write_spec(spec, path)
    return str(path)


def times(files: Sequence[str], rounds: int) -> dict[str, float]:
    """Median seconds a picture of each, interleaved."""
    timings = benchmark(files, engines="onnxruntime", precisions=["fp32"], batch_sizes=[BATCH], rounds=rounds)
    return {file: fastest(timings, file, BATCH).median_s for file in files}


def fitting_width(tried: Sequence[int], seconds: Sequence[float], target: float) -> int:
    """The width whose time, by a power law through those tried, is nearest to the target."""
    line = np.polyfit(np.log(tried), np.log(seconds), 1)
    choices = np.arange(min(tried) // 2, 2 * max(tried), HEADS) // HEADS * HEADS
    return int(choices[np.abs(np.polyval(line, np.log(choices)) - np.log(target)).argmin()])


def fitting_widths(folder: Path, name: str, rounds: int) -> dict[float, int]:
    """The width of each share at which all are equally fast."""
    usual = CONFIGS[name].width
    tried = [round(usual * part / HEADS) * HEADS for part in TRIED]
    files = {(share, width): spec_file(folder, name, share, width) for share in SHARES for width in tried}
    found = times(list(files.values()), rounds)
    target = found[files[USUAL, usual]] / FASTER
    return {
        share: fitting_width(tried, [found[files[share, width]] for width in tried], target)
        for share in SHARES
    }


def kept_widths(runs: Path, name: str, rounds: int) -> dict[float, int]:
    """`fitting_widths`, found once: measured again they would be others, and their trainings begin anew."""
    path = runs / f"{name}-widths.json"
    if not path.is_file():
        found = fitting_widths(runs, name, rounds)
        write_atomically(path, json.dumps({str(share): width for share, width in found.items()}).encode())
    return {float(share): width for share, width in json.loads(path.read_text()).items()}


def accuracy(file: str, runs: Path, seeds: Sequence[int]) -> list[float]:
    """Top-1 of a spec file's model, one for each seed."""
    found = []
    for seed in seeds:
        checkpoint = trained(file, runs / f"{Path(file).stem}-{seed}", RECIPE, {**OVERRIDES, "seed": seed})
        scores = vitesse.evaluate(DATA / "cifar100", model=checkpoint, engine="torch", limit=SCORED)
        found.append(scores.to_dict()["top1"])
    return found


def study(runs: Path, name: str, rounds: int, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each share: width, parameters, relative speed, what memory bounds, accuracies."""
    chosen = kept_widths(runs, name, rounds)
    files = {share: spec_file(runs, name, share, width) for share, width in chosen.items()}
    seconds = times(list(files.values()), rounds)
    rows = []
    for share, file in files.items():
        profiles = analyze_runtime(file, engines="torch,onnxruntime", batch_size=BATCH, rounds=5).profiles
        model = vitesse.create_model(file)
        rows.append(
            {
                "model": name,
                "share": share,
                "width": chosen[share],
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "speed": seconds[files[USUAL]] / seconds[file],
                "memory_bound": {profile.engine: profile.memory_bound_share for profile in profiles},
                "top1": accuracy(file, runs, seeds),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["model", "attention", "width", "parameters, M", "speed", "memory-bound, torch", "ONNX Runtime"]
    lines: list[list[object]] = [[*head, "top-1, %", "over seeds"]]
    for row in rows:
        bound = [f"{row['memory_bound'][engine]:.0%}" for engine in ("torch", "onnxruntime")]
        cells = [row["model"], f"{row['share']:.0%}", row["width"], f"{row['parameters'] / 1e6:.2f}"]
        top1 = [f"{100 * statistics.mean(row['top1']):.1f}", spread(row["top1"])]
        lines.append([*cells, f"{row['speed']:.2f}", *bound, *top1])
    return markdown(lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy, and the share of time that memory bounds, over the share of attention."""
    from matplotlib.figure import Figure

    figure = Figure((10, 4.2), layout="constrained")
    scores, bound = figure.subplots(1, 2)
    for name, colour in zip(CONFIGS, ("#4878a8", "#c8553d"), strict=True):
        mine = [row for row in rows if row["model"] == name]
        shares = [100 * row["share"] for row in mine]
        label = name.removeprefix("proportion_") + "-like"
        means = [100 * statistics.mean(row["top1"]) for row in mine]
        scores.plot(shares, means, "o-", color=colour, label=label)
        scores.vlines(
            shares,
            [100 * min(row["top1"]) for row in mine],
            [100 * max(row["top1"]) for row in mine],
            color=colour,
            alpha=0.5,
        )
        for engine, line in (("torch", "o-"), ("onnxruntime", "s--")):
            values = [100 * row["memory_bound"][engine] for row in mine]
            bound.plot(shares, values, line, color=colour, label=f"{label}, {engine}")
    scores.set_title("Accuracy at equal speed", loc="left")
    scores.set_ylabel("top-1 on CIFAR-100, %")
    bound.set_title("Time in operators that memory bounds", loc="left")
    bound.set_ylabel("%")
    for axis in (scores, bound):
        axis.set_xlabel("layers that are attention, %")
        axis.legend(frameon=False, fontsize=8)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/proportion"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    register(*CONFIGS, changes={})(build)
    rows = [row for name in CONFIGS for row in study(args.runs, name, args.rounds, args.seeds)]
    settings = {
        "recipe": RECIPE,
        "overrides": OVERRIDES,
        "scored": SCORED,
        "faster": FASTER,
        "seeds": args.seeds,
    }
    write_record(
        "proportion", {"settings": settings, "configs": [repr(c) for c in CONFIGS.values()], "rows": rows}
    )
    draw(rows, RECORDS / "proportion.png")
    text = table(rows)
    write_atomically(RECORDS / "proportion.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
