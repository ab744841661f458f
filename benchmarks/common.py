"""What every benchmark records: the environment, raw samples, medians. See METHOD.md."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import vitesse
from vitesse.bench.measure import Timing
from vitesse.files import write_atomically
from vitesse.provenance import provenance

RECORDS = Path(__file__).parent / "records"
DATA = Path(os.environ.get("VITESSE_DATA", Path(__file__).parents[2] / "shared" / "data"))
IN_TIMM = {f"vit_{size}_patch16": f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")}
"""timm's names of our models, where they differ."""
WEIGHTS = Path("checkpoints") / "last" / "model.safetensors"
"""Of a run of `vitesse.train`."""


def environment() -> dict[str, Any]:
    """Machine, versions, commit and UTC time, the command as typed, and how busy the machine was."""
    return {**provenance(), "command": " ".join(sys.argv), "load_average": os.getloadavg()}


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile, smallest and how many."""
    ordered = sorted(samples)
    return {
        "median": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "min": ordered[0],
        "n": len(ordered),
    }


def write_record(name: str, content: Mapping[str, Any], out: Path | None = None) -> Path:
    """Write `records/NAME.json` (or `out`) with the environment and give its path."""
    path = out or RECORDS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"environment": environment(), **content}, indent=1).encode() + b"\n")
    return path


def rounded(values: Iterable[float], digits: int = 4) -> list[float]:
    """Raw samples short enough to keep."""
    return [round(value, digits) for value in values]


def table(rows: Sequence[Sequence[object]]) -> str:
    """Rows as text in columns; the first row is the heading."""
    text = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in text) for column in range(len(text[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in text
    )


def spread(shares: Sequence[float]) -> str:
    """The lowest and the highest of some shares, in per cent; nothing of a single one."""
    if len(shares) == 1:
        return ""
    return f"{100 * min(shares):.1f} to {100 * max(shares):.1f}"


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """Rows as a Markdown table; the first row is the heading."""
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of log(value) over log(size)."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def trained(name: str, run: Path, recipe: str, overrides: Mapping[str, Any]) -> Path:
    """The checkpoint of a model trained on CIFAR-100 in the folder `run`, made now or found finished.

    A run with other settings is made anew.
    """
    finished, settings = run / "finished.json", {"recipe": recipe, **overrides}
    if finished.is_file() and json.loads(finished.read_text()) != settings:
        shutil.rmtree(run)
    if not finished.is_file():
        vitesse.train(DATA / "cifar100", model=name, out=run, recipe=recipe, overrides=overrides)
        write_atomically(finished, json.dumps(settings).encode())
    return run / WEIGHTS


def fastest(timings: Sequence[Timing], name: str, batch: int) -> Timing:
    """Of a model's timings with a batch size, that on its fastest engine."""
    mine = [t for t in timings if t.contender.model == name and t.batch_size == batch and not t.error]
    return min(mine, key=lambda timing: timing.median_s)
