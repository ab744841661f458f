"""What a training run does, as a frozen value: shipped as YAML, overridden by `key=value`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from vitesse.errors import ConfigError, did_you_mean, require
from vitesse.spec import from_mapping


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run. Lengths are in epochs, sizes in pixels, `lr` for the batch size given here.

    Attributes:
        image_size: side of the model's square input.
        augment_size: side at which pictures are cropped and augmented; None takes `image_size`. Small
            pictures are augmented at their own size and enlarged on the training device.
        resize, crop_pct: how evaluation pictures become inputs, see `PreprocessSpec`.
        precision: `auto` is bf16 on a GPU and fp32 on a CPU.
        compile: run the training step through `torch.compile`.
        ema: decay of the weights' moving average, which is what is evaluated and saved; 0 is off.
        rand_augment: timm's RandAugment policy; empty is off.
        crop_scale: smallest and largest share of the picture that a random crop keeps.
        mixup, cutmix: strength (alpha) of each; 0 is off. `mix_prob` is the share of mixed batches.
        init: safetensors to start from, of this architecture or of one that can start it, such as a plain ViT
            for multiplexed ones; a head of another number of classes starts fresh.
        retrieval_epochs: of multiplexed models: so many epochs at first teach only to find, among the images
            of a batch, the one that lies in a slot (DataMUX, arXiv 2202.09318, section 3.3).
        retrieval: share of that in the loss afterwards.
        short_groups: of multiplexed models: share of steps whose last group is not full.
        teacher: `timm:NAME`, a Vitesse checkpoint, or empty for none.
        teacher_weights: safetensors for a `timm:` teacher.
        distill: `soft` (KL at `distill_temperature`) or `hard` (the teacher's first choice).
        distill_alpha: share of the teacher in the loss.
        teacher_cache: ask the teacher once a picture (mean of the plain and mirrored view) instead of at
            every step: far cheaper, for training without a GPU.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        save_minutes: minutes between checkpoints within an epoch.
    """

    epochs: int = 30
    batch_size: int = 128
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    clip_grad: float = 1.0
    image_size: int = 224
    augment_size: int | None = None
    resize: Literal["crop", "squash"] = "crop"
    crop_pct: float = 0.875
    seed: int = 0
    workers: int = 2
    limit_train: int | None = None
    limit_val: int | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    ema: float = 0.0
    drop_path_rate: float = 0.0
    label_smoothing: float = 0.1
    rand_augment: str = ""
    crop_scale: tuple[float, float] = (0.35, 1.0)
    hflip: float = 0.5
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
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
    eval_every: int = 1
    save_minutes: float = 10.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "image_size", "eval_every"):
            _expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("lr", "distill_temperature"):
            _expect(getattr(self, name) > 0, name, "more than 0", getattr(self, name))
        for name in ("label_smoothing", "hflip", "mix_prob", "distill_alpha", "retrieval", "short_groups"):
            _expect(0 <= getattr(self, name) <= 1, name, "0 to 1", getattr(self, name))
        for name in (
            "warmup_epochs",
            "weight_decay",
            "clip_grad",
            "mixup",
            "cutmix",
            "workers",
            "retrieval_epochs",
        ):
            _expect(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        _expect(0 <= self.ema < 1, "ema", "a decay below 1", self.ema)
        low, high = self.crop_scale
        _expect(0 < low <= high <= 1, "crop_scale", "0 < low <= high <= 1", self.crop_scale)

    def lr_at(self, epoch: float) -> float:
        """Learning rate after so many epochs: linear warm-up, then half a cosine down to `min_lr`."""
        if epoch < self.warmup_epochs:
            return self.lr * max(epoch / self.warmup_epochs, 1e-3)
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def shipped_recipes() -> tuple[str, ...]:
    """Names of the recipes in the package."""
    folder = resources.files("vitesse.train") / "recipes"
    return tuple(
        sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    )


def load_recipe(name: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
    """A shipped recipe by name, or a YAML file, with overrides (`key=value` texts or a mapping).

    Raises:
        ConfigError: no such recipe, unreadable YAML, an unknown key, or a value of the wrong kind.
    """
    values = _read_yaml(name)
    changes = overrides if isinstance(overrides, Mapping) else _parse_overrides(overrides)
    return recipe_from(values | dict(changes))


def recipe_from(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values, each checked against its field's type.

    Raises:
        ConfigError: an unknown key, or a value of the wrong kind.
    """
    hints = get_type_hints(Recipe)
    return from_mapping(Recipe, {key: _coerce(key, value, hints.get(key)) for key, value in values.items()})


def _read_yaml(name: str | Path) -> dict[str, Any]:
    yaml = require("yaml", "train")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if str(name) not in shipped_recipes():
            raise ConfigError(
                f"no recipe is named {str(name)!r}; {did_you_mean(str(name), shipped_recipes())}"
            )
        text = (resources.files("vitesse.train") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"recipe {path}: {error.strerror}") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {name}: not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {name}: expected `key: value` lines, got {type(values).__name__}")
    return values


def _parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    yaml = require("yaml", "train")
    values: dict[str, Any] = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"expected key=value, got {text!r}")
        try:
            values[key] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"{key}: expected a YAML value, got {value!r}") from error
    return values


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type: YAML reads 1e-3 as text and [a, b] as a list."""
    if hint is None:
        return value
    kinds = get_args(hint)
    if kinds and all(isinstance(kind, str) for kind in kinds):  # Literal
        _expect(value in kinds, key, " or ".join(kinds), value)
        return value
    if value is None:
        _expect(type(None) in kinds, key, "a value", value)
        return None
    if hint == tuple[float, float]:
        _expect(isinstance(value, (list, tuple)) and len(value) == 2, key, "two numbers", value)
        return tuple(_number(key, item, float) for item in value)
    if hint is bool or hint is str:
        _expect(isinstance(value, hint), key, "true or false" if hint is bool else "text", value)
        return value
    return _number(key, value, int if int in (hint, *kinds) else float)


def _number(key: str, value: Any, kind: type[int] | type[float]) -> float:
    try:
        number = kind(value)
    except (TypeError, ValueError):
        number = None
    whole = kind is float or (number is not None and str(number) == str(value))
    _expect(
        number is not None and whole and not isinstance(value, bool),
        key,
        f"a number ({kind.__name__})",
        value,
    )
    assert number is not None
    return number


def _expect(holds: bool, key: str, expected: str, got: Any) -> None:
    if not holds:
        raise ConfigError(f"recipe {key}: expected {expected}, got {got!r}")


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(recipe).items()
    }
