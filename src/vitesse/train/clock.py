"""Where the time of a step goes, on the CPU's clock or the GPU's."""

from __future__ import annotations

import time

import torch

LAST_PHASE = "update"
PHASES = ("data", "forward", "backward", LAST_PHASE)


class StepClock:
    """Seconds spent in each phase of the steps since the last reading.

    On a GPU the marks are events in its queue, so that nothing waits for them before they are read.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self) -> None:
        """The next phase begins now."""
        self._mark("")

    def done(self, phase: str) -> None:
        """A phase ends now, and the next begins."""
        self._mark(phase)

    def read(self) -> dict[str, float]:
        """Mean seconds a step of each phase, `{phase}_s`, of the steps since the last reading."""
        steps = max(1, sum(phase == LAST_PHASE for phase, _ in self._marks))
        sums = dict.fromkeys(PHASES, 0.0)
        if self.on_gpu:
            torch.cuda.synchronize()
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            if phase:
                sums[phase] += _between(before, after)
        self._marks.clear()
        return {f"{phase}_s": seconds / steps for phase, seconds in sums.items()}

    def _mark(self, phase: str) -> None:
        if not self.on_gpu:
            self._marks.append((phase, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append((phase, event))


def _between(before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float:
    if isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
        milliseconds: float = before.elapsed_time(after)
        return milliseconds / 1000
    assert isinstance(before, float)
    assert isinstance(after, float)
    return after - before
