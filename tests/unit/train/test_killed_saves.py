"""A process killed at any moment of a save leaves the checkpoint before it or the one after, whole."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vitesse.train import TrainResult
from vitesse.train.checkpoint import read_progress
from vitesse.train.loop import Trainer
from vitesse.weights.files import read_safetensors

KILLS = 20


def save_and_die(trainer: Trainer, seconds: float) -> int:
    """Let a fork of this process save and be killed after some time; how it ended: a signal, or 0."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends a process without a word to it
        signal.setitimer(signal.ITIMER_REAL, seconds)
        trainer._save()
        os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Those of a pool do not live on in a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(
    one_thread: None,
    colours: Path,
    tmp_path: Path,
    run: Callable[..., TrainResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, ends = Trainer._train_step, []
    last = tmp_path / "run" / "checkpoints" / "last"
    generator = random.Random(0)

    def struck(trainer: Trainer, *arguments: Any) -> Any:
        result = step(trainer, *arguments)
        if trainer.progress.step != 3:
            return result
        started = time.perf_counter()
        trainer._save()
        seconds = time.perf_counter() - started
        for _ in range(KILLS):
            before = read_progress(last / "state.safetensors")
            assert before is not None
            ends.append(save_and_die(trainer, generator.uniform(0.02, 1.2) * seconds))
            if ends[-1] != signal.SIGALRM:
                seconds *= 0.7  # the one that was timed may have been slow
            assert read_progress(last / "state.safetensors") == before
            read_safetensors(last / "model.safetensors")
        return result

    monkeypatch.setattr(Trainer, "_train_step", struck)
    run(colours, tmp_path / "run", epochs=1)
    assert ends.count(signal.SIGALRM) > KILLS // 2, "most saves were cut short"
