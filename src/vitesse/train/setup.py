"""What a run is made of, from its recipe: pictures, model, devices, targets.

Shape suffixes: N pictures of the source, K classes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration
from torch import nn
from torch.distributed import PrefixStore, TCPStore, init_process_group  # type: ignore[attr-defined]

from vitesse.data.contract import Pictures
from vitesse.data.sampler import Share
from vitesse.data.subset import HELD_OUT_SHARE, hold_out, take
from vitesse.errors import ConfigError, DataError, WeightsError
from vitesse.models import build
from vitesse.models.backbone import DenseModel
from vitesse.models.foreign import is_timm, timm_weights
from vitesse.models.multiplex import Multiplexer
from vitesse.progress import say
from vitesse.spec import ModelSpec
from vitesse.train.optimizer import adamw, moving_average
from vitesse.train.recipe import Recipe
from vitesse.train.record import check_trackers
from vitesse.train.sharding import shard
from vitesse.train.tasks import Task
from vitesse.weights.hub import fetch, fetch_pretrained
from vitesse.weights.load import start_from

FEWEST_STEPS = 4
"""Of an epoch; where the pictures are too few for that, steps take fewer of them."""
SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""Ways of accelerate to spread one model over processes, instead of which there is the recipe's `shard`."""


def splits(task: Task, data: str | Path, recipe: Recipe) -> tuple[Pictures, Pictures]:
    """Training and held-out pictures: two splits of the data, or a seeded tenth of each class held out.

    Where data has a `val` split beside `test`, that one is held out.

    Raises:
        DataError: the data cannot be read, its splits hold different classes, or none is held out.
    """
    try:
        train_source, val_source = task.exam.open(data, "train"), task.exam.open(data, "val")
    except DataError as error:
        try:
            whole = task.exam.open(data, None)
        except DataError:
            raise error from None  # there are splits, and one of them cannot be read
        train_source, val_source = hold_out(whole, HELD_OUT_SHARE, recipe.seed)
    if _same_pictures(train_source, val_source):
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


def _same_pictures(one: Pictures, other: Pictures) -> bool:
    """Whether two splits are all of the same data, which has none. Fingerprints know no folders, names do."""
    if one.fingerprint != other.fingerprint:
        return False
    return not len(one) or one.name(0) == other.name(0)


def make_accelerator(recipe: Recipe, out: Path) -> Accelerator:
    """Devices, processes and precision; several processes without an accelerator talk through gloo.

    Raises:
        ConfigError: the processes were launched to share one model, or the recipe does not fit the devices.
    """
    for kind in SHARDING:
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true":
            raise ConfigError(
                f"launched with {kind}: launch with torchrun or accelerate launch --multi_gpu, and set "
                "shard=true to spread a model over processes"
            )
    _meet_after_restart()
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
    if recipe.precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would take fp32
        raise ConfigError("recipe precision: fp16 needs a GPU; set precision=bf16 or fp32")
    if recipe.sync_bn and accelerator.device.type != "cuda":
        raise ConfigError("recipe sync_bn: needs GPUs; set sync_bn=false")
    if recipe.shard and accelerator.num_processes == 1:
        raise ConfigError("recipe shard: needs several processes; launch with torchrun, or set shard=false")
    return accelerator


def _meet_after_restart() -> None:
    """Let the processes that torchrun started again on one machine find each other.

    Its store still says where those before them could be reached, so they use another part of it. On many
    machines the counts of restarts differ; there torchrun has to be told to make a new store.
    """
    environment = os.environ
    restarts = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    shares_store = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if restarts == "0" or not shares_store or environment["LOCAL_WORLD_SIZE"] != environment["WORLD_SIZE"]:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(environment["LOCAL_RANK"]))
    store = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    init_process_group(store=PrefixStore(f"restart {restarts}", store), rank=rank, world_size=world_size)


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
    if num_images >= FEWEST_STEPS * recipe.batch_size:
        return recipe
    fitting = 2 ** int(math.log2(max(num_images / FEWEST_STEPS, 1)))  # many numbers of processes divide it
    fitting = min(-(-fitting // share.parts) * share.parts, recipe.batch_size)
    if num_images < fitting:
        raise DataError(f"expected at least {fitting} training pictures, got {num_images}")
    say(f"{num_images} training pictures: batch_size is lowered from {recipe.batch_size} to {fitting}")
    return replace(recipe, batch_size=fitting)


def initial_model(spec: ModelSpec, recipe: Recipe, note: Callable[[str], None]) -> nn.Module:
    """The model as the recipe starts it; `note` is told with which weights."""
    model = build(spec)
    if (recipe.retrieval or recipe.retrieval_epochs) and not isinstance(model, Multiplexer):
        raise ConfigError(f"recipe retrieval: expected a multiplexed model, got {spec.name}")
    if recipe.init in ("auto", "published"):
        source = model.backbone.spec if isinstance(model, DenseModel) else spec
        try:
            path = _published(source)
            note(f"started from published weights of {source.name}: {start_from(model, path).explain()}")
        except WeightsError as error:
            if recipe.init == "published":
                raise
            note(f"{error}; training from scratch, which needs far more pictures and epochs")
    elif recipe.init:
        note(f"started from {recipe.init}: {start_from(model, recipe.init).explain()}")
    _check_sizes(model, recipe.train_sizes)
    if recipe.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return model.to(memory_format=torch.channels_last) if recipe.channels_last else model


def prepared(
    accelerator: Accelerator, model: nn.Module, recipe: Recipe
) -> tuple[nn.Module, AcceleratedOptimizer, nn.Module | None]:
    """The model as it is trained, its AdamW and its moving average; spread over processes with `shard`."""
    model = accelerator.prepare_model(model, evaluation_mode=recipe.shard)  # which leaves out DDP
    average = moving_average(accelerator.unwrap_model(model), recipe)
    if recipe.shard:
        shard(model, accelerator)
        if average is not None:
            shard(average, accelerator)
    return model, accelerator.prepare_optimizer(adamw(model, recipe)), average


def _published(spec: ModelSpec) -> Path:
    name = spec.name
    if spec.variant:
        raise WeightsError(f"a changed {name} has no published weights")
    say(f"{name}: fetching published weights to start from")
    return fetch(timm_weights(name)[0]) if is_timm(name) else fetch_pretrained(name)


@torch.no_grad()
def _check_sizes(model: nn.Module, sides: Iterable[int]) -> None:
    """
    Raises:
        ConfigError: the model cannot take pictures of one of these sides, in pixels.
    """
    model.eval()
    for side in sides:
        try:
            model(torch.zeros(1, 3, side, side))
        except (ConfigError, AssertionError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"recipe train_sizes: cannot train at {side} pixels: {reason}") from error
    model.train()
