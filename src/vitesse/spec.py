"""What a model, a feature map, a preprocessing and an artefact are: frozen values, no torch.

Every class here reads from and writes to plain JSON. Unknown keys are refused, never ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from numbers import Integral
from typing import Any, Literal, TypeVar, get_args

from vitesse.errors import ConfigError, did_you_mean

T = TypeVar("T")
Task = Literal["classify", "detect", "segment", "promptable"]
Resize = Literal["crop", "squash", "fit", "short"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MANIFEST_SCHEMA = 1
PROMPT_FRAME = 1024
"""Longer side in pixels of the picture in which prompts to a `promptable` model are given."""


class PromptKind(IntEnum):
    """What a point is to the decoder of a `promptable` model; `NO_POINT` stands where there is no box."""

    NO_POINT = -1
    BACKGROUND = 0
    FOREGROUND = 1
    TOP_LEFT = 2
    BOTTOM_RIGHT = 3


def from_mapping(cls: type[T], raw: Mapping[str, Any]) -> T:
    """Build a frozen dataclass from a mapping; lists become tuples, unknown or missing keys are refused.

    Raises:
        ConfigError: a key is unknown, or a key without default is missing.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in raw:
        if key not in fields:
            raise ConfigError(f"{cls.__name__}: unknown key {key!r}; {did_you_mean(key, fields)}")
    no_default = dataclasses.MISSING
    missing = [
        name
        for name, f in fields.items()
        if name not in raw and f.default is no_default and f.default_factory is no_default
    ]
    if missing:
        raise ConfigError(
            f"{cls.__name__}: missing {', '.join(missing)}; given were {', '.join(raw) or 'none'}"
        )
    return cls(**{key: _freeze(value) for key, value in raw.items()})


def to_mapping(value: Any) -> dict[str, Any]:
    """The plain-JSON form of a frozen dataclass: tuples become lists, nested specs become mappings."""
    return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """`224` or `(height, width)` as (height, width) in pixels.

    Raises:
        ConfigError: a side is not a positive whole number, or there are not two.
    """
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, (tuple, list)) or len(sides) != 2 or not all(map(_is_positive, sides)):
        got = "x".join(map(str, sides)) if isinstance(sides, (tuple, list)) else repr(sides)
        raise ConfigError(f"image size: expected positive whole numbers of pixels, one or two, got {got}")
    return sides[0], sides[1]


def _is_positive(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 1


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """One feature map that a backbone returns: `channels` wide, one cell per `stride` input pixels."""

    name: str
    channels: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Enough to rebuild a model without its weights.

    Attributes:
        name: registry name, such as `efficientvit_m1`, or `timm:NAME` for a timm model.
        image_size: (height, width) in pixels that the model is built for.
        in_chans: image channels.
        num_classes: classes of the head.
        distilled: a second, distillation head exists.
        drop_path_rate: stochastic depth at the last block, 0 to 1; it rises linearly from 0 at the first.
        variant: what differs from the configuration of `name`, by the family's own keys, such as `depths`.
    """

    name: str
    image_size: tuple[int, int] = (224, 224)
    in_chans: int = 3
    num_classes: int = 1000
    distilled: bool = False
    drop_path_rate: float = 0.0
    variant: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.variant, Mapping):
            raise ConfigError(f"variant: expected keys with values, got {self.variant!r}")
        frozen = {key: _freeze(value) for key, value in self.variant.items()}
        object.__setattr__(self, "variant", frozen)
        object.__setattr__(self, "image_size", as_size(self.image_size))
        if not isinstance(self.name, str):
            raise ConfigError(f"name: expected a text, got {self.name!r}")
        for key in ("in_chans", "num_classes"):
            if not _is_positive(getattr(self, key)):
                raise ConfigError(f"{key}: expected a whole number of at least 1, got {getattr(self, key)!r}")
        if not isinstance(self.distilled, bool):
            raise ConfigError(f"distilled: expected true or false, got {self.distilled!r}")
        if not isinstance(self.drop_path_rate, (int, float)) or not 0 <= self.drop_path_rate < 1:
            raise ConfigError(f"drop_path_rate: expected 0 <= rate < 1, got {self.drop_path_rate!r}")


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """How a picture becomes a tensor, deterministically: resize, crop, scale to 0..1, normalise.

    Attributes:
        image_size: (height, width) of the result in pixels.
        resize: `crop` resizes the shorter side to `image_size / crop_pct` and takes the centre;
            `squash` resizes both sides to `image_size` and keeps the whole picture; `fit` keeps the picture's
            shape too, and fills up with the mean at the bottom or the right; `short` resizes the shorter side
            to that of `image_size` and the longer one to the next multiple of 32 of what keeps the shape, so
            that each picture has a size of its own, for models that take any.
        crop_pct: share of the resized shorter side that the centre crop keeps, 0 to 1.
        interpolation: antialiased resampling filter.
        mean, std: per channel, of pixel values in 0..1.
    """

    image_size: tuple[int, int] = (224, 224)
    resize: Resize = "crop"
    crop_pct: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        as_size(self.image_size)
        if self.resize not in get_args(Resize):
            raise ConfigError(f"resize: expected {', '.join(get_args(Resize))}, got {self.resize!r}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"interpolation: expected bilinear or bicubic, got {self.interpolation!r}")
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct: expected 0 < share <= 1, got {self.crop_pct}")
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ConfigError(
                f"mean and std: expected one positive std a mean, got {self.mean} and {self.std}"
            )

    @property
    def of_one_size(self) -> PreprocessSpec:
        """The same, where every picture becomes `image_size`."""
        return dataclasses.replace(self, resize="squash") if self.resize == "short" else self


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artefact says of itself; stored as JSON in the ONNX file's metadata under `vitesse`.

    Attributes:
        task: what the outputs mean. `classify`: logits (B, num_classes). `detect`: `boxes` (B, N, 4), left,
            top, right and bottom in pixels of the input; `scores` (B, N) in 0..1, highest first; `labels`
            (B, N); what is left of the N has score 0; of instance segmentation also `masks` (B, N, h, w),
            probabilities spread evenly over each box. `segment`: `classes` (B, H, W), a class index for each
            pixel of the input, and the `logits` (B, num_classes, h, w) that they were made from.
            `promptable`: two files. The encoder's `image_embedding` (B, C, h, w); and the decoder's `masks`
            (N, M, 4h, 4w), logits, and `quality` (N, M), their expected IoU. The decoder takes `prompts`
            (N, P, 3), x, y and `PromptKind` of the points of N objects, and one `image_embedding`. Of the M
            masks the first is for clear prompts, the others are alternatives.
        model: the spec of the model inside.
        class_names: one name per class index.
        preprocess: the preprocessing that the weights expect.
        precision: `fp32`, `fp16` or `int8`.
        decoder: of a `promptable` model's encoder, NAME.onnx, the SHA-256 of its decoder, NAME.decoder.onnx;
            of that decoder empty.
        mux_width: pictures that share a pass; of a batch each so many in their order, 1 for none.
        trained_on: the dataset, as a person would name it.
        licence: SPDX identifier or a short sentence.
        accuracy: of this very file: `dataset`, `split`, `top1`, `top5` (fractions), `images`; of a
            multiplexed model also `slots` and `agreement`, see `vitesse.metrics`.
        parity: largest |difference| of logits against the torch model, by engine, with `images` compared; of
            segmentation also `equal_pixels`, the share of pixels with torch's class on the worst engine; of
            detection, where the difference is that of scores, `equal_boxes` and `equal_masks`: the shares of
            torch's surest boxes found, and of their masks' pixels on torch's side of the edge; for int8 that
            of the float32 graph it was made from.
        calibration: how an int8 file was calibrated.
        provenance: recipe, command, seed, commit, hardware, time of the training run.
        tools: versions of the programs that wrote the file.
    """

    model: ModelSpec
    class_names: tuple[str, ...]
    preprocess: PreprocessSpec
    task: Task = "classify"
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    decoder: str = ""
    mux_width: int = 1
    trained_on: str = ""
    licence: str = ""
    accuracy: Mapping[str, Any] | None = None
    parity: Mapping[str, float] | None = None
    calibration: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    schema: int = MANIFEST_SCHEMA

    def __post_init__(self) -> None:
        if self.schema != MANIFEST_SCHEMA:
            raise ConfigError(
                f"manifest schema: this Vitesse reads {MANIFEST_SCHEMA}, the file has {self.schema}; "
                "upgrade vitesse or export the model again"
            )
        if self.task not in get_args(Task):
            raise ConfigError(f"manifest task: expected {', '.join(get_args(Task))}, got {self.task!r}")
        if self.mux_width < 1:
            raise ConfigError(f"manifest mux_width: expected at least 1, got {self.mux_width}")
        if len(self.class_names) != self.model.num_classes:
            raise ConfigError(
                f"manifest: expected {self.model.num_classes} class names, got {len(self.class_names)}"
            )
        if self.preprocess.image_size != self.model.image_size:
            raise ConfigError(
                f"manifest: the model takes {self.model.image_size} pixels, "
                f"preprocess makes {self.preprocess.image_size}"
            )
        if self.task != "classify" and self.preprocess.resize == "crop":
            raise ConfigError(
                f"manifest: to {self.task}, preprocess must keep the whole picture: squash, fit or short"
            )
        if len(self.preprocess.mean) != self.model.in_chans:
            raise ConfigError(
                f"manifest: the model takes {self.model.in_chans} channels, "
                f"preprocess has {len(self.preprocess.mean)} means"
            )

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        return to_mapping(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Manifest:
        """Read `to_dict`'s form.

        Raises:
            ConfigError: an unknown or missing key, or values that disagree with each other.
        """
        parts = dict(raw)
        if isinstance(parts.get("model"), Mapping):
            parts["model"] = from_mapping(ModelSpec, parts["model"])
        if isinstance(parts.get("preprocess"), Mapping):
            parts["preprocess"] = from_mapping(PreprocessSpec, parts["preprocess"])
        return from_mapping(cls, parts)
