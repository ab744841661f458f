"""What a run is made of, from its recipe: pictures, model, devices, targets.

Shape suffixes: N pictures of the source, K classes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, ProjectConfiguration
from torch import Tensor, nn

from vitesse.data.sampler import Share
from vitesse.data.sources import Source, hold_out, open_source, take
from vitesse.data.transforms import Augment
from vitesse.errors import ConfigError, DataError, WeightsError
from vitesse.models import build
from vitesse.models.multiplex import Multiplexer
from vitesse.progress import say
from vitesse.spec import ModelSpec
from vitesse.train.losses import smooth_targets, teacher_shares
from vitesse.train.recipe import Recipe
from vitesse.train.record import check_trackers
from vitesse.weights.hub import fetch_pretrained
from vitesse.weights.load import start_from

HELD_OUT_SHARE = 0.1


def splits(data: str | Path, recipe: Recipe) -> tuple[Source, Source]:
    """Training and held-out pictures: two splits of the data, or a seeded tenth of each class held out.

    Raises:
        DataError: the data cannot be read, its splits hold different classes, or none is held out.
    """
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
    train_source = take(train_source, recipe.limit_train, recipe.seed)
    val_source = take(val_source, recipe.limit_val, recipe.seed)
    if not len(val_source):
        raise DataError(
            f"{data}: no picture is left to evaluate with; expected a test split, or "
            f"{round(0.5 / HELD_OUT_SHARE) + 1} pictures of a class"
        )
    return train_source, val_source


def make_accelerator(recipe: Recipe, out: Path) -> Accelerator:
    """Devices, processes and precision; several processes without an accelerator talk through gloo."""
    on_cpu = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    precision = _precision(recipe)
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()  # of an earlier run in this process
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=precision,
        log_with=check_trackers(recipe) or None,
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "trackers")),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=recipe.retrieval_epochs > 0)],
    )
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if sharded and recipe.ema:
        raise ConfigError("recipe ema: no moving average with FSDP; set ema=0")
    if recipe.precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would take fp32
        raise ConfigError("recipe precision: fp16 needs a GPU; set precision=bf16 or fp32")
    if recipe.sync_bn and accelerator.device.type != "cuda":
        raise ConfigError("recipe sync_bn: needs GPUs; set sync_bn=false")
    return accelerator


def _precision(recipe: Recipe) -> str:
    chosen = (
        ("bf16" if torch.cuda.is_available() else "fp32") if recipe.precision == "auto" else recipe.precision
    )
    return "no" if chosen == "fp32" else chosen


def fitted(recipe: Recipe, num_images: int, share: Share) -> Recipe:
    """The recipe with a batch size that the pictures fill and the processes can share.

    Raises:
        ConfigError, DataError: there is none.
    """
    if recipe.batch_size % share.parts:
        raise ConfigError(
            f"recipe batch_size: expected a multiple of {share.world} processes times accumulate="
            f"{share.accumulate}, got {recipe.batch_size}"
        )
    if num_images >= recipe.batch_size:
        return recipe
    fitting = num_images // share.parts * share.parts
    if not fitting:
        raise DataError(f"expected at least {share.parts} training pictures, got {num_images}")
    say(f"{num_images} training pictures: batch_size is lowered from {recipe.batch_size} to {fitting}")
    return replace(recipe, batch_size=fitting)


def initial_model(spec: ModelSpec, recipe: Recipe) -> nn.Module:
    """The model as the recipe starts it."""
    model = build(spec)
    if (recipe.retrieval or recipe.retrieval_epochs) and not isinstance(model, Multiplexer):
        raise ConfigError(f"recipe retrieval: expected a multiplexed model, got {spec.name}")
    if recipe.init in ("auto", "published"):
        say(f"{spec.name}: fetching published weights to start from")
        try:
            say(f"{spec.name}: {start_from(model, fetch_pretrained(spec.name)).explain()}")
        except WeightsError as error:
            if recipe.init == "published":
                raise
            say(f"{error}; training from scratch, which needs far more pictures and epochs")
    elif recipe.init:
        say(f"{recipe.init}: {start_from(model, recipe.init).explain()}")
    if recipe.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return model.to(memory_format=torch.channels_last) if recipe.channels_last else model


def augmentation(recipe: Recipe) -> Augment:
    side = recipe.augment_size or max(recipe.image_size, *recipe.train_sizes, 0)
    return Augment(
        (side, side),
        crop_scale=recipe.crop_scale,
        hflip=recipe.hflip,
        color_jitter=recipe.color_jitter,
        rand_augment=recipe.rand_augment,
        interpolation=recipe.interpolation,
    )


def label_targets(recipe: Recipe, source: Source) -> Tensor:
    """The target shares of every picture, (N, K), from its label."""
    labels_N = torch.from_numpy(source.labels)
    return smooth_targets(labels_N, len(source.class_names), recipe.label_smoothing)


def taught_targets(recipe: Recipe, targets_NK: Tensor, logits_NK: Tensor) -> Tensor:
    """Target shares mixed once and for all with those of a teacher's logits."""
    shares_NK = teacher_shares(logits_NK, recipe.distill, recipe.distill_temperature)
    return torch.lerp(targets_NK, shares_NK, recipe.distill_alpha)
