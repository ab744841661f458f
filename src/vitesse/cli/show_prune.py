"""What `vitesse analyze importance` and `vitesse prune` print and write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.progress import say

if TYPE_CHECKING:
    from vitesse.analyze.importance import ImportanceAnalysis
    from vitesse.prune import Pruned


def show_importance(analysis: ImportanceAnalysis, cut: float, *, out: Path | None, as_json: bool) -> int:
    """The table or JSON lines, and with `out` the record with all channels, table and picture."""
    from vitesse.analyze.importance_report import markdown

    if as_json:
        for record in analysis.records(cut):
            print(json.dumps(record))
    else:
        print(markdown(analysis, cut), end="")
    labels = "labels of its own" if analysis.labels == "self" else "labels of the data"
    refused = f"; {analysis.refused} could not be read and are left out" if analysis.refused else ""
    say(f"{analysis.model}: {analysis.pictures} pictures, {labels}{refused}")
    if out is not None:
        _write_importance(analysis, cut, out)
    return 0


def _write_importance(analysis: ImportanceAnalysis, cut: float, out: Path) -> None:
    from vitesse.analyze.importance_report import draw, markdown
    from vitesse.files import write_atomically
    from vitesse.provenance import provenance

    record = {"environment": provenance(), "groups": analysis.records(cut, with_channels=True)}
    write_atomically(out / "importance.json", json.dumps(record, indent=1).encode())
    write_atomically(out / "importance.md", markdown(analysis, cut).encode())
    draw(analysis, cut, out / "importance.png")
    say(f"written to {out}: importance.json, importance.md, importance.png")


def show_pruned(pruned: Pruned, *, as_json: bool) -> int:
    """Sizes and accuracy before, after and fine-tuned."""
    if as_json:
        print(json.dumps(pruned.to_dict()))
    else:
        print(f"{'':12}{'parameters':>12}{'MACs':>14}{'top-1 %':>9}")
        rows = {"before": pruned.before, "pruned": pruned.after, "fine-tuned": pruned.tuned}
        for name, row in rows.items():
            if row is not None:
                print(f"{name:12}{row.params:12,}{row.macs:14,}{100 * row.top1:9.2f}")
    say(f"importance of {pruned.pictures} pictures, accuracy on {pruned.before.images}")
    files = [pruned.checkpoint, pruned.spec_file, pruned.tuned_checkpoint]
    say(f"written: {', '.join(str(path) for path in files if path is not None)}")
    return 0
