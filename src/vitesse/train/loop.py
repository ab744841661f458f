"""The training loop, on accelerate.

Everything random depends on (seed, epoch, index) or (seed, step), so a run that was stopped anywhere
goes on as if it had not been.

Shape suffixes: B images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vitesse.data.loader import AugmentedPictures, Batch, ShuffledKeys, training_batches
from vitesse.data.sources import Source, hold_out, open_source, take
from vitesse.data.transforms import DeviceTransform, augment_pictures, mix_batches
from vitesse.errors import ConfigError, DataError, TrainingError, require
from vitesse.metrics import Scores, score
from vitesse.models import build
from vitesse.models.engine import TorchEngine
from vitesse.models.multiplex import Multiplexer
from vitesse.progress import say, track
from vitesse.provenance import provenance
from vitesse.spec import ModelSpec, PreprocessSpec, to_mapping
from vitesse.train.checkpoint import Progress, load_state, save_state
from vitesse.train.losses import (
    distillation_loss,
    retrieval_loss,
    smooth_targets,
    soft_cross_entropy,
    teacher_shares,
)
from vitesse.train.recipe import Recipe, load_recipe, recipe_values
from vitesse.train.teacher import cached_logits, load_teacher
from vitesse.weights.files import save_weights
from vitesse.weights.load import start_from

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run ended with: accuracy of the saved weights, where they are, and what could not be read."""

    scores: Scores
    checkpoint: Path
    refused: tuple[str, ...]


def train(
    data: str | Path,
    *,
    model: str,
    out: str | Path,
    recipe: str | Path = "finetune",
    overrides: Iterable[str] | Mapping[str, Any] = (),
) -> TrainResult:
    """Train or fine-tune a classifier; goes on by itself where `out` holds an unfinished run.

    Args:
        data: anything `open_source` reads. Without a `test` (or `val`) split, a tenth of each class is
            held out, drawn by the recipe's seed.
        model: a registered name or `timm:NAME`.
        out: folder for `checkpoints/{last,best}/model.safetensors` and `metrics.jsonl`.
        recipe: a shipped recipe's name or a YAML file.
        overrides: `key=value` texts, or a mapping, over the recipe.

    Raises:
        ConfigError, DataError, TrainingError, WeightsError: see their messages.
    """
    settings = load_recipe(recipe, overrides)
    train_source, val_source = _splits(data, settings)
    spec = ModelSpec(
        name=model,
        image_size=(settings.image_size, settings.image_size),
        num_classes=len(train_source.class_names),
        drop_path_rate=settings.drop_path_rate,
    )
    return Trainer(spec, settings, train_source, val_source, Path(out)).fit()


def _splits(data: str | Path, recipe: Recipe) -> tuple[Source, Source]:
    try:
        train_source, val_source = open_source(data, "train"), open_source(data, "test")
    except DataError:
        train_source, val_source = hold_out(open_source(data), HELD_OUT_SHARE, recipe.seed)
    if train_source.fingerprint == val_source.fingerprint:
        train_source, val_source = hold_out(train_source, HELD_OUT_SHARE, recipe.seed)
    if train_source.class_names != val_source.class_names:
        differ = sorted(set(train_source.class_names) ^ set(val_source.class_names))
        raise DataError(
            f"{data}: the train and test splits hold different classes, such as {', '.join(differ[:3])}"
        )
    return take(train_source, recipe.limit_train, recipe.seed), take(
        val_source, recipe.limit_val, recipe.seed
    )


class Trainer:
    """One run: builds everything from the recipe, then `fit`."""

    def __init__(
        self, spec: ModelSpec, recipe: Recipe, train_source: Source, val_source: Source, out: Path
    ) -> None:
        self.recipe, self.out = recipe, out
        out.mkdir(parents=True, exist_ok=True)
        self.train_source, self.val_source = train_source, val_source
        self.spec = spec
        self.preprocess = PreprocessSpec(
            image_size=spec.image_size, resize=recipe.resize, crop_pct=recipe.crop_pct
        )
        self.accelerator = Accelerator(mixed_precision=_precision(recipe))
        self.device = self.accelerator.device
        self.refused: set[int] = set()
        self.progress = Progress()

        torch.manual_seed(recipe.seed)
        model = build(spec)
        if (recipe.retrieval or recipe.retrieval_epochs) and not isinstance(model, Multiplexer):
            raise ConfigError(f"recipe retrieval: expected a multiplexed model, got {spec.name}")
        if recipe.init:
            say(f"{recipe.init}: {start_from(model, recipe.init).explain()}")
        if recipe.channels_last:
            model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(_parameter_groups(model, recipe.weight_decay), lr=recipe.lr)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.ema = self._averaged()
        self.forward = torch.compile(self.model) if recipe.compile else self.model
        self.device_transform = DeviceTransform(self.preprocess).to(self.device)
        self.mix = mix_batches(recipe.mixup, recipe.cutmix, recipe.mix_prob)
        self._load_teacher()
        self._load_pictures()

    def fit(self) -> TrainResult:
        """Train to the recipe's last epoch, from the last checkpoint where there is one."""
        self._resume()
        first_epoch, first_batch = divmod(self.progress.step, self.steps_per_epoch)
        scores = None
        for epoch in range(first_epoch, self.recipe.epochs):
            loss = self._train_epoch(epoch, first_batch if epoch == first_epoch else 0)
            if (epoch + 1) % self.recipe.eval_every == 0 or epoch + 1 == self.recipe.epochs:
                scores = self._evaluate()
                self._log(epoch, loss, scores)
                self._save(scores)
            else:
                self._log(epoch, loss, None)
                self._save(None)
        refused = tuple(self.train_source.name(index) for index in sorted(self.refused))
        if refused:
            say(f"{len(refused)} pictures could not be read, the first is {refused[0]}")
        return TrainResult(
            scores=scores or self._evaluate(),
            checkpoint=self._checkpoint("last") / "model.safetensors",
            refused=refused,
        )

    def _train_epoch(self, epoch: int, first_batch: int) -> float:
        self.keys.start_at(epoch, first_batch)
        self.model.train()
        losses: list[float] = []
        started = saved = time.monotonic()
        description = f"epoch {epoch + 1}/{self.recipe.epochs}"
        for batch in track(self.batches, description, self.steps_per_epoch - first_batch):
            self.refused.update(batch.refused)
            if len(batch.indices_B):
                losses.append(self._train_step(batch))
            self.progress = replace(self.progress, step=self.progress.step + 1)
            if time.monotonic() - saved > self.recipe.save_minutes * 60:
                self._save(None)
                saved = time.monotonic()
        self.progress = replace(self.progress, seconds=self.progress.seconds + time.monotonic() - started)
        return sum(losses) / max(len(losses), 1)

    def _train_step(self, batch: Batch) -> float:
        step = self.progress.step
        torch.manual_seed(hash((self.recipe.seed, step)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(step / self.steps_per_epoch)
        targets_BK = self.targets_NK[batch.indices_B].to(self.device, non_blocking=True)
        x_BCHW = self.device_transform(batch.images_BCHW.to(self.device, non_blocking=True))
        if self.mix is not None:
            x_BCHW, targets_BK = self.mix(x_BCHW, targets_BK)
        count = max(1, len(x_BCHW) - self._left_out())
        x_BCHW, targets_BK = x_BCHW[:count], targets_BK[:count]
        if self.recipe.channels_last:
            x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        loss = self._loss(x_BCHW, targets_BK)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"loss is {value} at step {step}; the last checkpoint is good: lower lr or set precision=fp32"
            )
        self.accelerator.backward(loss)
        if self.recipe.clip_grad:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.accelerator.unwrap_model(self.model), step=step)
        return value

    def _left_out(self) -> int:
        """How many images to take from a step, so that a multiplexed model sees groups that are not full."""
        width = getattr(self.accelerator.unwrap_model(self.model), "mux_width", 1)
        short = width > 1 and torch.rand(()).item() < self.recipe.short_groups
        return int(torch.randint(1, width, ())) if short else 0

    def _loss(self, x_BCHW: Tensor, targets_BK: Tensor) -> Tensor:
        warming_up = self.progress.step < self.recipe.retrieval_epochs * self.steps_per_epoch
        share = self.recipe.retrieval
        if not (warming_up or share):
            return self._task_loss(self.forward(x_BCHW), x_BCHW, targets_BK)
        output, found_BC, own_BC = self.forward(x_BCHW, retrieve=True)
        retrieval = retrieval_loss(found_BC, own_BC)
        if warming_up:
            return retrieval
        return share * retrieval + (1 - share) * self._task_loss(output, x_BCHW, targets_BK)

    def _task_loss(self, output: Any, x_BCHW: Tensor, targets_BK: Tensor) -> Tensor:
        logits_BK, distilled_BK = output if isinstance(output, tuple) else (output, output)
        loss = soft_cross_entropy(logits_BK, targets_BK)
        if self.teacher is None:
            return loss
        kind, alpha = self.recipe.distill, self.recipe.distill_alpha
        teacher_BK = self.teacher(x_BCHW)
        distilled = distillation_loss(distilled_BK, teacher_BK, kind, self.recipe.distill_temperature)
        return (1 - alpha) * loss + alpha * distilled

    def _load_teacher(self) -> None:
        """Set the target shares of every picture, (N, K), and the teacher to ask at every step, if any."""
        recipe, labels_N = self.recipe, torch.from_numpy(self.train_source.labels)
        self.targets_NK = smooth_targets(labels_N, self.spec.num_classes, recipe.label_smoothing)
        self.teacher = load_teacher(recipe, self.spec.num_classes)
        if self.teacher is None:
            return
        self.teacher.to(self.device)
        if recipe.teacher_cache:
            path = self.out / "teacher_logits.safetensors"
            preprocess = replace(self.preprocess, image_size=self.teacher.image_size)
            logits_NK = cached_logits(self.teacher, self.train_source, preprocess, path, recipe.workers)
            shares_NK = teacher_shares(logits_NK, recipe.distill, recipe.distill_temperature)
            self.targets_NK = torch.lerp(self.targets_NK, shares_NK, recipe.distill_alpha)
            self.teacher = None

    def _load_pictures(self) -> None:
        recipe, accelerator = self.recipe, self.accelerator
        side = recipe.augment_size or recipe.image_size
        transform = augment_pictures(
            (side, side), crop_scale=recipe.crop_scale, hflip=recipe.hflip, rand_augment=recipe.rand_augment
        )
        pictures = AugmentedPictures(self.train_source, transform, recipe.seed)
        self.keys = ShuffledKeys(
            len(pictures),
            recipe.batch_size,
            recipe.seed,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self.steps_per_epoch = len(self.keys)
        if not self.steps_per_epoch:
            raise DataError(
                f"expected at least {recipe.batch_size} training pictures (batch_size), got {len(pictures)}"
            )
        self.batches = training_batches(pictures, self.keys, recipe.workers)

    def _averaged(self) -> Any:
        if not self.recipe.ema:
            return None
        ema = require("timm.utils.model_ema", "train").ModelEmaV3
        return ema(self.accelerator.unwrap_model(self.model), decay=self.recipe.ema, use_warmup=True)

    def _evaluate(self) -> Scores:
        weights = self._weights()
        return score(
            TorchEngine(weights, self.device),
            self.val_source,
            self.preprocess,
            workers=max(1, self.recipe.workers),
            mux_width=getattr(weights, "mux_width", 1),
        )

    def _weights(self) -> nn.Module:
        """The module whose weights are evaluated and saved: the moving average, where there is one."""
        weights: nn.Module = (
            self.accelerator.unwrap_model(self.model) if self.ema is None else self.ema.module
        )
        return weights

    def _resume(self) -> None:
        progress = load_state(self._checkpoint("last"), self._modules(), self.optimizer, self._identity())
        if progress is not None:
            self.progress = progress
            say(f"resumed at step {progress.step} of {self.recipe.epochs * self.steps_per_epoch}")

    def _save(self, scores: Scores | None) -> None:
        if not self.accelerator.is_main_process:
            return
        best = scores is not None and scores.top1 > self.progress.best_top1
        if best and scores is not None:
            self.progress = replace(self.progress, best_top1=scores.top1)
        save_state(self._checkpoint("last"), self.progress, self._modules(), self.optimizer, self._identity())
        metadata = {
            "class_names": list(self.train_source.class_names),
            "preprocess": to_mapping(self.preprocess),
            "provenance": provenance()
            | {
                "recipe": recipe_values(self.recipe),
                "data": self.train_source.fingerprint,
                **asdict(self.progress),
            },
        }
        for name in ("last", "best") if best else ("last",):
            self._checkpoint(name).mkdir(parents=True, exist_ok=True)
            save_weights(self._checkpoint(name) / "model.safetensors", self._weights(), metadata)

    def _log(self, epoch: int, loss: float, scores: Scores | None) -> None:
        row = {
            "epoch": epoch + 1,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": loss,
            "seconds": self.progress.seconds,
            **(scores.to_dict() if scores else {}),
        }
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        accuracy = f", top-1 {scores.top1:.3f}, top-5 {scores.top5:.3f}" if scores else ""
        done = f"epoch {epoch + 1}/{self.recipe.epochs}, {self.progress.seconds:.0f} s"
        say(f"{done}: loss {loss:.3f}{accuracy}")

    def _modules(self) -> dict[str, nn.Module]:
        modules = {"model": self.accelerator.unwrap_model(self.model)}
        return modules if self.ema is None else modules | {"ema": self.ema.module}

    def _identity(self) -> dict[str, Any]:
        """What must agree to continue a checkpoint; the learning rate follows a changed number of epochs."""
        free = {"epochs", "workers", "save_minutes", "eval_every", "compile", "limit_val"}
        recipe = {key: value for key, value in recipe_values(self.recipe).items() if key not in free}
        return {"recipe": recipe, "model": to_mapping(self.spec), "data": self.train_source.fingerprint}

    def _checkpoint(self, name: str) -> Path:
        return self.out / "checkpoints" / name


def _precision(recipe: Recipe) -> str:
    chosen = (
        ("bf16" if torch.cuda.is_available() else "fp32") if recipe.precision == "auto" else recipe.precision
    )
    return "no" if chosen == "fp32" else chosen


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """No decay on norms, biases, attention biases, position tables, embeddings and learned tokens."""

    def decays(name: str, parameter: nn.Parameter) -> bool:
        last = name.rpartition(".")[2]
        return parameter.ndim > 1 and "bias" not in last and not last.endswith(("_embed", "_token"))

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if decays(name, p)]
    free = [p for name, p in named if not decays(name, p)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
