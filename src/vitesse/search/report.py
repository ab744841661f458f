"""What a search leaves behind: specs to load, a record of every trial, a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitesse.errors import require
from vitesse.files import atomic_path, write_atomically
from vitesse.models.variants import write_spec
from vitesse.provenance import provenance
from vitesse.search.cost import cost_of
from vitesse.search.result import SearchResult
from vitesse.search.trials import Trial
from vitesse.spec import ModelSpec

OURS, THEIRS, FRONT, FAINT = "#0b7a75", "#8a6d3b", "#c44536", "#b9bec6"
KEYS = ("embed_dim", "depths", "num_heads", "partial_dim", "key_dim", "kernels", "window_size")


def write_result(result: SearchResult) -> list[str]:
    """`front/*.json`, `search.json`, `search.md` and `search.png` in the search's folder; gives their names.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    folder = result.folder
    front = {f"trial_{number:04}.json": result.trials[number].spec for number in result.front}
    front["best.json"] = result.best.spec
    for stale in (folder / "front").glob("*.json"):
        if stale.name not in front:
            stale.unlink()
    for name, spec in front.items():
        write_spec(spec, folder / "front" / name)
    record = {"environment": provenance(), **result.to_dict()}
    write_atomically(folder / "search.json", json.dumps(record, indent=1).encode() + b"\n")
    write_atomically(folder / "search.md", markdown(result).encode())
    draw(result, folder / "search.png")
    return ["front/best.json", "search.json", "search.md", "search.png"]


def markdown(result: SearchResult) -> str:
    """The candidates of the front and the hand-made models as a table, and what it all comes to."""
    lines = [
        f"| trial | model | latency, {result.reference['name']} = 1 | top-1 | MMACs | state |",
        "|---|---|---|---|---|---|",
    ]
    shown = [t for t in result.trials if t.hand_made or t.number in result.front]
    for trial in sorted(shown, key=lambda trial: trial.measured or 0.0):
        cells = [trial.number, describe(trial.spec), _ratio(trial.measured), _share(trial.top1)]
        state = "front" if trial.number in result.front else trial.state
        cells += [f"{cost_of(trial.spec).macs / 1e6:.1f}", state]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    counts = ", ".join(
        f"{sum(trial.state == state for trial in result.trials)} {state}"
        for state in ("trained", "stopped", "too slow", "failed")
    )
    lines += ["", f"Candidates: {counts}. Latency predictor: {result.errors.explain()}.", ""]
    return "\n".join([*lines, _sentence(result.verdict.explain())]) + "\n"


def describe(spec: ModelSpec) -> str:
    """A hand-made model's name, or what a variant consists of."""
    size = f"at {spec.image_size[0]} px"
    if not spec.variant:
        return f"{spec.name} {size}"
    values = (f"{key} {_plain(spec.variant[key])}" for key in KEYS if spec.variant.get(key) is not None)
    return f"{'; '.join(values)}; {size}"


def draw(result: SearchResult, path: Path) -> None:
    """Accuracy against latency: candidates, those stopped early, hand-made models, the front and the bound.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = require("matplotlib.pyplot", "search")
    figure, axis = plt.subplots(figsize=(8, 5.2), layout="constrained")
    known = [trial for trial in result.trials if trial.measured is not None and trial.top1 is not None]
    searched = [trial for trial in known if not trial.hand_made]
    _scatter(
        axis,
        [t for t in searched if t.state == "stopped"],
        "stopped early, as they were then",
        color=FAINT,
        marker="x",
    )
    _scatter(axis, [t for t in searched if t.state == "trained"], "found", color=OURS, marker="o")
    hand_made = [trial for trial in known if trial.hand_made]
    _scatter(axis, hand_made, "hand-made", color=THEIRS, marker="s", s=64, zorder=4)
    points = [_point(result.trials[number]) for number in result.front]
    if points:
        steps = {"drawstyle": "steps-post", "label": "Pareto front"}
        axis.plot(*zip(*points, strict=True), color=FRONT, lw=1.2, zorder=1, **steps)
    axis.axvline(result.bound, color="#444", lw=1, ls="--", label=f"bound: {result.settings['max_latency']}")
    best = result.best
    for place, trial in enumerate(sorted(hand_made, key=_point)):  # neighbours below and above their points
        name = f"best: {trial.spec.name}" if trial.number == best.number else trial.spec.name
        offset, side = ((0, 9), "center") if place % 2 else ((-8, -15), "right")
        _name(axis, trial, name, THEIRS, offset, side)
    if not best.hand_made:
        _name(axis, best, f"best: trial {best.number}", OURS, (0, 9), "center")
    axis.set_xlabel(f"latency on {_where(result)} ({result.reference['name']} = 1)")
    axis.set_ylabel("top-1 after the short training (%)")
    limit = result.settings["max_latency"]
    named = limit in (trial.spec.name for trial in hand_made)
    axis.set_title(
        f"{result.settings['family']}: no slower than {limit}"
        if named
        else f"{result.settings['family']} within {limit}"
    )
    axis.margins(x=0.08, y=0.12)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8.5)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def _scatter(axis: Any, trials: Sequence[Trial], label: str, **style: Any) -> None:
    if trials:
        axis.scatter(*zip(*map(_point, trials), strict=True), label=label, **{"s": 36, "zorder": 3, **style})


def _point(trial: Trial) -> tuple[float, float]:
    return trial.measured or 0.0, 100 * (trial.top1 or 0.0)


def _name(axis: Any, trial: Trial, text: str, colour: str, offset: tuple[int, int], side: str) -> None:
    halo = require("matplotlib.patheffects", "search").withStroke(linewidth=3, foreground="white")
    axis.annotate(
        text,
        _point(trial),
        xytext=offset,
        textcoords="offset points",
        ha=side,
        fontsize=8.5,
        color=colour,
        path_effects=[halo],
        zorder=5,
    )


def _where(result: SearchResult) -> str:
    asked = result.settings
    threads = f"{asked['threads']} thread{'s' if asked['threads'] > 1 else ''}"
    return f"{asked['engine']}, batch {asked['batch_size']}, {threads}"


def _plain(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
