"""What `vitesse search` prints and writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vitesse.progress import say

if TYPE_CHECKING:
    from vitesse.search import SearchResult


def show_search(result: SearchResult, *, as_json: bool) -> int:
    """The table or one JSON line a trial, and last by how much the best beats the hand-made model."""
    from vitesse.search.report import markdown, write_result

    written = write_result(result)
    if as_json:
        record = result.to_dict()
        for trial in record["trials"]:
            print(json.dumps(trial))
        print(json.dumps({key: value for key, value in record.items() if key != "trials"}))
    else:
        print(markdown(result), end="")
    say(f"written to {result.folder}: {', '.join(written)}")
    say(result.verdict.explain())
    return 0
