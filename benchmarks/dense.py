"""Are our detectors and segmenters faster than what one could take instead, and how do they grow?

    python benchmarks/dense.py --prepare           # export every graph once, time nothing: on any machine
    python benchmarks/dense.py                     # everything, with one thread and with two
    python benchmarks/dense.py detect --rounds 7   # or segment, or growth
    python benchmarks/dense.py --quick --out DIR   # small pictures, to see that it runs; no figures

`detect`: RetinaNet and the real-time detector on our backbones against torchvision's RetinaNet-ResNet50,
SSDLite and Faster R-CNN on MobileNetV3-Large, at the sizes of these. `segment`: EfficientViT-Seg-B0 against
SegFormer-B0 of transformers. `growth`: one thread, from 256 to 1024 pixels a side.

One picture, fp32, random weights; ONNX Runtime and OpenVINO on both sides, interleaved in one process for
each size. A ratio is the peer's seconds over ours in the same round, both on the engine that runs them
fastest: the median of the rounds, the smallest and the largest. The bar is the peer's multiply-accumulates
over ours, as both papers have them or else as counted here. Times hold what comes with a model after its
network, not decoding and resizing; `dense_models.py` tells what that is and how it was kept fair.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from common import RECORDS, exponent, markdown, summary, write_record
from dense_models import (
    CANDIDATES,
    NETWORK,
    SEGFORMER,
    TORCHVISION,
    TWO_STAGES,
    WHOLE,
    Size,
    artefact_of,
    picture,
)
from vitesse.bench.contenders import chosen_engines, started
from vitesse.bench.measure import Contender, Timing, best_by_model, time_interleaved
from vitesse.files import atomic_path, write_atomically
from vitesse.progress import say

SEG, RETINANET = "efficientvit_seg_b0_cityscapes", "retinanet_efficientvit_m4"
REAL_TIME = tuple(
    f"fcos_e2e_{name}" for name in ("efficientvit_m0", "efficientvit_m4", "shvit_s1", "efficientvit_b1")
)
SSDLITE, RETINANET_PEER, FASTER, FASTER_320 = (
    TORCHVISION + name
    for name in (
        "ssdlite320_mobilenet_v3_large",
        "retinanet_resnet50_fpn",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
    )
)
PUBLISHED_GMACS: Mapping[tuple[str, Size], float] = {
    (SEG, (1024, 2048)): 4.4,
    (SEG, (512, 512)): 4.4 / 8,
    (SEGFORMER, (1024, 2048)): 125.5,
    (SEGFORMER, (512, 512)): 8.4,
}
"""SegFormer's of its paper (arXiv 2105.15203, table 1; at 512 pixels for ADE20K); ours of the release for
Cityscapes, at 512 in proportion to the pixels."""


@dataclass(frozen=True)
class Match:
    """Models that take turns at one size.

    Attributes:
        part: of `PARTS`.
        stages: of `dense_models`.
        rounds: at most.
        threads: at most.
    """

    part: str
    ours: tuple[str, ...]
    peers: tuple[str, ...]
    size: Size
    stages: tuple[str, ...] = (WHOLE,)
    rounds: int = 1000
    threads: int = 1000

    def graphs(self) -> Iterator[tuple[str, Size, str]]:
        """Name, size and stage of each that is timed."""
        for name, stage in product((*self.ours, *self.peers), self.stages):
            if stage == WHOLE or TWO_STAGES not in name:
                yield name, self.size, stage


PARTS = ("detect", "segment", "growth")
BOTH = (WHOLE, NETWORK)
GROWING = ((SEG, REAL_TIME[1], REAL_TIME[3]), (SEGFORMER, FASTER))
MATCHES = (
    Match("detect", (RETINANET, *REAL_TIME), (SSDLITE, FASTER_320), (320, 320), BOTH),
    Match("detect", (RETINANET, REAL_TIME[1]), (RETINANET_PEER, FASTER), (800, 1344), rounds=3),
    Match("segment", (SEG,), (SEGFORMER,), (512, 512), BOTH),
    Match("segment", (SEG,), (SEGFORMER,), (1024, 1024), BOTH),
    Match("segment", (SEG,), (SEGFORMER,), (1024, 2048), rounds=3),
    *(Match("growth", *GROWING, (side, side), threads=1) for side in (256, 512, 768, 1024)),
)
QUICK = (
    Match("detect", REAL_TIME[:1], (SSDLITE,), (128, 128), BOTH, rounds=2, threads=1),
    Match("segment", (SEG,), (SEGFORMER,), (64, 64), BOTH, rounds=2, threads=1),
    *(Match("growth", (SEG,), (SEGFORMER,), (side, side), rounds=2, threads=1) for side in (64, 128)),
)


def timed(match: Match, engines: Sequence[str], threads: int, rounds: int) -> list[Timing]:
    """Every graph of a match on every engine, interleaved."""
    contenders = [contender(*graph, engine, threads) for graph in match.graphs() for engine in engines]
    return time_interleaved(contenders, (1,), rounds=min(rounds, match.rounds), threads=threads)


def contender(name: str, size: Size, stage: str, engine: str, threads: int) -> Contender:
    artefact = artefact_of(name, size, stage)
    return Contender(
        model=name,
        engine=engine,
        precision="fp32",
        image_size=size,
        macs=artefact.manifest.provenance["macs"],
        stage=stage,
        start=lambda: started(artefact, engine, threads).run,
        feed=lambda batch_size: picture(size),
        artefact=artefact,
    )


def compared(match: Match, timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """Ours against each peer, stage by stage; an engine that fails is none's fastest."""
    rows = []
    for stage in match.stages:
        best = best_by_model([timing for timing in timings if timing.contender.stage == stage])
        for ours, peer in product(match.ours, match.peers):
            if (ours, 1) in best and (peer, 1) in best:
                rows.append(ratio_row(best[ours, 1], best[peer, 1]))
    return rows


def ratio_row(ours: Timing, peer: Timing) -> dict[str, Any]:
    """The peer's seconds over ours in the same rounds, and its multiply-accumulates over ours."""
    sides = (ours.contender, peer.contender)
    macs = [who.macs or 0 for who in sides]
    wall = np.divide(peer.samples_s, ours.samples_s)
    said = [PUBLISHED_GMACS.get((who.model, who.image_size), 0.0) for who in sides]
    counted, published = macs[1] / macs[0], said[1] / said[0] if all(said) else None
    return {
        "ours": sides[0].model,
        "peer": sides[1].model,
        "image_size": list(sides[0].image_size),
        "stage": sides[0].stage,
        "threads": ours.threads,
        "engines": [who.engine for who in sides],
        "gmacs": [round(count / 1e9, 3) for count in macs],
        "bar": round(counted, 3),
        "published_bar": round(published, 2) if published else None,
        "ratio": {**summary(wall), "max": float(wall.max())},
        "processor_ratio": summary(np.divide(peer.processor_s, ours.processor_s)),
        "met": bool(np.median(wall) >= (published or counted)),
    }


def growth_of(timings: Sequence[Timing]) -> dict[str, Any]:
    """Median milliseconds of each model at each side on its fastest engine, and the exponent in pixels."""
    best = [best_by_model(same) for same in by_size(timings).values()]
    models = {}
    for name in dict.fromkeys(timing.contender.model for timing in timings):
        fastest = [found[name, 1] for found in best if (name, 1) in found]
        sides = [timing.contender.image_size[0] for timing in fastest]
        times = [1000 * timing.median_s for timing in fastest]
        models[name] = {
            "sides": sides,
            "ms": [round(time, 3) for time in times],
            "engines": [timing.contender.engine for timing in fastest],
            "exponent": round(exponent([side**2 for side in sides], times), 3),
            "macs_exponent": round(
                exponent([side**2 for side in sides], [t.contender.macs or 0 for t in fastest]), 3
            ),
        }
    return models


def by_size(timings: Sequence[Timing]) -> Mapping[Size, list[Timing]]:
    found: dict[Size, list[Timing]] = {}
    for timing in timings:
        found.setdefault(timing.contender.image_size, []).append(timing)
    return found


def graphs_of(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """What ran: the artefact of each graph, and what reached a second stage."""
    artefacts = {
        timing.contender.artefact.sha256: timing.contender for timing in timings if timing.contender.artefact
    }
    return [
        {"model": who.model, "image_size": list(who.image_size), "stage": who.stage, "sha256": sha256}
        | dict(who.artefact.manifest.provenance if who.artefact else {})
        for sha256, who in artefacts.items()
    ]


def ratio_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each pair and size: with what comes after the network, and the networks alone."""
    threads = sorted({row["threads"] for row in rows})
    stages = [stage for stage in (WHOLE, NETWORK) if any(row["stage"] == stage for row in rows)]
    columns = [(stage, count) for stage in stages for count in threads]
    cells = {
        (row["ours"], row["peer"], *row["image_size"], row["stage"], row["threads"]): row for row in rows
    }
    published = any(row["published_bar"] for row in rows)
    head = ["ours", "peer", "input", "GMACs", "bar", *(["published"] if published else [])]
    lines: list[list[object]] = [
        [
            *head,
            *(f"{stage}, {count} thread{'s' * (count > 1)}" for stage, count in columns),
            "reaches the bar",
            "faster",
        ]
    ]
    for key, row in {key[:4]: row for key, row in cells.items() if row["stage"] == WHOLE}.items():
        found = [cells.get((*key, *column)) for column in columns]
        height, width = row["image_size"]
        gmacs = " : ".join(f"{value:.3g}" for value in row["gmacs"])
        bars = [row["bar"], *([row["published_bar"] or ""] if published else [])]
        whole = [cell for cell in found if cell and cell["stage"] == WHOLE]
        met = all(cell["met"] for cell in whole)
        faster = all(cell["ratio"]["median"] > 1 for cell in whole)
        ratios = [ratio_text(cell) if cell else "" for cell in found]
        names = (short(row[side]) for side in ("ours", "peer"))
        answers = ("yes" if answer else "no" for answer in (met, faster))
        lines.append([*names, f"{height}x{width}", gmacs, *bars, *ratios, *answers])
    return markdown(lines)


def ratio_text(row: Mapping[str, Any]) -> str:
    """Median, smallest to largest, and that of processor seconds."""
    ratio = row["ratio"]
    spread = f"{ratio['min']:.2f} to {ratio['max']:.2f}"
    return f"{ratio['median']:.2f} ({spread}; processor {row['processor_ratio']['median']:.2f})"


def growth_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Times over that of the smallest side."""
    sides = next(iter(models.values()))["sides"]
    lines: list[list[object]] = [
        ["model", *(f"{side} px" for side in sides), "time ~ pixels^", "MACs ~ pixels^"]
    ]
    for name, row in models.items():
        times = [ms / row["ms"][0] for ms in row["ms"]]
        lines.append([short(name), *times, row["exponent"], row["macs_exponent"]])
    return markdown(lines)


def short(name: str) -> str:
    """A model's name without the package that it is from."""
    return name.rpartition(":")[2]


def draw(models: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Time over the input's side, both logarithmic: segmenters and detectors, peers dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    segmenters = {name: row for name, row in models.items() if name in (SEG, SEGFORMER)}
    panels = {
        "semantic segmentation": segmenters,
        "detection": {name: row for name, row in models.items() if name not in segmenters},
    }
    shown = {title: rows for title, rows in panels.items() if rows}
    figure = Figure((5.5 * len(shown), 4.5), layout="constrained")
    for axis, (title, rows) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        for name, row in rows.items():
            label = f"{short(name)}: pixels^{row['exponent']:.2f}"
            axis.loglog(row["sides"], row["ms"], "s--" if ":" in name else "o-", label=label)
        axis.set_title(title, loc="left")
        axis.set_xlabel("input side, pixels")
        axis.set_ylabel("time of a picture, ms")
        axis.set_xticks(row["sides"], row["sides"])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("One picture, one thread, fastest engine, post-processing included")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=5, help="three at most where a run takes seconds")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--engines", default="onnxruntime,openvino")
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of dense.json, .md and .png")
    parser.add_argument("--prepare", action="store_true", help="export and keep every graph, time nothing")
    parser.add_argument("--quick", action="store_true", help="small pictures, one thread, two rounds")
    args = parser.parse_args(arguments)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"expected of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    parts = args.parts or PARTS
    matches = [match for match in (QUICK if args.quick else MATCHES) if match.part in parts]
    for graph in dict.fromkeys(graph for match in matches for graph in match.graphs()):
        artefact_of(*graph)
    if not args.prepare:
        report(matches, args)


def report(matches: Sequence[Match], args: argparse.Namespace) -> None:
    """Time all and write record, table and picture."""
    engines = chosen_engines(args.engines)
    timings: dict[str, list[Timing]] = {part: [] for part in PARTS}
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for match, threads in product(matches, args.threads):
        if threads > match.threads:
            continue
        say(f"{match.part} at {match.size[0]}x{match.size[1]}, threads: {threads}")
        found = timed(match, engines, threads, args.rounds)
        timings[match.part] += found
        rows[match.part] += compared(match, found) if match.part != "growth" else []
    growth = growth_of(timings["growth"])
    everything = [timing for found in timings.values() for timing in found]
    content = {
        "quick": args.quick,
        "settings": {"rounds": args.rounds, "threads": args.threads, "candidates": CANDIDATES},
        "rows": [row for found in rows.values() for row in found],
        "growth": growth,
        "graphs": graphs_of(everything),
        "timings": [timing.to_dict() for timing in everything],
    }
    path = write_record("dense", content, args.out / "dense.json")
    tables = [ratio_table(found) for found in rows.values() if found]
    if growth:
        tables.append(growth_table(growth))
        draw(growth, args.out / "dense.png")
    write_atomically(path.with_suffix(".md"), "\n".join(tables).encode())
    print("\n".join(tables), path, sep="\n")


if __name__ == "__main__":
    main()
