"""The training loop: it learns, and a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from vitesse.data.sampler import Share
from vitesse.errors import ConfigError, DataError, StoppedError, TrainingError, WeightsError
from vitesse.models import create_model, load_checkpoint
from vitesse.models.multiplex import Multiplexer
from vitesse.train import TrainResult, loop, train
from vitesse.train.loop import Trainer
from vitesse.train.recipe import Recipe
from vitesse.train.recipe_files import load_recipe
from vitesse.train.setup import fitted
from vitesse.train.step import StepResult
from vitesse.train.tasks import TASKS
from vitesse.weights import save_weights

Run = Callable[..., TrainResult]
Weights = Callable[..., dict[str, torch.Tensor]]
Same = Callable[..., bool]


@pytest.mark.slow
def test_it_learns_colours_and_leaves_a_usable_checkpoint(colours: Path, tmp_path: Path, run: Run) -> None:
    plain = {"mixup": 0.0, "cutmix": 0.0, "drop_path_rate": 0.0, "rand_augment": "", "ema": 0.0}
    result = run(colours, tmp_path / "run", model="efficientvit_m0", epochs=8, **plain)
    assert result.scores.top1 == 1.0
    assert result.scores.images == 6
    model, metadata = load_checkpoint(result.checkpoint)
    assert metadata["class_names"] == ["blue", "green", "red"]
    assert metadata["provenance"]["recipe"]["epochs"] == 8
    assert model.spec.num_classes == 3
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "epoch"]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_run_stopped_within_an_epoch_ends_with_the_same_weights(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, weights: Weights, same: Same
) -> None:
    run(colours, tmp_path / "whole", model="efficientvit_m0")
    step = Trainer._train_step
    for stop_at in (4, 8):  # within the first and within the second epoch of six steps

        def stopping(self: Trainer, *arguments: Any, stop_at: int = stop_at) -> StepResult:
            if self.progress.step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *arguments)

        monkeypatch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(StoppedError, match=rf"SIGTERM at step {stop_at + 1}; run the same command"):
            run(colours, tmp_path / "stopped", model="efficientvit_m0")
        monkeypatch.setattr(Trainer, "_train_step", step)
    run(colours, tmp_path / "stopped", model="efficientvit_m0")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    run(colours, tmp_path / "other", model="efficientvit_m0", seed=1)
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "other"))


def test_a_finished_run_is_not_trained_again(
    colours: Path, tmp_path: Path, run: Run, weights: Weights, same: Same
) -> None:
    first = run(colours, tmp_path / "run", epochs=1)
    before = weights(tmp_path / "run")
    assert run(colours, tmp_path / "run", epochs=1).scores == first.scores
    assert same(before, weights(tmp_path / "run"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    colours: Path, tmp_path: Path, run: Run, weights: Weights
) -> None:
    run(colours, tmp_path / "good", epochs=1)
    poisoned = tmp_path / "init.safetensors"
    tensors = weights(tmp_path / "good")
    save_file(
        {key: value * 1e30 if value.is_floating_point() else value for key, value in tensors.items()},
        poisoned,
    )
    with pytest.raises(TrainingError, match=r"loss is nan.*at step 2, and 3 steps in a row were not finite"):
        run(colours, tmp_path / "bad", epochs=1, init=str(poisoned), max_bad_steps=3)
    assert not (tmp_path / "bad" / "checkpoints").exists()
    dumped = load_file(tmp_path / "bad" / "bad_batch_0.safetensors")
    assert dumped["images_BCHW"].shape == (8, 3, 32, 32)
    assert len(dumped["indices_B"]) == 8


def test_unreadable_pictures_are_counted_and_the_run_finishes(
    colours: Path, tmp_path: Path, run: Run
) -> None:
    for name in ("blue/003.png", "red/010.png"):
        (colours / name).write_bytes(b"no picture")
    result = run(colours, tmp_path / "run", epochs=2)
    assert {Path(name).name for name in result.refused} | {"003.png", "010.png"} == {"003.png", "010.png"}
    assert len(result.refused) + result.scores.refused == 2


def test_splits_of_equal_file_names_are_two_splits(
    tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    for split, size in (("train", 16), ("val", 24)):
        paint_classes(tmp_path / split, per_class=8, size=size)
    train_source, val_source = loop.splits(TASKS["classify"], tmp_path, load_recipe("finetune"))
    assert (len(train_source), len(val_source)) == (24, 24)
    assert {Path(source.name(0)).parts[-3] for source in (train_source, val_source)} == {"train", "val"}


def test_few_pictures_make_smaller_batches_than_asked_for() -> None:
    sizes = [
        fitted(Recipe(batch_size=64), count, Share()).batch_size for count in (10, 63, 64, 127, 255, 256)
    ]
    assert sizes == [2, 8, 16, 16, 32, 64]


def test_fewer_pictures_than_a_batch_make_smaller_batches(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Run
) -> None:
    run(colours, tmp_path / "run", batch_size=512, epochs=1)
    assert "54 training pictures: batch_size is lowered from 512 to 8" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["batch_size"] == 8


def test_splits_of_other_classes_are_refused(
    tmp_path: Path, paint_classes: Callable[..., Path], run: Run
) -> None:
    paint_classes(tmp_path / "data" / "train", per_class=4)
    paint_classes(tmp_path / "data" / "test", per_class=2)
    (tmp_path / "data" / "test" / "red").rename(tmp_path / "data" / "test" / "pink")
    with pytest.raises(DataError, match="different classes, such as pink, red"):
        run(tmp_path / "data", tmp_path / "run")


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("cache", [True, False])
def test_a_teacher_pulls_the_student_towards_itself(
    colours: Path, tmp_path: Path, kind: str, cache: bool, run: Run, weights: Weights, same: Same
) -> None:
    run(colours, tmp_path / "teacher", epochs=1)
    teacher = str(tmp_path / "teacher" / "checkpoints" / "last" / "model.safetensors")
    taught = {"teacher": teacher, "distill": kind, "teacher_cache": cache, "distill_alpha": 0.5, "epochs": 1}
    run(colours, tmp_path / "student", **taught)
    run(colours, tmp_path / "alone", epochs=1)
    assert not same(weights(tmp_path / "student"), weights(tmp_path / "alone"))
    assert (tmp_path / "student" / "teacher_logits.safetensors").exists() == cache


def test_a_cached_teacher_is_the_mean_of_both_views(colours: Path, tmp_path: Path, run: Run) -> None:
    from vitesse.data.sources import open_source
    from vitesse.runtime.imaging import load_tensor
    from vitesse.spec import PreprocessSpec

    run(colours, tmp_path / "teacher", epochs=1)
    teacher = tmp_path / "teacher" / "checkpoints" / "last" / "model.safetensors"
    run(colours, tmp_path / "student", epochs=1, teacher=str(teacher), teacher_cache=True)
    logits_NK = load_file(tmp_path / "student" / "teacher_logits.safetensors")["logits_NK"]
    model, _ = load_checkpoint(teacher)
    from vitesse.data.sources import hold_out

    source, _ = hold_out(open_source(colours), 0.1, 0)
    x_BCHW = torch.from_numpy(load_tensor(source.read(7), PreprocessSpec(image_size=(32, 32))))[None]
    with torch.no_grad():
        expected = (model.eval()(x_BCHW) + model(x_BCHW.flip(3))) / 2
    assert logits_NK.shape == (54, 3)
    torch.testing.assert_close(logits_NK[7:8], expected, rtol=0.05, atol=0.05)  # bfloat16


def test_a_teacher_of_other_classes_is_refused(colours: Path, tmp_path: Path, run: Run) -> None:
    run(colours, tmp_path / "teacher", epochs=1)
    teacher = str(tmp_path / "teacher" / "checkpoints" / "last" / "model.safetensors")
    (colours / "white").mkdir()
    for index in range(8):
        (colours / "white" / f"{index}.png").write_bytes((colours / "red" / "000.png").read_bytes())
    with pytest.raises(ConfigError, match="has 3 classes, expected 4"):
        run(colours, tmp_path / "student", epochs=1, teacher=teacher)
    with pytest.raises(ConfigError, match="timm:resnet18: has 1000 classes, expected 4"):
        run(colours, tmp_path / "student", epochs=1, teacher="timm:resnet18")


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_a_run_that_goes_on(
    colours: Path, tmp_path: Path, run: Run, weights: Weights, same: Same, tiny: dict[str, Any]
) -> None:
    """A run that saves after every step is killed again and again; each restart finds a whole checkpoint."""
    out = tmp_path / "run"
    settings = {**tiny, "save_minutes": 0.0, "epochs": 3}
    code = (
        "import torch; torch.set_num_threads(1)\n"  # sums in another order would differ in the last bit
        "from vitesse.train import train\n"
        f"train({str(colours)!r}, model='efficientvit_m0', out={str(out)!r}, overrides={settings!r})"
    )
    for kill in range(4):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        state, before = out / "checkpoints" / "last" / "state.safetensors", time.monotonic()
        known = state.stat().st_mtime_ns if state.exists() else None
        while process.poll() is None and time.monotonic() - before < 120:
            if state.exists() and state.stat().st_mtime_ns != known:
                break
            time.sleep(0.05)
        time.sleep(0.07 * kill)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    result = train(colours, model="efficientvit_m0", out=out, overrides=settings)
    assert result.checkpoint.exists()
    run(colours, tmp_path / "whole", model="efficientvit_m0", epochs=3)
    assert same(weights(out), weights(tmp_path / "whole"))


def test_a_multiplexed_model_meets_short_groups_and_warms_up(
    colours: Path, tmp_path: Path, monkeypatch: Any, tiny: dict[str, Any]
) -> None:
    calls: list[tuple[int, bool]] = []
    forward = Multiplexer.forward

    def seen(model: Multiplexer, x_BCHW: torch.Tensor, retrieve: bool = False) -> Any:
        if model.training:
            calls.append((len(x_BCHW), retrieve))
        return forward(model, x_BCHW, retrieve)

    monkeypatch.setattr(Multiplexer, "forward", seen)
    changes = {"epochs": 2, "retrieval_epochs": 1, "image_size": 16, "ema": 0.0, "short_groups": 0.5}
    overrides = {**tiny, **changes}
    train(colours, model="concatplexer_tiny_patch4_n4", out=tmp_path / "run", overrides=overrides)
    half = len(calls) // 2
    assert [retrieve for _, retrieve in calls] == [True] * half + [False] * half
    sizes = [size for size, _ in calls]
    assert set(sizes) <= {5, 6, 7, 8}
    assert 8 in sizes
    assert len(set(sizes)) > 1


def test_the_warm_up_teaches_what_tells_images_apart_and_no_classes(
    colours: Path, tmp_path: Path, weights: Weights, tiny: dict[str, Any]
) -> None:
    changes = {"epochs": 1, "retrieval_epochs": 1, "image_size": 16, "ema": 0.0, "weight_decay": 0.0}
    overrides = {**tiny, **changes}
    torch.manual_seed(0)
    train(colours, model="concatplexer_tiny_patch4_n2", out=tmp_path / "run", overrides=overrides)
    learned = weights(tmp_path / "run")
    assert learned["head.classifier.bias"].abs().max() == 0, "classes are not in the loss"
    assert learned["demux.0.linear.bias"].abs().max() > 0


def test_a_batch_smaller_than_a_group_is_not_emptied(
    colours: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    overrides = {**tiny, "epochs": 1, "image_size": 16, "batch_size": 2, "short_groups": 1.0}
    result = train(colours, model="concatplexer_tiny_patch4_n4", out=tmp_path / "run", overrides=overrides)
    assert result.scores.images == 6


def test_retrieval_of_a_plain_model_is_refused(colours: Path, tmp_path: Path, run: Run) -> None:
    with pytest.raises(ConfigError, match="retrieval: expected a multiplexed model, got timm"):
        run(colours, tmp_path / "run", retrieval=0.1)


def test_a_checkpoint_of_another_number_of_images_starts_nothing(
    colours: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    path = tmp_path / "n4.safetensors"
    save_weights(path, create_model("concatplexer_tiny_patch4_n4", num_classes=3, image_size=16), {})
    overrides = {**tiny, "image_size": 16, "init": str(path)}
    with pytest.raises(WeightsError, match="the file holds concatplexer_tiny_patch4_n4"):
        train(colours, model="concatplexer_tiny_patch4_n2", out=tmp_path / "run", overrides=overrides)
