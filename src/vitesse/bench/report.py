"""What a benchmark leaves behind: a Markdown table and a picture of accuracy against latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitesse.bench.measure import Timing, best_by_model, comparable
from vitesse.bench.peers import PREFIX
from vitesse.errors import require
from vitesse.files import atomic_path

PLACES = (
    (6, -3, "left"),
    (6, 5, "left"),
    (6, -11, "left"),
    (-6, -3, "right"),
    (-6, 6, "right"),
    (6, 13, "left"),
)
"""Of a name beside its point: offset in typographic points, and which end of the name is there."""

OURS, THEIRS, FRONT = "#0b7a75", "#8a8f98", "#c44536"


def markdown(timings: Sequence[Timing], limits: Mapping[str, float] | None = None) -> str:
    """One row for each contender and batch size; failures are rows too."""
    lines = [
        "| model | engine | precision | batch | img/s | p50 ms | p95 ms | top-1 | GEMM limit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for timing in timings:
        record = timing.to_dict()
        cells = [record["model"], record["engine"], record["precision"], record["batch_size"]]
        if timing.samples_s:
            cells += [f"{record['img_per_s']:.1f}", f"{record['p50_ms']:.2f}", f"{record['p95_ms']:.2f}"]
        else:
            cells += [f"failed: {timing.error}".replace("|", "/"), "", ""]
        top1 = timing.contender.top1
        cells += ["" if top1 is None else f"{top1:.1%}", _share_of_limit(timing, limits)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _share_of_limit(timing: Timing, limits: Mapping[str, float] | None) -> str:
    """Multiply-accumulates a second over those of one large matrix product in the same precision."""
    who = timing.contender
    if (
        who.stage != "model"
        or not limits
        or not who.macs
        or not timing.samples_s
        or who.precision not in limits
    ):
        return ""
    return f"{who.macs / timing.median_s / limits[who.precision]:.0%}"


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (latency, accuracy) points that no other beats in both, by latency."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def draw_front(timings: Sequence[Timing], path: Path) -> None:
    """Accuracy against latency, each model at its fastest engine and precision, one panel a batch size.

    Models whose accuracy is not known, or was measured on other pictures than most, are left out.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = require("matplotlib.pyplot", "bench")
    best = comparable(list(best_by_model(timings).values()))
    sizes = sorted({timing.batch_size for timing in best})
    figure, axes = plt.subplots(
        1, max(1, len(sizes)), figsize=(7.5 * max(1, len(sizes)), 6), layout="constrained", squeeze=False
    )
    for axis, batch_size in zip(axes[0], sizes, strict=False):
        _draw_panel(axis, [timing for timing in best if timing.batch_size == batch_size])
        axis.set_title(f"batch {batch_size}, {best[0].threads} thread{'s' if best[0].threads > 1 else ''}")
        axis.set_ylabel(f"top-1 on {best[0].contender.top1_on} (%)")
        what = "the model alone" if best[0].contender.stage == "model" else "photos to labels"
        axis.set_xlabel(f"ms a picture, {what}, fastest engine and precision (log scale)")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def _draw_panel(axis: Any, timings: Sequence[Timing]) -> None:
    points = [(1000 * t.median_s, 100 * (t.contender.top1 or 0)) for t in timings]
    _scale_latency(axis, [latency for latency, _ in points])
    line = zip(*(points[i] for i in pareto_front(points)), strict=True)
    axis.plot(*line, color=FRONT, lw=1, zorder=1, label="Pareto front")
    for (latency, accuracy), timing in zip(points, timings, strict=True):
        colour, marker = _style(timing)
        filled = timing.contender.precision == "int8"
        face = colour if filled else "white"
        axis.scatter(latency, accuracy, s=42, marker=marker, zorder=2, facecolor=face, edgecolor=colour)
    for label, colour, marker in (("Vitesse", OURS, "o"), ("timm", THEIRS, "s")):
        axis.scatter([], [], color=colour, marker=marker, label=f"{label}: filled int8, open fp32")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)
    _name_points(axis, points, timings)


def _style(timing: Timing) -> tuple[str, str]:
    """Colour and marker."""
    return (THEIRS, "s") if timing.contender.model.startswith(PREFIX) else (OURS, "o")


def _scale_latency(axis: Any, latencies: Sequence[float]) -> None:
    """A logarithmic axis in plain numbers, with room for the names on the right."""
    ticker = require("matplotlib.ticker", "bench")
    axis.set_xscale("log")
    axis.set_xlim(0.8 * min(latencies), 3.6 * max(latencies))
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())


def _name_points(axis: Any, points: Sequence[tuple[float, float]], timings: Sequence[Timing]) -> None:
    """Each name beside its point, at the first of a few places where it covers no other name."""
    figure = axis.figure
    figure.canvas.draw()
    taken: list[Any] = []
    for point, timing in zip(points, timings, strict=True):
        name = Path(timing.contender.model.removeprefix(PREFIX)).stem
        for x, y, side in PLACES:
            text = axis.annotate(
                name, point, xytext=(x, y), textcoords="offset points", fontsize=7.5, ha=side
            )
            text.set_color(_style(timing)[0])
            box = text.get_window_extent(figure.canvas.get_renderer())
            if not any(box.overlaps(other) for other in taken) or (x, y, side) == PLACES[-1]:
                taken.append(box)
                break
            text.remove()
