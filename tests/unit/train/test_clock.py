"""Phases of steps: whatever is read in between, a step's phases are no longer than the step."""

from __future__ import annotations

import time

import pytest
import torch

from vitesse.train.clock import PHASES, StepClock


def step(clock: StepClock, parts: int = 1) -> None:
    for _ in range(parts):
        clock.start()
        for phase in PHASES[:-1]:
            time.sleep(0.002)
            clock.done(phase)
    clock.done(PHASES[-1])


@pytest.mark.parametrize("parts", [1, 3])
def test_phases_are_means_over_the_steps_since_the_last_reading(parts: int) -> None:
    clock = StepClock(torch.device("cpu"))
    started = time.perf_counter()
    for _ in range(4):
        step(clock, parts)
    mean = (time.perf_counter() - started) / 4
    read = clock.read()
    assert list(read) == [f"{phase}_s" for phase in PHASES]
    assert 0.006 * parts <= sum(read.values()) <= mean
    step(clock)
    assert 0.006 <= sum(clock.read().values()) < 2 * mean


def test_time_between_steps_belongs_to_no_phase() -> None:
    clock = StepClock(torch.device("cpu"))
    step(clock)
    time.sleep(0.2)
    step(clock)
    assert sum(clock.read().values()) < 0.1
