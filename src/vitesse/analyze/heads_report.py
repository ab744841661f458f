"""What an analysis of heads leaves to look at: Markdown tables, and a picture of the heads of every block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitesse.analyze.heads import HeadsAnalysis
from vitesse.analyze.weighted import RANDOM
from vitesse.catalogue import ARTEFACT_SUFFIX, CHECKPOINT_SUFFIX
from vitesse.errors import require
from vitesse.files import atomic_path

COLOURS = ("#a83a2a", "#0b7a75", "#c98a1b", "#4a5a9c", "#7a3b8f", "#5c6b3a")
SUFFIXES = (ARTEFACT_SUFFIX, CHECKPOINT_SUFFIX)
PAIRS = ("similarity of all pairs", "correlation of all pairs")
COLUMNS = 12
"""Heat maps side by side."""
LABELLED_HEADS = 4
"""Heat maps of so many heads have their figures written in."""


def markdown(analyses: Sequence[HeadsAnalysis]) -> str:
    """A table for each model, a row for each block."""
    return "\n".join(_table(analysis) for analysis in analyses)


def _table(analysis: HeadsAnalysis) -> str:
    height, width = analysis.image_size
    lines = [
        f"**{analysis.model}** ({analysis.weights} weights), {analysis.images} pictures of {analysis.data} "
        f"at {height}x{width}",
        "",
    ]
    rows = [["block", "module", "heads", "map", "redundancy", "correlation", *PAIRS]]
    rows.append(["---:", "---", *(["---:"] * 6)])
    for number, block in enumerate(analysis.blocks, 1):
        figures = (block.redundancy, block.correlation, block.mean_similarity, block.mean_correlation)
        sides = f"{block.queries}x{block.keys}"
        rows.append([str(number), block.module, str(block.heads), sides, *(f"{x:.3f}" for x in figures)])
    heads = str(sum(block.heads for block in analysis.blocks))
    means = (f"**{analysis.redundancy:.3f}**", f"{analysis.correlation:.3f}", "", "")
    rows.append(["all", "", heads, "", *means])
    lines += [f"| {' | '.join(row)} |" for row in rows]
    if remarks := analysis.remarks():
        lines += ["", *(f"- {remark}" for remark in remarks)]
    return "\n".join(lines) + "\n"


def draw(analyses: Sequence[HeadsAnalysis], path: Path) -> None:
    """Largest similarity by block as in the paper's figure 3, and below it heads by heads of every block.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = require("matplotlib.pyplot", "bench")
    rows = [math.ceil(len(analysis.blocks) / COLUMNS) for analysis in analyses]
    columns = max(min(len(analysis.blocks), COLUMNS) for analysis in analyses)
    heights = [3.6, *(0.55 + 1.25 * count for count in rows)]
    figure = plt.figure(figsize=(max(9.0, 1.15 * columns + 1.2), sum(heights) + 0.4), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights)
    _draw_curves(parts[0].subplots(1, 2, sharex=True, sharey=True), analyses)
    for index, (part, analysis) in enumerate(zip(parts[1:], analyses, strict=True)):
        part.suptitle(labels(analyses)[index], fontsize=10, color=_colour(index))
        _draw_maps(part.subplots(rows[index], columns, squeeze=False).ravel(), analysis)
    parts[-1].supxlabel(
        "heads by heads: above the diagonal similarity, below it correlation; dark is alike", fontsize=9
    )
    count = analyses[0].images
    shown = f"{count} picture{'s' if count > 1 else ''} of {Path(analyses[0].data).name}"
    figure.suptitle(f"Do the attention heads of a block repeat each other? {shown}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def labels(analyses: Sequence[HeadsAnalysis]) -> list[str]:
    """Short names: a file's without folders, or where they are alike what distinguishes the paths."""
    paths = [Path(analysis.model) for analysis in analyses]
    short = [path.stem if path.suffix in SUFFIXES else str(path) for path in paths]
    if len(set(short)) < len(short):
        shared = set.intersection(*(set(path.parts) for path in paths))
        own = ["/".join(part for part in path.parts if part not in shared) for path in paths]
        short = [mine or name for mine, name in zip(own, short, strict=True)]
    return [
        f"{name} (random weights)" if analysis.weights == RANDOM else name
        for name, analysis in zip(short, analyses, strict=True)
    ]


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _draw_curves(axes: Any, analyses: Sequence[HeadsAnalysis]) -> None:
    """A line for each model's blocks, a dot for each head: similarity, and correlation."""
    for axis, title, what in (
        (axes[0], "similarity to the nearest other head", "similarity"),
        (axes[1], "correlation with it, even attention taken out", "correlation"),
    ):
        for index, (analysis, label) in enumerate(zip(analyses, labels(analyses), strict=True)):
            colour = _colour(index)
            heads = [getattr(block, f"max_{what}_A") for block in analysis.blocks]
            numbers = range(1, len(heads) + 1)
            axis.plot(numbers, [block.mean() for block in heads], "-", color=colour, lw=1.8)
            for number, block in zip(numbers, heads, strict=True):
                axis.plot([number] * len(block), block, "o", color=colour, ms=3.5, alpha=0.45, mew=0)
            overall = analysis.redundancy if what == "similarity" else analysis.correlation
            axis.plot([], [], "-o", color=colour, ms=4, label=f"{label}: {overall:.2f}")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("block, from the picture to the answer")
        axis.set_ylim(min(0.0, axis.get_ylim()[0]), 1.02)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, loc="best")
    axes[0].set_ylabel("line: mean over heads, dots: heads")


def _draw_maps(axes: Any, analysis: HeadsAnalysis) -> None:
    """Of every block its heads by heads: similarity above the diagonal, correlation below it."""
    for axis in axes[len(analysis.blocks) :]:
        axis.set_axis_off()
    for number, (axis, block) in enumerate(zip(axes, analysis.blocks, strict=False), 1):
        shown = np.triu(block.similarity_AA) + np.tril(block.correlation_AA)
        shown[range(block.heads), range(block.heads)] = math.nan
        axis.imshow(shown, vmin=0, vmax=1, cmap="magma_r")
        axis.set_title(f"block {number}", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
        if block.heads <= LABELLED_HEADS:
            _label(axis, shown)


def _label(axis: Any, shown: Any) -> None:
    for row, values in enumerate(shown):
        for column, value in enumerate(values):
            if not math.isnan(value):
                colour = "white" if value > 0.5 else "black"
                text = f"{round(float(value), 2) + 0:.2f}".replace("0.", ".")  # + 0: no minus before zeros
                axis.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
