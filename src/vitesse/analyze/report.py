"""What an analysis leaves to look at: a Markdown table, and a picture of shares and rooflines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitesse.analyze.kinds import COMPUTE_KINDS, KINDS, MEMORY_KINDS, OTHER, ROLES, class_of
from vitesse.analyze.profile import Profile
from vitesse.analyze.roofline import Machine, below_ridge_share, place
from vitesse.analyze.runtime import RuntimeAnalysis
from vitesse.errors import require
from vitesse.files import atomic_path

COMPUTE_COLOURS = ("#0b7a75", "#3fa39d", "#8fcfca")
MEMORY_COLOURS = ("#7f1d12", "#a83a2a", "#c9614f", "#dd8b7b", "#ecb5a9", "#f6dad3")
OTHER_COLOUR = "#8a8f98"
COLOURS = dict(zip(KINDS, (*COMPUTE_COLOURS, *MEMORY_COLOURS, OTHER_COLOUR), strict=True))
CLASS_COLOURS = {"compute": COMPUTE_COLOURS[0], "memory": MEMORY_COLOURS[2], OTHER: OTHER_COLOUR}
CLASS_LABELS = {"compute": "bound by arithmetic", "memory": "bound by memory", OTHER: "other"}
BAR_WIDTH = 0.6
LABELLED_SHARE = 0.05
LEGEND_SIZE = 24


def markdown(analysis: RuntimeAnalysis) -> str:
    """One column for each engine: shares by class, kind, roofline and part of the model, and times."""
    profiles = analysis.profiles
    rows = [["share of the time in operators", *(profile.engine for profile in profiles)]]
    rows.append(["---", *("---:" for _ in profiles)])
    rows.append(["**bound by memory, by kind**", *(f"**{p.memory_bound_share:.1%}**" for p in profiles)])
    rows += _shares([profile.by_kind() for profile in profiles], MEMORY_KINDS, "· ")
    rows.append(["bound by arithmetic, by kind", *(f"{p.compute_bound_share:.1%}" for p in profiles)])
    rows += _shares([profile.by_kind() for profile in profiles], COMPUTE_KINDS, "· ")
    rows += _shares([profile.by_kind() for profile in profiles], (OTHER,), "kind: ")
    below = [below_ridge_share(profile, analysis.machine) for profile in profiles]
    rows.append(["bound by memory, by roofline", *(f"{share:.1%}" for share in below)])
    rows += _shares([profile.by_role() for profile in profiles], ROLES, "module: ")
    rows.append(["ms a batch", *(f"{1000 * p.plain_s:.2f}" for p in profiles)])
    rows.append(["ms with profiler", *(f"{1000 * p.profiled_s:.2f} ({p.overhead:+.0%})" for p in profiles)])
    rows.append(["ms in operators", *(f"{1000 * p.operators_s:.2f}" for p in profiles)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _shares(by_profile: list[dict[str, float]], keys: tuple[str, ...], prefix: str) -> list[list[str]]:
    """A row for each key that has a share anywhere; `other` always."""
    return [
        [f"{prefix}{key}", *(f"{shares[key]:.1%}" for shares in by_profile)]
        for key in keys
        if key == OTHER or any(shares[key] >= 0.0005 for shares in by_profile)
    ]


def machine_line(machine: Machine) -> str:
    """The roof in one line."""
    return (
        f"roof with {machine.threads} thread{'s' if machine.threads > 1 else ''}: "
        f"{machine.flops_per_s / 1e9:.0f} GFLOP/s in large products, {machine.bytes_per_s / 1e9:.1f} GB/s "
        f"to memory, {machine.cache_bytes_per_s / 1e9:.1f} GB/s in cache; ridge {machine.ridge:.1f} FLOP/byte"
    )


def draw(analysis: RuntimeAnalysis, path: Path) -> None:
    """Shares by kind and by part of the model, and a roofline for each engine.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = require("matplotlib.pyplot", "bench")
    count = len(analysis.profiles)
    figure = plt.figure(figsize=(max(11.0, 4.6 * count), 9.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    kinds, parts = upper.subplots(1, 2, width_ratios=(1, 1.5))
    _draw_kinds(kinds, analysis.profiles)
    _draw_parts(parts, analysis.profiles)
    rooflines = lower.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
    for axis, profile in zip(rooflines, analysis.profiles, strict=True):
        _draw_roofline(axis, profile, analysis.machine)
    rooflines[0].set_ylabel("GFLOP/s")
    height, width = analysis.image_size
    threads = analysis.machine.threads
    figure.suptitle(
        f"{analysis.model}, {analysis.precision}, {height}x{width}, batch {analysis.batch_size}, "
        f"{threads} thread{'s' if threads > 1 else ''}"
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def _draw_kinds(axis: Any, profiles: tuple[Profile, ...]) -> None:
    """A bar an engine; from the bottom what arithmetic bounds, then what memory bounds."""
    bottoms = np.zeros(len(profiles))
    for kind in KINDS:
        shares = np.array([100 * profile.by_kind()[kind] for profile in profiles])
        if kind != OTHER or shares.any():
            axis.bar(range(len(profiles)), shares, BAR_WIDTH, bottoms, color=COLOURS[kind], label=kind)
            _label_parts(axis, range(len(profiles)), shares, bottoms, kind)
        bottoms += shares
    for index, profile in enumerate(profiles):
        axis.text(index, 101, f"{profile.memory_bound_share:.0%} memory", ha="center", fontsize=8)
    _finish_bars(axis, [f"{p.engine}\n{1000 * p.plain_s:.1f} ms" for p in profiles], "by kind of operator")
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], fontsize=7.5, loc="center left", bbox_to_anchor=(1, 0.5))


def _label_parts(axis: Any, places: Any, shares: Any, bottoms: Any, text: str) -> None:
    for place_, share, bottom in zip(places, shares, bottoms, strict=True):
        if share >= 100 * LABELLED_SHARE:
            dark = text in (*COMPUTE_KINDS[:2], *MEMORY_KINDS[:3])
            colour = "white" if dark else "black"
            axis.text(place_, bottom + share / 2, text, ha="center", va="center", fontsize=7, color=colour)


def _draw_parts(axis: Any, profiles: tuple[Profile, ...]) -> None:
    """For each part of the model a bar an engine, its share split into classes."""
    width = 0.8 / len(profiles)
    for index, profile in enumerate(profiles):
        table = profile.by_role_and_kind()
        bottoms = np.zeros(len(ROLES))
        places = np.arange(len(ROLES)) + (index - (len(profiles) - 1) / 2) * width
        for name, colour in CLASS_COLOURS.items():
            shares = [
                100 * sum(share for kind, share in table[role].items() if class_of(kind) == name)
                for role in ROLES
            ]
            label = CLASS_LABELS[name] if index == 0 else None
            axis.bar(places, shares, 0.92 * width, bottoms, color=colour, label=label)
            bottoms += shares
        for place_, top in zip(places, bottoms, strict=True):
            axis.text(place_, top + 0.8, profile.engine, ha="center", va="bottom", rotation=90, fontsize=7)
    axis.set_ylim(top=1.22 * axis.get_ylim()[1])
    axis.legend(fontsize=8, loc="upper right")
    axis.set_xticks(range(len(ROLES)), ROLES)
    axis.set_title("by part of the model", fontsize=10)
    axis.set_ylabel("% of the time in operators")
    axis.spines[["top", "right"]].set_visible(False)


def _finish_bars(axis: Any, names: list[str], title: str) -> None:
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(0, 107)
    axis.set_ylabel("% of the time in operators")
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_roofline(axis: Any, profile: Profile, machine: Machine) -> None:
    """An operator a point, as large as its share of the time; what does no arithmetic is said in words."""
    placements = [place(operator, machine) for operator in profile.operators]
    rows = [
        (where.intensity, where.flops / operator.seconds / 1e9, operator.seconds, class_of(operator.kind))
        for operator, where in zip(profile.operators, placements, strict=True)
        if where.intensity and operator.seconds
    ]
    for name, colour in CLASS_COLOURS.items():
        points = [row[:3] for row in rows if row[3] == name]
        if points:
            x, y, seconds = map(np.array, zip(*points, strict=True))
            sizes = 6 + 1500 * seconds / profile.operators_s
            axis.scatter(x, y, sizes, color=colour, alpha=0.55, lw=0, label=CLASS_LABELS[name])
    intensity = np.geomspace(0.03, 1000, 200)
    peak = machine.flops_per_s / 1e9
    for rate, style, label in (
        (machine.bytes_per_s, "-", "roof: memory"),
        (machine.cache_bytes_per_s, ":", "roof: cache"),
    ):
        axis.plot(
            intensity, np.minimum(peak, intensity * rate / 1e9), style, color="black", lw=1, label=label
        )
    axis.axvline(machine.ridge, color="black", lw=0.5, alpha=0.5)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("FLOP a byte")
    still = profile.operators_s - sum(row[2] for row in rows)
    axis.set_title(
        f"{profile.engine}: {below_ridge_share(profile, machine):.0%} left of the ridge,\n"
        f"{still / profile.operators_s:.0%} without arithmetic (not drawn)",
        fontsize=9,
    )
    axis.grid(alpha=0.25)
    legend = axis.legend(fontsize=7, loc="lower right")
    for points in legend.legend_handles[: len(legend.legend_handles) - 2]:
        points.set_sizes([LEGEND_SIZE])  # not as large as the largest operator
