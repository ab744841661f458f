"""What a training run does, as a frozen value: shipped as YAML, overridden by `key=value`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from vitesse.errors import ConfigError

AT_LEAST_ONE = ("epochs", "batch_size", "accumulate", "image_size", "repeats", "eval_every", "max_bad_steps")
MORE_THAN_NONE = ("lr", "distill_temperature", "ema_ramp")
SHARES = (
    *(
        "label_smoothing",
        "hflip",
        "vflip",
        "mix_prob",
        "random_erase",
        "distill_alpha",
        "retrieval",
        "short_groups",
    ),
    *("mesa_from", "drop_path_rate"),
)
NOT_NEGATIVE = (
    *(
        "min_lr",
        "warmup_lr",
        "warmup_epochs",
        "lr_batch_size",
        "weight_decay",
        "clip_grad",
        "mixup",
        "cutmix",
    ),
    *("color_jitter", "class_weight", "workers", "retrieval_epochs", "mesa"),
    *("save_minutes", "log_every"),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run. Lengths are in epochs, sizes in pixels.

    Attributes:
        batch_size: images in one optimisation step, over all processes.
        accumulate: parts in which each process computes a step, for models that do not fit otherwise.
        lr: for `lr_batch_size` images a step, and scaled linearly to `batch_size`; 0 takes `lr` as it is.
        warmup_lr: learning rate before the first step; it then rises linearly for `warmup_epochs`.
        schedule: `cosine` falls from the end of the warm-up on, a little at every step. `cosine_epochs` is
            timm's, as DeiT, EfficientViT (MSRA) and SHViT were trained with it: counted from the first epoch
            and set after each by the number of that epoch, so that the first two have `warmup_lr`.
        weight_decay: of AdamW; none on norms, biases, attention biases, position tables and learned tokens.
        clip_grad: largest norm of the gradient, 0 is off; with `clip_mode` agc, largest share of each
            unit's own norm (adaptive gradient clipping, arXiv 2102.06171).
        max_bad_steps: steps in a row without finite loss and gradient after which a run is given up.
        image_size: side of the model's square input, or its width where `image_height` says another height.
        augment_size: side at which pictures are cropped and augmented; None takes `image_size`. Small
            pictures are augmented at their own size and enlarged on the training device.
        train_sizes: sides to train at instead of `image_size`; `size_order` `random` draws one for every
            step, `growing` gives each, in this order, an equal share of the epochs.
        resize, crop_pct: how evaluation pictures become inputs, see `PreprocessSpec`.
        precision: `auto` is bf16 on a GPU and fp32 on a CPU.
        compile: run the training step through `torch.compile`.
        sync_bn: BatchNorm over the images of all processes; GPUs only.
        shard: every process keeps a part of weights, gradients, moments and average instead of the whole, and
            gets the others' when they are used; needs several processes.
        ema: decay of the weights' moving average; 0 is off. With `ema_warmup` it begins near 0, so that short
            runs forget where they began: `power` is 1 - (1 + step)^(-2/3), at most `ema`; `exponential` is
            ema (1 - exp(-step / ema_ramp)); `none` is `ema` from the first step on.
        evaluate_ema: the average is what is evaluated and saved as the model; else it is saved beside it.
        bn_images: so many training pictures to estimate BatchNorm's statistics anew before an evaluation.
        distilled: give the model a second head, where its family has one; it learns from the teacher alone.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0 at the first.
        drop_path_skip: let it rise branch by branch instead, after so many without any, as EfficientViT (MIT)
            was trained; None rises block by block.
        drop_path_ramp: scale it with the share of the run that is done.
        rand_augment: timm's RandAugment policy; empty is off.
        crop_scale: smallest and largest share of the picture that a random crop keeps.
        scale: of pictures with boxes or label maps: smallest and largest size at which they are shown, of the
            size at which they fit the input (boxes), or of their own size (label maps).
        box_crop: which part of a picture with boxes is shown, see `AugmentBoxes`.
        crop_size: of pictures with label maps: (height, width) of the parts trained on; empty: the input's.
        hflip, vflip: share of pictures whose left and right, top and bottom, are exchanged.
        repeats: copies of a picture in a step, each augmented in another way; an epoch then has accordingly
            fewer pictures (repeated augmentation, arXiv 1902.05509).
        mixup, cutmix: strength (alpha) of each; 0 is off. `mix_prob` is the share of mixed batches.
        loss: `bce` is a sigmoid for every class (arXiv 2110.00476), mean over classes.
        class_weight: of label maps: how much more the pixels of rare classes count in the loss,
            (median frequency / frequency) ** class_weight; 1 is median frequency balancing
            (arXiv 1411.4734), 0 counts all alike.
        init: `published` starts from the architecture's default published weights, `auto` as well where they
            can be had; or safetensors of this architecture, or of one that can start it, such as a plain ViT
            for multiplexed ones; a head of another number of classes starts fresh. Empty: from scratch.
        retrieval_epochs: of multiplexed models: so many epochs at first teach only to find, among the images
            of a batch, the one that lies in a slot (DataMUX, arXiv 2202.09318, section 3.3).
        retrieval: share of that in the loss afterwards.
        short_groups: of multiplexed models: share of steps whose last group is not full.
        teacher: `timm:NAME`, a Vitesse checkpoint, or empty for none. Pictures are resized and normalised for
            it as it expects them.
        teacher_weights: safetensors for a `timm:` teacher; empty fetches timm's own from the Hub.
        distill: `soft` (KL at `distill_temperature`) or `hard` (the teacher's first choice).
        distill_alpha: share of the teacher in the loss.
        teacher_cache: ask the teacher once a picture (mean of the plain and mirrored view) instead of at
            every step: far cheaper, for training without a GPU.
        mesa: weight of the loss towards the moving average's prediction, in the part of the run that begins
            with the share `mesa_from` (memory-efficient sharpness-aware training, arXiv 2205.14083).
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        save_minutes: minutes between checkpoints within an epoch.
        log_every: steps between records; 0 is about 50 records an epoch.
        trackers: `tensorboard`, `wandb`, `mlflow`: who else is told.
    """

    epochs: int = 30
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 1e-3
    lr_batch_size: int = 0
    min_lr: float = 1e-6
    warmup_lr: float = 1e-6
    warmup_epochs: float = 1.0
    schedule: Literal["cosine", "cosine_epochs"] = "cosine"
    weight_decay: float = 0.05
    clip_grad: float = 1.0
    clip_mode: Literal["norm", "agc"] = "norm"
    max_bad_steps: int = 20
    image_size: int = 224
    image_height: int | None = None
    augment_size: int | None = None
    train_sizes: tuple[int, ...] = ()
    size_order: Literal["random", "growing"] = "random"
    resize: Literal["crop", "squash", "fit"] = "crop"
    crop_pct: float = 0.875
    seed: int = 0
    workers: int = 2
    limit_train: int | None = None
    limit_val: int | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    sync_bn: bool = False
    shard: bool = False
    ema: float = 0.0
    ema_warmup: Literal["power", "exponential", "none"] = "power"
    ema_ramp: float = 2000.0
    evaluate_ema: bool = True
    bn_images: int = 0
    distilled: bool = False
    drop_path_rate: float = 0.0
    drop_path_skip: int | None = None
    drop_path_ramp: bool = False
    label_smoothing: float = 0.1
    rand_augment: str = ""
    color_jitter: float = 0.0
    crop_scale: tuple[float, float] = (0.35, 1.0)
    scale: tuple[float, float] = (0.5, 2.0)
    box_crop: Literal["jitter", "overlap", "none"] = "jitter"
    crop_size: tuple[int, ...] = ()
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    hflip: float = 0.5
    vflip: float = 0.0
    random_erase: float = 0.0
    repeats: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    class_weight: float = 0.0
    init: str = ""
    retrieval_epochs: float = 0.0
    retrieval: float = 0.0
    short_groups: float = 0.25
    teacher: str = ""
    teacher_weights: str = ""
    distill: Literal["soft", "hard"] = "soft"
    distill_alpha: float = 0.5
    distill_temperature: float = 1.0
    teacher_cache: bool = False
    mesa: float = 0.0
    mesa_from: float = 0.25
    eval_every: int = 1
    save_minutes: float = 10.0
    log_every: int = 0
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in MORE_THAN_NONE:
            expect(getattr(self, name) > 0, name, "more than 0", getattr(self, name))
        for name in SHARES:
            expect(0 <= getattr(self, name) <= 1, name, "0 to 1", getattr(self, name))
        for name in NOT_NEGATIVE:
            expect(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        expect(0 <= self.ema < 1, "ema", "a decay below 1", self.ema)
        expect(math.isfinite(self.lr), "lr", "a finite number", self.lr)
        expect(self.drop_path_rate < 1, "drop_path_rate", "a share below 1", self.drop_path_rate)
        expect(self.seed >= 0, "seed", "0 or more", self.seed)
        for name in ("limit_train", "limit_val", "augment_size", "image_height"):
            value = getattr(self, name)
            expect(value is None or value >= 1, name, "at least 1", value)
        low, high = self.crop_scale
        expect(0 < low <= high <= 1, "crop_scale", "0 < low <= high <= 1", self.crop_scale)
        low, high = self.scale
        expect(0 < low <= high, "scale", "0 < low <= high", self.scale)
        part = self.crop_size
        expect(not part or (len(part) == 2 and min(part) >= 1), "crop_size", "height and width", part)
        skip = self.drop_path_skip
        expect(skip is None or skip >= 0, "drop_path_skip", "0 or more", skip)
        pictures = self.bn_images
        expect(pictures == 0 or pictures > 1, "bn_images", "0, or at least 2 pictures", pictures)
        sizes = self.train_sizes
        expect(all(size >= 1 for size in sizes), "train_sizes", "sides of at least 1 pixel", sizes)
        expect(not self.mesa or self.ema > 0, "mesa", "ema above 0 beside it", self.mesa)
        taught = bool(self.teacher) and not self.teacher_cache
        expect(not self.distilled or taught, "distilled", "teacher= and teacher_cache=false beside it", True)
        expect(not (self.compile and self.drop_path_ramp), "drop_path_ramp", "compile=false beside it", True)
        if self.shard:
            expect(self.precision != "fp16", "precision", "bf16 or fp32 beside shard=true", self.precision)
            expect(self.clip_mode == "norm", "clip_mode", "norm beside shard=true", self.clip_mode)
            expect(not self.compile, "compile", "false beside shard=true", True)
        known = {"tensorboard", "wandb", "mlflow"}
        expect(set(self.trackers) <= known, "trackers", f"some of {', '.join(sorted(known))}", self.trackers)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the model's input."""
        return self.image_height or self.image_size, self.image_size

    @property
    def peak_lr(self) -> float:
        """The highest learning rate, scaled to the batch size."""
        return self.lr * (self.batch_size / self.lr_batch_size if self.lr_batch_size else 1)


def check_all_classes_alike(recipe: Recipe) -> None:
    """
    Raises:
        ConfigError: it weighs the pixels of classes, and there are none.
    """
    weight = recipe.class_weight
    expect(weight == 0, "class_weight", "0.0, since it is for label maps alone", weight)


def expect(holds: bool, key: str, expected: str, got: Any) -> None:
    """Refuse a recipe's value.

    Raises:
        ConfigError: it does not hold.
    """
    if not holds:
        raise ConfigError(f"recipe {key}: expected {expected}, got {got!r}")


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(recipe).items()
    }
