"""What `vitesse bench` prints and writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.progress import say

if TYPE_CHECKING:
    from vitesse.bench import Goal, Timing


def show_bench(
    timings: Sequence[Timing],
    limits: Mapping[str, float],
    *,
    goal: Goal | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """The table or JSON lines, the answer to the goal, and with `out` the record, table and picture."""
    from vitesse.bench.report import markdown

    if as_json:
        for timing in timings:
            print(json.dumps({k: v for k, v in timing.to_dict().items() if not k.startswith("samples")}))
    else:
        print(markdown(timings, limits), end="")
        rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in limits.items())
        say(f"limits of one large matrix product, 10^9 multiply-accumulates a second: {rates}")
    if goal is not None:
        say(_answer(goal, timings))
    if out is not None:
        _write(timings, limits, out)
    return 0 if any(timing.samples_s for timing in timings) else 1


def _answer(goal: Goal, timings: Sequence[Timing]) -> str:
    found = goal.answer(timings)
    if found is None:
        return "no contender meets the goal"
    who = found.contender
    return (
        f"take {who.model} in {who.precision} on {who.engine}: {1000 * found.median_s:.2f} ms a picture "
        f"at batch {found.batch_size}"
        + ("" if who.top1 is None else f", top-1 {who.top1:.1%} on {who.top1_on}")
    )


def _write(timings: Sequence[Timing], limits: Mapping[str, float], out: Path) -> None:
    from vitesse.bench.report import draw_front, markdown
    from vitesse.files import write_atomically
    from vitesse.provenance import provenance

    record = {
        "environment": provenance(),
        "limits_macs_per_s": limits,
        "timings": [t.to_dict() for t in timings],
    }
    written = ["bench.json", "bench.md"]
    write_atomically(out / "bench.json", json.dumps(record, indent=1).encode())
    write_atomically(out / "bench.md", markdown(timings, limits).encode())
    if any(t.samples_s and t.contender.top1 is not None for t in timings):
        draw_front(timings, out / "bench.png")
        written.append("bench.png")
    say(f"written to {out}: {', '.join(written)}")
