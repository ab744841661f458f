"""Signals: which are a wish to stop, and which end the process."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vitesse.train import ray, stopping
from vitesse.train.stopping import StopRequestedError, StopSignals, is_lost_connection


def test_a_signal_is_remembered_and_its_echo_is_nothing_new() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        signals.check()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        with pytest.raises(StopRequestedError, match="SIGTERM"):
            signals.check()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as Python sets it up, also where a shell started the tests in the background, deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_wish_ends_the_process_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    with StopSignals() as signals, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        now[0] += stopping.SAME_WISH_SECONDS + 1
        signal.raise_signal(signal.SIGINT)
    assert signals.received == "SIGINT"


def test_a_lost_connection_is_told_from_other_errors() -> None:
    assert is_lost_connection(
        RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]")
    )
    assert not is_lost_connection(RuntimeError("shape '[2]' is invalid for input of size 3"))


def test_a_file_stops_as_the_signal_it_names(tmp_path: Path) -> None:
    signals = StopSignals(tmp_path / "stop")
    signals.check()
    (tmp_path / "stop").write_text("SIGTERM")
    with pytest.raises(StopRequestedError, match="SIGTERM"):
        signals.check()


def test_the_driver_of_workers_passes_a_signal_on_and_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, told = tmp_path / "stop", StopSignals(tmp_path / "stop")

    def worker() -> dict[str, Any]:
        while not told.received:
            time.sleep(0.01)
        return {"stopped by": told.received}

    monkeypatch.setattr(ray, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(ray, "SAVE_SECONDS", 1.0)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert ray._wait_for(worker, signals, stop) == {"stopped by": "SIGTERM"}
        with pytest.raises(StopRequestedError, match="SIGTERM"):
            ray._wait_for(lambda: time.sleep(3) or {}, signals, stop)
