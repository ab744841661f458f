"""Several processes as threads: what one is told or fails at, all find out, and none waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, get_ident
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import vitesse.train.teacher
from vitesse.data.sources import Source, open_source
from vitesse.errors import DataError, TrainingError, VitesseError
from vitesse.models import create_model
from vitesse.spec import PreprocessSpec
from vitesse.train.loop import Trainer
from vitesse.train.recipe import Recipe
from vitesse.train.stopping import LostProcessError, StopRequestedError, StopSignals
from vitesse.train.teacher import Teacher, cached_logits
from vitesse.train.together import from_all

WORLD, PATIENCE = 3, 5
PREPROCESS = PreprocessSpec(image_size=(16, 16))
Processes = Callable[[Callable[[Any], Any]], list[Future[Any]]]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    """A function that calls another with the accelerator of each of three processes, and waits for them."""
    said: dict[int, Any] = {}
    meeting = Barrier(WORLD, timeout=PATIENCE)

    def run(work: Callable[[Any], Any]) -> list[Future[Any]]:
        def gather(mine: list[Any]) -> list[Any]:
            said[ranks.index(get_ident())] = mine
            meeting.wait()
            everything = [item for rank in range(WORLD) for item in said[rank]]
            meeting.wait()
            return everything

        def process(rank: int) -> Any:
            ranks[rank] = get_ident()
            meeting.wait()
            return work(SimpleNamespace(process_index=rank, num_processes=WORLD, is_main_process=not rank))

        monkeypatch.setattr("vitesse.train.together.gather_object", gather)
        ranks = [0] * WORLD
        with ThreadPoolExecutor(WORLD) as pool:
            return [pool.submit(process, rank) for rank in range(WORLD)]

    return run


def failing(rank: int, error: Exception) -> Callable[[Any], Any]:
    def work(accelerator: Any) -> Any:
        def fail() -> int:
            if accelerator.process_index == rank:
                raise error
            return int(accelerator.process_index)

        return from_all(accelerator, fail)

    return work


def test_what_all_give_comes_in_their_order(processes: Processes) -> None:
    ended = processes(lambda accelerator: from_all(accelerator, lambda: accelerator.process_index))
    assert [process.result() for process in ended] == [[0, 1, 2]] * WORLD


@pytest.mark.parametrize("rank", range(WORLD))
@pytest.mark.parametrize(
    ("error", "elsewhere", "message"),
    [
        (StopRequestedError("SIGTERM"), StopRequestedError, "another process"),
        (DataError("no picture"), DataError, "no picture"),
        (MemoryError("too few"), LostProcessError, "another process failed: MemoryError: too few"),
    ],
)
def test_what_one_raises_is_raised_in_all(
    processes: Processes, rank: int, error: Exception, elsewhere: type[Exception], message: str
) -> None:
    raised = [process.exception() for process in processes(failing(rank, error))]
    assert raised.pop(rank) is error
    assert {type(other) for other in raised} == {elsewhere}
    assert {str(other) for other in raised} == {message}


def test_a_stop_comes_before_an_error_and_all_raise_the_same(processes: Processes) -> None:
    errors = {0: TrainingError("first"), 1: StopRequestedError("SIGINT"), 2: DataError("last")}

    def refuse(accelerator: Any) -> None:
        raise errors[accelerator.process_index]

    def raised() -> list[str]:
        ended = processes(lambda accelerator: from_all(accelerator, lambda: refuse(accelerator)))
        return [repr(process.exception()) for process in ended]

    others = "StopRequestedError('another process')"
    assert raised() == [others, "StopRequestedError('SIGINT')", others]
    errors[1] = VitesseError("second")
    assert raised() == ["TrainingError('first')"] * WORLD


@pytest.fixture
def teacher() -> Teacher:
    torch.manual_seed(3)
    return Teacher(create_model("vit_tiny_patch4", num_classes=3, image_size=16), PREPROCESS)


@pytest.fixture
def source(tmp_path: Path, paint_classes: Callable[..., Path]) -> Source:
    return open_source(paint_classes(tmp_path / "data", per_class=7, size=16))


def test_processes_ask_a_teacher_about_a_part_each(
    processes: Processes, teacher: Teacher, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, read = [], []
    save, look = vitesse.train.teacher.save_tensors, vitesse.train.teacher.load_tensor
    monkeypatch.setattr("vitesse.train.teacher.save_tensors", lambda *a: (written.append(a), save(*a))[1])
    monkeypatch.setattr("vitesse.train.teacher.load_tensor", lambda *a: (read.append(a), look(*a))[1])

    def ask(accelerator: Any, path: Path = tmp_path / "together.safetensors") -> torch.Tensor:
        return cached_logits(accelerator, teacher, source, PREPROCESS, path, 0)

    alone_NK = ask(SimpleNamespace(process_index=0, num_processes=1, is_main_process=True), tmp_path / "1")
    written.clear(), read.clear()
    for _ in range(2):
        for process in processes(ask):
            torch.testing.assert_close(process.result(), alone_NK, rtol=0.02, atol=0.02)
        assert len(written) == 1, "the first process writes, and only once"
        assert len(read) == len(source) == 21, "no picture is asked about twice"
    kept_NK = load_file(tmp_path / "together.safetensors")["logits_NK"]
    torch.testing.assert_close(kept_NK, alone_NK, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_stop_while_a_teacher_is_asked_is_told_to_all(
    processes: Processes, teacher: Teacher, source: Source, tmp_path: Path, rank: int
) -> None:
    path = tmp_path / "logits.safetensors"

    def ask(accelerator: Any) -> torch.Tensor:
        def check() -> None:
            if accelerator.process_index == rank:
                raise StopRequestedError("SIGTERM")

        return cached_logits(accelerator, teacher, source, PREPROCESS, path, 0, check)

    raised = [repr(process.exception()) for process in processes(ask)]
    assert raised.pop(rank) == "StopRequestedError('SIGTERM')"
    assert raised == ["StopRequestedError('another process')"] * 2
    assert not path.exists()


def test_a_stop_during_fresh_statistics_is_told_to_all(
    processes: Processes, source: Source, tmp_path: Path
) -> None:
    (tmp_path / "stop-1").write_text("SIGTERM")

    def refresh(accelerator: Any) -> nn.Module:
        signals = StopSignals(tmp_path / f"stop-{accelerator.process_index}")
        accelerator.device = torch.device("cpu")
        trainer = SimpleNamespace(
            accelerator=accelerator,
            signals=signals,
            recipe=Recipe(bn_images=4),
            facts=SimpleNamespace(train_source=source, preprocess=PREPROCESS),
            _weights=lambda: nn.BatchNorm2d(3),
        )
        return Trainer._model_to_keep(cast(Trainer, trainer))

    raised = [repr(process.exception()) for process in processes(refresh)]
    assert raised.pop(1) == "StopRequestedError('SIGTERM')"
    assert raised == ["StopRequestedError('another process')"] * 2
