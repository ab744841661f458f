"""Progress of long work on stderr: a bar on a terminal, a plain line now and then elsewhere.

Of several processes that train together only the first speaks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, Union

T = TypeVar("T")

PLAIN_SECONDS = 30.0


Description = Union[str, Callable[[], str]]  # noqa: UP007


def track(items: Iterable[T], description: Description, total: int | None = None) -> Iterator[T]:
    """Pass `items` on while showing how many of `total` are done; a description may change on the way."""
    if not is_first_process():
        return iter(items)
    return _bar(items, description, total) if sys.stderr.isatty() else _lines(items, description, total)


def say(message: str) -> None:
    """One line for a person, on stderr, so that stdout stays machine-readable."""
    if is_first_process():
        print(message, file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Whether this process speaks for all that train together."""
    return not other_rank()


def other_rank() -> str:
    """The number of this process among those that train together, and nothing in the first."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else rank


def _bar(items: Iterable[T], description: Description, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # rich would send what is printed to stdout meanwhile to its own console: only where both are the terminal
    shared = sys.stdout.isatty()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=shared) as progress:
        task = progress.add_task(_text(description), total=total)
        for item in items:
            yield item
            progress.update(task, advance=1, description=_text(description))


def _lines(items: Iterable[T], description: Description, total: int | None) -> Iterator[T]:
    of_total = f"/{total}" if total is not None else ""
    said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - said > PLAIN_SECONDS:
            said = time.monotonic()
            say(f"{_text(description)}: {done}{of_total}")


def _text(description: Description) -> str:
    return description if isinstance(description, str) else description()
