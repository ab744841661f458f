"""What an analysis of importance leaves to look at: a Markdown table, and the paper's figure 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitesse.analyze.channels import KINDS, SUBSAMPLING
from vitesse.analyze.importance import ImportanceAnalysis
from vitesse.errors import require
from vitesse.files import atomic_path

NAMES = {"q": "Q", "k": "K", "v": "V", "ffn": "FFN hidden", "width": "width"}
STYLES = {"q": ("#0b7a75", "o", "-"), "k": ("#e0a030", "x", ":"), "v": ("#a83a2a", "s", "-")}
STYLES |= {"ffn": ("#3b5b92", "^", "-"), "width": ("#8a8f98", "", "-")}
"""Colour, marker and line of each kind; keys are dotted, for they often lie on the queries."""
CUTS = np.linspace(0, 0.95, 39)


def markdown(analysis: ImportanceAnalysis, cut: float) -> str:
    """A row a block: channels that stay of those there are, by kind."""
    stays = analysis.remaining(cut)
    places = list(dict.fromkeys(group.place for group in analysis.groups))
    kinds = [kind for kind in KINDS if any(group.kind == kind for group in analysis.groups)]
    cells = {
        (group.place, group.kind): f"{left} / {len(group.importance)}"
        for group, left in zip(analysis.groups, stays, strict=True)
    }
    rows = [[f"stay at {cut:.0%} cut", *(NAMES[kind] for kind in kinds)], ["---", *("---:" for _ in kinds)]]
    rows += [[_name(place), *(cells.get((place, kind), "") for kind in kinds)] for place in places]
    shares = analysis.share_by_kind(cut)
    rows.append(["**share**", *(f"**{shares[kind]:.1%}**" for kind in kinds)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _name(place: str) -> str:
    stage, _, block = place.partition(".")
    what = f"block {block}" if block and block != SUBSAMPLING else "subsampling" if block else "whole"
    return f"stage {stage}, {what}"


def draw(analysis: ImportanceAnalysis, cut: float, path: Path) -> None:
    """Share of the channels that stays: by block at one cut, and by kind at all cuts.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = require("matplotlib.pyplot", "bench")
    figure, (blocks, kinds) = plt.subplots(
        1, 2, figsize=(11.5, 4.4), width_ratios=(3, 2), layout="constrained"
    )
    _draw_blocks(blocks, analysis, cut)
    _draw_kinds(kinds, analysis, cut)
    size = "x".join(map(str, analysis.image_size))
    what = f"{Path(analysis.model).name} at {size}, {analysis.pictures} pictures"
    figure.suptitle(f"which channels matter: {what}", fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def _draw_blocks(axis: Any, analysis: ImportanceAnalysis, cut: float) -> None:
    stays = analysis.remaining(cut)
    places = list(dict.fromkeys(group.place for group in analysis.groups if group.block))
    position = {place: index for index, place in enumerate(places)}
    stage_of = [int(place.partition(".")[0]) for place in places]
    for kind in KINDS:
        colour, marker, line = STYLES[kind]
        found = [
            (group, 100 * left / len(group.importance))
            for group, left in zip(analysis.groups, stays, strict=True)
            if group.kind == kind
        ]
        if kind == "width":
            for group, share in found:
                inside = [x for x, stage in enumerate(stage_of) if stage == group.stage]
                ends = (min(inside) - 0.4, max(inside) + 0.4)
                axis.plot(ends, (share, share), color=colour, lw=4, alpha=0.6)
        elif found:
            x = [position[group.place] for group, _ in found]
            shares = [share for _, share in found]
            axis.plot(x, shares, line, marker=marker, color=colour, lw=1.6, ms=5)
    for index in range(1, len(places)):
        if stage_of[index] != stage_of[index - 1]:
            axis.axvline(index - 0.5, color="black", lw=0.6, alpha=0.4)
    several = len(set(stage_of)) > 1
    axis.set_xticks(range(len(places)), places if several else [place.partition(".")[2] for place in places])
    axis.set_xlabel(f"stage.block ({SUBSAMPLING}: subsampling)" if several else "block")
    axis.set_ylabel("% of the channels that stay")
    axis.set_ylim(-3, 105)
    axis.set_title(f"the least important {cut:.0%} of all channels left out", fontsize=10)
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_kinds(axis: Any, analysis: ImportanceAnalysis, cut: float) -> None:
    curves = [analysis.share_by_kind(share) for share in CUTS]
    for kind in curves[0]:
        colour, marker, line = STYLES[kind]
        shares = [100 * curve[kind] for curve in curves]
        marks = {"marker": marker, "markevery": 4, "ms": 5}
        axis.plot(100 * CUTS, shares, line, color=colour, lw=1.6, label=NAMES[kind], **marks)
    axis.plot((0, 100), (100, 0), color="black", lw=0.6, alpha=0.5, ls="--")
    axis.axvline(100 * cut, color="black", lw=0.6, alpha=0.4)
    axis.set_xlabel("% of all channels left out")
    axis.set_ylabel("% of the kind that stays")
    axis.set_title("by kind; dashed: all alike", fontsize=10)
    axis.set_xlim(0, 100)
    axis.set_ylim(-3, 105)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5))
