"""Progress of long work on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

PLAIN_SECONDS = 30.0


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Pass `items` on while showing how many of `total` are done."""
    return _bar(items, description, total) if sys.stderr.isatty() else _lines(items, description, total)


def say(message: str) -> None:
    """One line for a person, on stderr, so that stdout stays machine-readable."""
    print(message, file=sys.stderr, flush=True)


def _bar(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # rich would send what is printed to stdout meanwhile to its own console: only where both are the terminal
    shared = sys.stdout.isatty()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=shared) as progress:
        yield from progress.track(items, total=total, description=description)


def _lines(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    of_total = f"/{total}" if total is not None else ""
    said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - said > PLAIN_SECONDS:
            said = time.monotonic()
            say(f"{description}: {done}{of_total}")
