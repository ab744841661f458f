"""The training loop, on accelerate.

Everything random depends on (seed, epoch, index) or (seed, step, process), so a run that was stopped anywhere
goes on as if it had not been.

Shape suffixes: N pictures of the source, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from vitesse.data.check import check_data, check_trainable
from vitesse.data.loader import AugmentedPictures, Batch, training_batches
from vitesse.data.sampler import Share, ShuffledKeys
from vitesse.data.sources import Source
from vitesse.errors import DataError, StoppedError, TrainingError
from vitesse.metrics import Outcomes, Scores
from vitesse.progress import say, track
from vitesse.provenance import provenance
from vitesse.spec import ModelSpec, PreprocessSpec, to_mapping
from vitesse.train.checkpoint import Checkpoints, Progress
from vitesse.train.clock import StepClock
from vitesse.train.objective import Objective
from vitesse.train.optimizer import adamw, moving_average
from vitesse.train.recipe import Recipe, recipe_values
from vitesse.train.recipe_files import load_recipe
from vitesse.train.record import REFUSED_FILE, RunLog, make_folder, run_record
from vitesse.train.report import write_report
from vitesse.train.schedule import DropPathSchedule
from vitesse.train.setup import (
    augmentation,
    fitted,
    initial_model,
    label_targets,
    make_accelerator,
    splits,
    taught_targets,
)
from vitesse.train.step import LostWorkerError, StepResult, TrainingStep
from vitesse.train.stopping import StopRequestedError, StopSignals
from vitesse.train.teacher import Teacher, cached_logits, load_teacher
from vitesse.train.validation import validate, with_fresh_statistics
from vitesse.weights.files import save_tensors, save_weights

REPORT_FILE = "report.html"
ROWS_AN_EPOCH = 50
TOLD_OF_PROGRESS = ("step", "epochs", "best_top1", "seconds", "bad_steps")
FREE_TO_CHANGE = frozenset(
    {
        *("epochs", "eval_every", "save_minutes", "log_every", "trackers", "limit_val", "max_bad_steps"),
        *("workers", "accumulate", "compile"),
    }
)
"""What of a recipe may change when a run goes on; the learning rate follows a changed number of epochs."""


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

    scores: Scores
    checkpoint: Path
    best: Path
    report: Path
    refused: tuple[str, ...]
    data: str
    train_source: Source
    val_source: Source


def train(
    data: str | Path,
    *,
    model: str,
    out: str | Path,
    recipe: str | Path = "finetune",
    overrides: Iterable[str] | Mapping[str, Any] = (),
    strict: bool = False,
) -> TrainResult:
    """Train or fine-tune a classifier; goes on by itself where `out` holds an unfinished run.

    Args:
        data: anything `open_source` reads. Without a `test` (or `val`) split, a tenth of each class is
            held out, drawn by the recipe's seed.
        model: a registered name or `timm:NAME`.
        out: folder of the run: `checkpoints/{last,best}/model.safetensors`, `metrics.jsonl`, `report.html`.
        recipe: a shipped recipe's name or a YAML file.
        overrides: `key=value` texts, or a mapping, over the recipe.
        strict: decode every picture before training, and refuse data of which one cannot be read.

    Raises:
        StoppedError: SIGTERM or SIGINT came; the run is saved and the same call goes on with it.
        ConfigError, DataError, TrainingError, WeightsError: see their messages.
    """
    settings = load_recipe(recipe, overrides, model)
    train_source, val_source = splits(data, settings)
    check_trainable(train_source)
    spec = ModelSpec(
        name=model,
        image_size=(settings.image_size, settings.image_size),
        num_classes=len(train_source.class_names),
        drop_path_rate=settings.drop_path_rate,
        distilled=settings.distilled,
    )
    with StopSignals() as signals:
        try:
            name = Path(str(data)).name
            trainer = Trainer(spec, settings, train_source, val_source, Path(out), signals, name)
            trainer.check_pictures(strict)
        except StopRequestedError as error:
            raise StoppedError(f"stopped by {error} before the first step; nothing was lost") from error
        return trainer.fit()


def run_files(folder: Path) -> dict[str, Path]:
    """Where a run keeps its weights and its report, by the names of `TrainResult`."""
    last, best = (folder / "checkpoints" / name / "model.safetensors" for name in ("last", "best"))
    return {"checkpoint": last, "best": best, "report": folder / REPORT_FILE}


class Trainer:
    """One run: builds everything from the recipe, then `fit`."""

    def __init__(
        self,
        spec: ModelSpec,
        recipe: Recipe,
        train_source: Source,
        val_source: Source,
        out: Path,
        signals: StopSignals,
        data: str,
    ) -> None:
        make_folder(out)
        self.spec, self.out, self.signals, self.data = spec, out, signals, data
        self.train_source, self.val_source = train_source, val_source
        self.accelerator = accelerator = make_accelerator(recipe, out)
        share = Share(
            rank=accelerator.process_index, world=accelerator.num_processes, accumulate=recipe.accumulate
        )
        self.recipe = recipe = fitted(recipe, len(train_source), share)
        self.preprocess = PreprocessSpec(
            image_size=spec.image_size, resize=recipe.resize, crop_pct=recipe.crop_pct
        )
        self.progress = Progress()
        self.found: Outcomes | None = None
        self.saved = True
        self.refused: set[int] = set()
        self.log = RunLog(accelerator, out, recipe)
        self.clock = StepClock(accelerator.device)

        torch.manual_seed(recipe.seed)
        model = initial_model(spec, recipe)
        self.model, self.optimizer = accelerator.prepare(model, adamw(model, recipe))
        self.plain: nn.Module = accelerator.unwrap_model(self.model)
        self.average = moving_average(self.plain, recipe)
        self.checkpoints = Checkpoints(
            out / "checkpoints", accelerator, self.model, self.optimizer, self.average, self._identity()
        )
        self.drop_path = DropPathSchedule(recipe, self.plain)
        targets_NK, teacher = self._targets()
        objective = Objective(
            recipe,
            torch.compile(self.model) if recipe.compile else self.model,
            teacher,
            self.average and self.average.module,
        )
        self.step = TrainingStep(
            recipe,
            accelerator,
            self.model,
            self.optimizer,
            self.average,
            objective,
            targets_NK,
            self.preprocess,
            self.clock,
        )
        self.keys = ShuffledKeys(
            len(train_source),
            recipe.batch_size,
            recipe.seed,
            share,
            recipe.repeats,
            getattr(train_source, "blocks", ()),
        )
        self.batches = training_batches(
            AugmentedPictures(train_source, augmentation(recipe), recipe.seed), self.keys, recipe.workers
        )

    def fit(self) -> TrainResult:
        """Train to the recipe's last epoch, from the last checkpoint where there is one.

        Raises:
            StoppedError: a signal came, and the run is saved.
            TrainingError: too many steps in a row were not finite, or a worker process was killed.
        """
        self._resume()
        found = None
        try:
            while self.progress.epochs < self.recipe.epochs:
                self._train_epoch(self.progress.epochs)
                found = self._close_epoch()
            if found is None:
                found = self._validate(self._model_to_keep())
            self._report("finished", found)
        except TrainingError as error:
            self._report(f"failed: {error}")
            raise
        except StopRequestedError as error:
            self._refuse()
            self._save()
            self._report(f"stopped by {error} at step {self.progress.step}")
            self._check_saved()
            raise StoppedError(
                f"stopped by {error} at step {self.progress.step}; run the same command again to go on"
            ) from error
        finally:
            self.log.close()
        self._check_saved()
        return TrainResult(
            scores=found.scores(len(self.val_source)),
            refused=self.log.refused,
            data=self.data,
            train_source=self.train_source,
            val_source=self.val_source,
            **run_files(self.out),
        )

    def _check_saved(self) -> None:
        """
        Raises:
            TrainingError: the newest state could not be written.
        """
        if not self.saved:
            raise TrainingError(
                f"{self.out}: the last checkpoint could not be written; make room and run the same command "
                "again: it goes on from the newest that could"
            )

    def check_pictures(self, strict: bool) -> None:
        """Tell what is odd about the data: its balance, copies, and with `strict` what cannot be decoded.

        Raises:
            DataError: `strict`, and a picture cannot be decoded.
        """
        if not strict and not self.accelerator.is_main_process:
            return
        workers = max(1, self.recipe.workers)
        found = check_data(self.train_source, self.val_source, decode=strict, workers=workers)
        for line in found.lines():
            self.log.note(line)
        if strict and found.unreadable:
            raise DataError(f"--strict: {found.lines()[-1]}; mend or remove it")

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
            self._save()
            raise TrainingError(
                f"a process that reads pictures was killed at step {step}, as happens without memory; the "
                "run is saved: run the same command again, with a lower workers="
            ) from error
        self.refused.update(result.refused)
        row = self.progress.bad_in_a_row + 1 if result.bad else 0
        self.progress = replace(
            self.progress,
            step=step + 1,
            bad_steps=self.progress.bad_steps + result.bad,
            bad_in_a_row=row,
            loss_sum=self.progress.loss_sum + (0.0 if result.bad else result.loss),
            loss_count=self.progress.loss_count + (not result.bad),
        )
        if result.bad:
            self._survive(result, row)
        return result

    def _survive(self, result: StepResult, row: int) -> None:
        """Go on after a step that was skipped, unless there were too many in a row."""
        step, what = self.progress.step - 1, result.explain()
        names = [self.train_source.name(index) for index in self.step.last_indices()]
        first = [*names, *map(self.train_source.name, result.refused)][0]
        if row < self.recipe.max_bad_steps:
            text = f"step {step} was skipped: {what}; its first picture is {first}"
            self.log.note(text, self.progress.step)
            return
        if not result.seen:
            raise TrainingError(
                f"{what} at step {step}, and {row} steps in a row were skipped; its first picture is "
                f"{first}: see that the data is there, and run the same command again"
            )
        path, where = self.out / f"bad_batch_{self.accelerator.process_index}.safetensors", ""
        with self.log.survived("the batch"):
            if names:
                save_tensors(path, self.step.last_pictures(), {"names": "\n".join(names)})
                where = f"; the pictures of this one are {path}"
        raise TrainingError(
            f"{what} at step {step}, and {row} steps in a row were not finite{where}; what was saved before "
            "is good: go on from it with init= in another --out, with a lower lr or precision=fp32"
        )

    def _targets(self) -> tuple[Tensor, Teacher | None]:
        """The target shares of every picture, (N, K), and the teacher to ask at every step, if any."""
        recipe, targets_NK = self.recipe, label_targets(self.recipe, self.train_source)
        teacher = load_teacher(recipe, self.spec.num_classes)
        if teacher is not None:
            teacher.to(self.accelerator.device)
        if teacher is None or not recipe.teacher_cache:
            return targets_NK, teacher
        path = self.out / "teacher_logits.safetensors"
        preprocess = replace(self.preprocess, image_size=teacher.image_size)
        with self.accelerator.main_process_first():
            logits_NK = cached_logits(
                teacher, self.train_source, preprocess, path, recipe.workers, self.signals.check
            )
        return taught_targets(recipe, targets_NK, logits_NK), None

    def _close_epoch(self) -> Outcomes | None:
        """Evaluate where it is due, record and save the epoch that was trained."""
        done = self.progress
        epoch = done.epochs + 1
        found, weights = None, self._model_to_keep()
        if epoch % self.recipe.eval_every == 0 or epoch == self.recipe.epochs:
            found = self._validate(weights)
        scores = found.scores(len(self.val_source)) if found else None
        loss = done.loss_sum / max(done.loss_count, 1)
        best_top1 = max(done.best_top1, scores.top1 if scores else -1.0)
        self.progress = replace(done, epochs=epoch, loss_sum=0.0, loss_count=0, best_top1=best_top1)
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
            accuracy = f", top-1 {scores.top1:.3f}, top-5 {scores.top5:.3f}" if scores else ""
            say(f"epoch {epoch}/{self.recipe.epochs}, {_clock(done.seconds)}: loss {loss:.3f}{accuracy}")
        self._refuse()
        self._save(weights, best=best_top1 > done.best_top1)
        if not self.saved:
            self.progress = replace(self.progress, best_top1=done.best_top1)
        if epoch < self.recipe.epochs:
            self._report(f"running, epoch {epoch + 1} of {self.recipe.epochs}", found)
        return found

    def _report(self, status: str, found: Outcomes | None = None) -> None:
        """Write the page that a person looks at."""
        self.found = found or self.found
        if not self.accelerator.is_main_process:
            return
        num_params = sum(parameter.numel() for parameter in self.plain.parameters())
        sources = (self.train_source, self.val_source)
        record = run_record(self.log, self.spec, num_params, self.recipe, sources, status, self.found)
        with self.log.survived("the report"):
            write_report(record, self.out / REPORT_FILE)

    def _validate(self, weights: nn.Module) -> Outcomes:
        try:
            return validate(
                self.accelerator, weights, self.val_source, self.preprocess, self.recipe, self.signals
            )
        except DataError:
            self._save()
            raise

    def _model_to_keep(self) -> nn.Module:
        """What is evaluated and saved as the model: the weights or their average."""
        recipe = self.recipe
        weights: nn.Module = self.average.module if self.average and recipe.evaluate_ema else self.plain
        if recipe.bn_images:
            return with_fresh_statistics(
                weights, self.train_source, self.preprocess, recipe, self.accelerator.device
            )
        return weights

    def _resume(self) -> None:
        progress = self.checkpoints.resume()
        self.progress = progress or self.progress
        self.log.begin(self.progress.step, self.progress.epochs)
        if progress is not None:
            total = self.recipe.epochs * self.keys.steps_per_epoch
            self.log.note(f"resumed at step {progress.step} of {total}", progress.step)

    def _save(self, model: nn.Module | None = None, best: bool = False) -> None:
        """The model, then the state to go on from; of what cannot be written the old stays."""
        self.saved = False
        with self.log.survived("a checkpoint"):
            self.checkpoints.save(self.progress, self._provenance(), lambda: self._save_models(model, best))
            self.saved = True

    def _save_models(self, model: nn.Module | None, best: bool) -> None:
        model = model or self._model_to_keep()
        self._save_model("last/model.safetensors", model)
        if self.average is not None and not self.recipe.evaluate_ema:
            self._save_model("last/ema.safetensors", self.average.module)
        if best:
            self._save_model("best/model.safetensors", model)

    def _save_model(self, name: str, model: nn.Module) -> None:
        metadata = {
            "class_names": list(self.train_source.class_names),
            "preprocess": to_mapping(self.preprocess),
            "provenance": self._provenance(),
        }
        save_weights(self.checkpoints.folder / name, model, metadata)

    def _provenance(self) -> dict[str, Any]:
        return {
            **provenance(),
            "recipe": recipe_values(self.recipe),
            "data": self.train_source.fingerprint,
            "processes": self.accelerator.num_processes,
            **{key: value for key, value in asdict(self.progress).items() if key in TOLD_OF_PROGRESS},
        }

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
                **self.clock.read(steps),
            },
        )

    def _headline(self) -> str:
        """What the progress bar says: where the run is, and how long it will take."""
        done, total = self.progress.step, self.recipe.epochs * self.keys.steps_per_epoch
        left = f", {_clock(self.progress.seconds / done * (total - done))} left" if done else ""
        return f"epoch {self.progress.epochs + 1}/{self.recipe.epochs}{left}"

    def _refuse(self) -> None:
        """List the pictures that a process could not read."""
        mine = sorted(self.refused)
        everywhere = mine if self.accelerator.num_processes == 1 else gather_object(mine)
        self.log.refuse(map(self.train_source.name, everywhere))
        if count := len(self.log.refused):
            self.log.note(
                f"training pictures that cannot be read: {count}, see {REFUSED_FILE}; the first is "
                f"{self.log.refused[0]}"
            )

    def _identity(self) -> dict[str, Any]:
        """What must agree to continue a checkpoint."""
        recipe = {key: v for key, v in recipe_values(self.recipe).items() if key not in FREE_TO_CHANGE}
        return {"recipe": recipe, "model": to_mapping(self.spec), "data": self.train_source.fingerprint}


def _clock(seconds: float) -> str:
    """`1 h 05 min`, `12 min` or `45 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
