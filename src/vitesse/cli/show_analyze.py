"""What `vitesse analyze` prints and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.progress import say

if TYPE_CHECKING:
    from vitesse.analyze import RuntimeAnalysis
    from vitesse.analyze.heads import HeadsAnalysis


def show_runtime(analysis: RuntimeAnalysis, *, out: Path | None, as_json: bool) -> int:
    """The table or JSON lines, and with `out` the record with all operators, table and picture."""
    from vitesse.analyze.report import machine_line, markdown

    if as_json:
        for record in analysis.records():
            print(json.dumps(record))
    else:
        print(markdown(analysis), end="")
        say(machine_line(analysis.machine))
    for remark in analysis.remarks():
        say(remark)
    if out is not None:
        _write_runtime(analysis, out)
    return 0


def _write_runtime(analysis: RuntimeAnalysis, out: Path) -> None:
    from vitesse.analyze.report import draw, markdown
    from vitesse.files import write_atomically
    from vitesse.provenance import provenance

    record = {"environment": provenance(), "analyses": analysis.records(with_operators=True)}
    write_atomically(out / "analysis.json", json.dumps(record, indent=1).encode())
    write_atomically(out / "analysis.md", markdown(analysis).encode())
    draw(analysis, out / "analysis.png")
    say(f"written to {out}: analysis.json, analysis.md, analysis.png")


def show_heads(analyses: Sequence[HeadsAnalysis], *, out: Path | None, as_json: bool) -> int:
    """The tables or JSON lines, and with `out` the record, the tables and the picture."""
    from vitesse.analyze.heads_report import markdown

    if as_json:
        for analysis in analyses:
            print(json.dumps(analysis.record()))
        for remark in (remark for analysis in analyses for remark in analysis.remarks()):
            say(remark)
    else:
        print(markdown(analyses), end="")
    if out is not None:
        _write_heads(analyses, out)
    return 0


def _write_heads(analyses: Sequence[HeadsAnalysis], out: Path) -> None:
    from vitesse.analyze.heads_report import draw, markdown
    from vitesse.files import write_atomically
    from vitesse.provenance import provenance

    record = {"environment": provenance(), "analyses": [analysis.record() for analysis in analyses]}
    write_atomically(out / "heads.json", json.dumps(record, indent=1).encode())
    write_atomically(out / "heads.md", markdown(analyses).encode())
    draw(analyses, out / "heads.png")
    say(f"written to {out}: heads.json, heads.md, heads.png")
