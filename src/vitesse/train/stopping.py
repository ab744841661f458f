"""SIGTERM and SIGINT as a wish to stop, granted where a run can be saved; and processes that were lost."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from vitesse.errors import TrainingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitesse.runtime.engines import Engine


SAME_WISH_SECONDS = 3.0
"""So long after a signal others are its echo: a launcher passes on what the whole group got."""


class StopRequestedError(Exception):
    """Raised out of long work between steps, such as an evaluation, after a signal."""


class LostProcessError(TrainingError):
    """Another process of the run ended, so that this one cannot go on."""


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether torch says that another process cannot be reached."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo/" in str(error) or "by peer" in str(error)


class StopSignals:
    """While entered, SIGTERM and SIGINT are remembered; one that comes later again ends the process as ever.

    Outside the main thread signals cannot be caught, and only `file` is looked for.

    Args:
        file: once it is there, the signal that it names has come.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._received: str | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def received(self) -> str | None:
        """The signal's name, or None."""
        if self._received is None and self.file is not None and self.file.exists():
            self._received = self.file.read_text()
        return self._received

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received, self._since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._since > SAME_WISH_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def check(self) -> None:
        """
        Raises:
            StopRequestedError: a signal has come.
        """
        if received := self.received:
            raise StopRequestedError(received)


class StoppableEngine:
    """An engine that looks for a signal before every batch."""

    def __init__(self, engine: Engine, signals: StopSignals) -> None:
        self.engine, self.signals, self.name = engine, signals, engine.name

    def run(self, batch_BCHW: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """
        Raises:
            StopRequestedError: a signal has come.
        """
        self.signals.check()
        return self.engine.run(batch_BCHW)
