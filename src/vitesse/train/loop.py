"""The training loop, on accelerate.

Everything random depends on (seed, epoch, index) or (seed, step, process), so a run that was stopped anywhere
goes on as if it had not been.

Shape suffixes: N pictures of the source, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitesse.data.contract import Pictures
from vitesse.data.loader import AugmentedPictures, Batch, training_batches
from vitesse.data.sampler import Share, ShuffledKeys
from vitesse.errors import DataError, EngineError, StoppedError, TrainingError, VitesseError
from vitesse.metrics import Figures, Found
from vitesse.models.create import spec_for
from vitesse.progress import say, track
from vitesse.train.checkpoint import Checkpoints, Progress, is_to_go_on
from vitesse.train.clock import StepClock
from vitesse.train.folder import RunFacts, RunFolder, run_files
from vitesse.train.recipe_files import load_recipe
from vitesse.train.record import DATA_CHECK_FILE, RunLog, make_folder
from vitesse.train.schedule import DropPathSchedule
from vitesse.train.setup import fitted, initial_model, make_accelerator, prepared, splits
from vitesse.train.sharding import whole
from vitesse.train.skipped import GO_ON_ELSEWHERE, go_on_or_give_up
from vitesse.train.step import LostWorkerError, StepResult, TrainingStep
from vitesse.train.stopping import LostProcessError, StopRequestedError, StopSignals, is_lost_connection
from vitesse.train.tasks import check_kind, task_of
from vitesse.train.together import from_all
from vitesse.train.validation import validate, with_fresh_statistics

ROWS_AN_EPOCH = 50


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run ended with.

    Attributes:
        scores: of the last weights.
        checkpoint: the last weights.
        best: the weights that scored best.
        report: the page to look at.
        refused: training pictures that could not be read, as in `refused.txt`.
        data: what it was trained on, as the user calls it.
        train_source, val_source: the pictures themselves.
    """

    scores: Figures
    checkpoint: Path
    best: Path
    report: Path
    refused: tuple[str, ...]
    data: str
    train_source: Pictures
    val_source: Pictures


def train(
    data: str | Path,
    *,
    model: str,
    out: str | Path,
    recipe: str | Path | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    strict: bool = False,
    stop_file: str | Path | None = None,
    enough: Callable[[int, Figures], bool] | None = None,
) -> TrainResult:
    """Train or fine-tune a model for its task; goes on by itself where `out` holds an unfinished run.

    Args:
        data: anything that `open_source` reads, for a detector `open_boxes`, for a segmenter `open_maps`.
            Without a `val` (or `test`) split, a tenth of each class is held out, drawn by the recipe's seed.
        model: a registered name, one with changes (`efficientvit_m0+no_cascade`), a spec file or `timm:NAME`.
        out: folder of the run: `checkpoints/{last,best}/model.safetensors`, `metrics.jsonl`, `report.html`.
        recipe: a shipped recipe's name or a YAML file; by default the one of the model's task.
        overrides: `key=value` texts, or a mapping, over the recipe.
        strict: decode every picture before training, and refuse data of which one cannot be read.
        stop_file: once there is such a file, the run stops as by the signal that it names; for training in a
            thread, which signals do not reach.
        enough: asked after each epoch that was evaluated, with the number of epochs done and their scores:
            whether the run may end there.

    Raises:
        StoppedError: SIGTERM, SIGINT or `stop_file` came; the run is saved and the same call goes on with it.
        ConfigError, DataError, TrainingError, WeightsError: see their messages.
    """
    asked = spec_for(model)
    task = task_of(asked.name)
    check_kind(data, task, model)
    settings = load_recipe(recipe or task.recipe, overrides, asked.name)
    task.check_recipe(settings)
    train_source, val_source = splits(task, data, settings)
    task.check(train_source)
    facts = RunFacts(
        out=Path(out),
        data=Path(str(data)).name,
        spec=replace(
            asked,
            image_size=settings.input_size,
            num_classes=len(train_source.class_names),
            drop_path_rate=settings.drop_path_rate,
            distilled=settings.distilled,
        ),
        recipe=settings,
        train_source=train_source,
        val_source=val_source,
    )
    with StopSignals(Path(stop_file) if stop_file else None) as signals:
        try:
            trainer = Trainer(facts, signals)
            trainer.check_pictures(strict)
        except StopRequestedError as error:
            raise StoppedError(f"stopped by {error} before the first step; nothing was lost") from error
        return trainer.fit(enough)


class Trainer:
    """One run: builds everything from the recipe, puts back what was saved, then `fit`."""

    def __init__(self, facts: RunFacts, signals: StopSignals) -> None:
        make_folder(facts.out)
        self.signals = signals
        self.accelerator = accelerator = make_accelerator(facts.recipe, facts.out)
        share = Share(
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            accumulate=facts.recipe.accumulate,
        )
        self.recipe = recipe = fitted(facts.recipe, len(facts.train_source), share)
        self.facts = facts = replace(facts, recipe=recipe)
        saved = facts.out / "checkpoints"
        goes_on = is_to_go_on(saved, facts.identity())  # or is refused, before anything in the folder changes
        self.progress = Progress(judged_on=facts.val_source.fingerprint)
        self.found: Found | None = None
        self.refused: set[int] = set()
        self.log = RunLog(accelerator, facts.out, recipe)
        self.clock = StepClock(accelerator.device)

        self.keys = ShuffledKeys(
            len(facts.train_source),
            recipe.batch_size,
            recipe.seed,
            share,
            recipe.repeats,
            facts.train_source.blocks,
        )

        torch.manual_seed(recipe.seed)
        started = replace(recipe, init="") if goes_on else recipe  # its state holds all weights
        model = initial_model(facts.spec, started, partial(self.log.note, step=0))
        self.model, self.optimizer, self.average = prepared(accelerator, model, recipe)
        self.plain: nn.Module = accelerator.unwrap_model(self.model)
        checkpoints = Checkpoints(
            saved, accelerator, self.model, self.optimizer, self.average, facts.identity()
        )
        self.folder = RunFolder(facts, self.log, checkpoints)
        self._resume()
        self.drop_path = DropPathSchedule(recipe, self.plain)
        loss = facts.task.loss(facts, accelerator, self.model, self.average, signals.check)
        self.step = TrainingStep(
            recipe, accelerator, self.model, self.optimizer, self.average, loss, self.clock
        )
        self.batches = training_batches(
            AugmentedPictures(facts.train_source, facts.task.augmentation(recipe), recipe.seed),
            self.keys,
            recipe.workers,
        )

    def fit(self, enough: Callable[[int, Figures], bool] | None = None) -> TrainResult:
        """Train to the recipe's last epoch, from the last checkpoint where there is one.

        `enough` may end it before, see `train`.

        Raises:
            StoppedError: a signal came, and the run is saved.
            TrainingError: too many steps in a row, or what the model says of a held-out picture, were not
                finite; or another process was lost.
        """
        found = None
        try:
            while self.progress.epochs < self.recipe.epochs:
                self._train_epoch(self.progress.epochs)
                found = self._close_epoch()
                if enough and found and enough(self.progress.epochs, found.scores(self.facts.val_source)):
                    break
            if found is None:
                found = self._validate(self._model_to_keep())
            self._report("finished", found)
        except VitesseError as error:
            self._report(f"failed: {error}")
            raise
        except StopRequestedError as error:
            self.folder.refuse(self.refused)
            self._save()
            self._report(f"stopped by {error} at step {self.progress.step}")
            self.accelerator.wait_for_everyone()  # a launcher ends the others as soon as one has ended
            self.folder.check_saved()
            raise StoppedError(
                f"stopped by {error} at step {self.progress.step}; run the same command again to go on"
            ) from error
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            lost = LostProcessError(
                f"another process was lost at step {self.progress.step}; run the same command again to go on "
                "from the last checkpoint"
            )
            self._report(f"failed: {lost}")
            raise lost from error
        finally:
            self.batches.close()
            self.log.close()
        self.folder.check_saved()
        return TrainResult(
            scores=found.scores(self.facts.val_source),
            refused=self.log.refused,
            data=self.facts.data,
            train_source=self.facts.train_source,
            val_source=self.facts.val_source,
            **run_files(self.facts.out),
        )

    def check_pictures(self, strict: bool) -> None:
        """Tell what is odd about the data: its balance, copies, and with `strict` what cannot be decoded.

        Every picture of it is named in `data_check.json`. The first process looks, where a run begins.

        Raises:
            DataError: `strict`, and a picture cannot be decoded.
            StopRequestedError: a signal came.
        """

        def look() -> None:
            if self.accelerator.is_main_process and not self.folder.checkpoints.exist():
                self._look_over(strict)

        from_all(self.accelerator, look)

    def _look_over(self, strict: bool) -> None:
        facts, workers = self.facts, max(1, self.recipe.workers)
        found = facts.task.look_over(
            facts.train_source, facts.val_source, strict, workers, self.signals.check
        )
        for line in found.lines():
            self.log.note(line, 0)
        self.log.describe_data(found.to_dict())
        if strict and found.faulty:
            path = facts.out / DATA_CHECK_FILE
            raise DataError(f"--strict: {found.lines()[-1]}; mend or remove what {path} names")

    def _train_epoch(self, epoch: int) -> None:
        """The steps of an epoch that are not done yet."""
        first = self.progress.step - epoch * self.keys.steps_per_epoch
        self.keys.start_at(epoch, first)
        self.model.train()
        log_every = self.recipe.log_every or max(1, self.keys.steps_per_epoch // ROWS_AN_EPOCH)
        started = saved = logged = time.monotonic()
        logged_steps = 0
        batches = iter(self.batches)
        for _ in track(
            range(first, self.keys.steps_per_epoch), self._headline, self.keys.steps_per_epoch - first
        ):
            due = time.monotonic() - saved > self.recipe.save_minutes * 60
            result = self._train_step(batches, due)
            logged_steps += 1
            now = time.monotonic()
            self.progress = replace(self.progress, seconds=self.progress.seconds + now - started)
            started = now
            if self.progress.step % log_every == 0:
                self._log_steps(result, logged_steps, now - logged)
                logged, logged_steps = now, 0
            if result.stop:
                raise StopRequestedError(self.signals.received or "another process")
            if result.save:
                self._save()
                saved = time.monotonic()

    def _train_step(self, batches: Iterator[Batch], due: bool) -> StepResult:
        step, per_epoch = self.progress.step, self.keys.steps_per_epoch
        self.drop_path.set(step / (per_epoch * self.recipe.epochs))
        try:
            result = self.step(
                batches, step, step / per_epoch, stop=self.signals.received is not None, save=due
            )
        except LostWorkerError as error:
            if self.accelerator.num_processes == 1:  # saving takes all of them
                self._save()
            raise TrainingError(
                f"a process that reads pictures was killed at step {step}, as happens without memory; run "
                "the same command again, with a lower workers=, to go on from the last checkpoint"
            ) from error
        self.refused.update(result.refused)
        self.progress = self.progress.after_step(result.loss, result.bad)
        if result.bad:
            go_on_or_give_up(result, self.progress, self.step, self.folder)
        return result

    def _close_epoch(self) -> Found | None:
        """Evaluate where it is due, record and save the epoch that was trained."""
        done = self.progress
        epoch = done.epochs + 1
        found, weights = None, self._model_to_keep()
        if epoch % self.recipe.eval_every == 0 or epoch == self.recipe.epochs:
            found = self._validate(weights)
        scores = found.scores(self.facts.val_source) if found else None
        loss = done.loss_sum / max(done.loss_count, 1)
        best_score = max(done.best_score, scores.best_by if scores else -1.0)
        self.progress = replace(done, epochs=epoch, loss_sum=0.0, loss_count=0, best_score=best_score)
        self.log.add(
            "epoch",
            {
                "epoch": epoch,
                "step": done.step,
                "loss": loss,
                "seconds": done.seconds,
                "skipped": done.bad_steps - sum(row["skipped"] for row in self.log.of_kind("epoch")),
                **(scores.to_dict() if scores else {}),
            },
        )
        if self.accelerator.is_main_process:
            accuracy = f", {scores.explain()}" if scores else ""
            say(f"epoch {epoch}/{self.recipe.epochs}, {_clock(done.seconds)}: loss {loss:.3f}{accuracy}")
        self.folder.refuse(self.refused)
        self._save(weights, best=best_score > done.best_score)
        if not self.folder.saved:
            self.progress = replace(self.progress, best_score=done.best_score)
        if epoch < self.recipe.epochs:
            self._report(f"running, epoch {epoch + 1} of {self.recipe.epochs}", found)
        return found

    def _report(self, status: str, found: Found | None = None) -> None:
        self.found = found or self.found
        self.folder.report(status, self.found)

    def _validate(self, weights: nn.Module) -> Found:
        try:
            return validate(
                self.facts.task,
                self.accelerator,
                weights,
                self.facts.val_source,
                self.facts.preprocess,
                self.recipe,
                self.signals,
            )
        except EngineError as error:  # such weights are not to replace the saved ones
            raise TrainingError(
                f"evaluated at step {self.progress.step}: {error}; {GO_ON_ELSEWHERE}"
            ) from error
        except VitesseError:
            self._save()
            raise

    def _weights(self) -> nn.Module:
        """The weights, or their average where that is evaluated."""
        return whole(self.average if self.average is not None and self.recipe.evaluate_ema else self.plain)

    def _model_to_keep(self) -> nn.Module:
        """What is evaluated and saved as the model, with fresh statistics where the recipe wants them."""
        facts, weights = self.facts, self._weights()
        if not self.recipe.bn_images:
            return weights
        return with_fresh_statistics(
            weights,
            facts.train_source,
            facts.preprocess,
            self.recipe,
            self.accelerator.device,
            check=lambda: from_all(self.accelerator, self.signals.check),
        )

    def _resume(self) -> None:
        progress = self.folder.checkpoints.resume()
        self.log.begin(progress)
        if progress is None:
            return
        total = self.recipe.epochs * self.keys.steps_per_epoch
        self.log.note(f"resumed at step {progress.step} of {total}", progress.step)
        if progress.judged_on != self.progress.judged_on:
            self.log.note("other validation pictures: the best weights are looked for anew", progress.step)
            progress = replace(progress, best_score=-1.0, judged_on=self.progress.judged_on)
        self.progress = progress

    def _save(self, model: nn.Module | None = None, best: bool = False) -> None:
        self.folder.save(self.progress, model or self._weights(), best)

    def _log_steps(self, result: StepResult, steps: int, seconds: float) -> None:
        self.log.add(
            "step",
            {
                "step": self.progress.step,
                "epoch": self.progress.step / self.keys.steps_per_epoch,
                "loss": result.loss,
                "lr": result.lr,
                "grad_norm": result.grad_norm,
                "img_per_s": self.recipe.batch_size * steps / seconds,
                **self.clock.read(),
            },
        )

    def _headline(self) -> str:
        """What the progress bar says: where the run is, and how long it will take."""
        done, total = self.progress.step, self.recipe.epochs * self.keys.steps_per_epoch
        left = f" (run: {_clock(self.progress.seconds / done * (total - done))} left)" if done else ""
        return f"epoch {self.progress.epochs + 1}/{self.recipe.epochs}{left}"


def _clock(seconds: float) -> str:
    """`1 h 05 min`, `12 min` or `45 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
