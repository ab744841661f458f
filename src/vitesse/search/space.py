"""The architectures that a search chooses from: a family as ranges, a point in them as a model's spec.

Whatever combination is drawn can be built: widths are heads times the width of a head.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vitesse.errors import ConfigError, did_you_mean
from vitesse.models import efficientvit_msra, shvit
from vitesse.spec import ModelSpec

Value = int | str
Point = Mapping[str, Value]
Choices = range | tuple[Value, ...]
Stages = tuple[range, range, range]

STRIDE = 16
"""Pixels a position of the first stage."""
SHARES = 28
"""SHViT's attended channels are so many parts of a stage's; 6, as published, is one head in 4.67."""


@dataclass(frozen=True, kw_only=True)
class Space(ABC):
    """A family's architectures.

    Attributes:
        image_sizes: sides in pixels of the square inputs to choose from.
    """

    family: ClassVar[str]
    configs: ClassVar[Mapping[str, Any]]
    """The hand-made models."""

    image_sizes: tuple[int, ...] = (224,)

    @abstractmethod
    def shape_choices(self) -> dict[str, Choices]:
        """What may be chosen beside the image size: whole numbers, or names."""

    @abstractmethod
    def variant(self, point: Point) -> dict[str, Any]:
        """`ModelSpec.variant` of a point."""

    @abstractmethod
    def point_of(self, config: Any) -> dict[str, Value]:
        """Where a model of the family lies, without its image size."""

    def choices(self) -> dict[str, Choices]:
        """All that may be chosen, by name."""
        return {**self.shape_choices(), "image_size": self.image_sizes}

    def spec(self, point: Point, num_classes: int) -> ModelSpec:
        """The model at a point: a hand-made one by its name, any other as a variant.

        Two points of the same model have the same spec.
        """
        side, variant = int(point["image_size"]), self.variant(point)
        for name, config in self.configs.items():
            if variant == self.variant(self.point_of(config)):
                return ModelSpec(name=name, image_size=(side, side), num_classes=num_classes)
        base = next(iter(self.configs))
        return ModelSpec(name=base, image_size=(side, side), num_classes=num_classes, variant=variant)

    def hand_made(self) -> list[tuple[str, Point]]:
        """The family's published models at every image size, the smallest first."""
        return [
            (name, {**self.point_of(config), "image_size": side})
            for side in sorted(self.image_sizes)
            for name, config in self.configs.items()
        ]

    def smallest(self) -> Point:
        """The point with the least of everything."""
        return {
            name: min(choices) if isinstance(choices, range) else choices[0]
            for name, choices in {**self.choices(), "image_size": tuple(sorted(self.image_sizes))}.items()
        }

    def draw(self, rng: np.random.Generator) -> Point:
        """A point at random, every choice as likely as the others of its name."""
        return {name: choices[int(rng.integers(len(choices)))] for name, choices in self.choices().items()}

    def is_hand_made(self, spec: ModelSpec) -> bool:
        """Whether this is a published model."""
        return not spec.variant


@dataclass(frozen=True, kw_only=True)
class EfficientViTSpace(Space):
    """EfficientViT (MSRA), around M0 to M5.

    Attributes:
        depths, num_heads, head_widths: of each stage: blocks, heads, channels of a head.
        key_dims: width of the queries and keys of a head.
        kernels: of the convolutions on queries, a digit a head.
        windows: side in positions; 0 is what fits the image size. Those that the first stage's map does
            not exceed are left out, for they change nothing.
    """

    family: ClassVar[str] = "efficientvit_m"
    configs: ClassVar[Mapping[str, Any]] = efficientvit_msra.CONFIGS

    depths: Stages = (range(1, 4), range(1, 5), range(1, 7))
    num_heads: Stages = (range(1, 5), range(1, 5), range(1, 5))
    head_widths: Stages = (range(16, 73, 8), range(16, 105, 8), range(16, 121, 8))
    key_dims: range = range(8, 33, 8)
    kernels: tuple[str, ...] = ("3333", "5333", "5555", "7533", "7777")
    windows: tuple[int, ...] = (0, 4, 14)

    def shape_choices(self) -> dict[str, Choices]:
        """See `Space.shape_choices`."""
        side = -(-max(self.image_sizes) // STRIDE)
        usual = efficientvit_msra.window_size_for((max(self.image_sizes),) * 2)
        useful = (size for size in self.windows if size and size < side and size != usual)
        return {
            **_per_stage("depth", self.depths),
            **_per_stage("heads", self.num_heads),
            **_per_stage("head_width", self.head_widths),
            "key_dim": self.key_dims,
            "kernels": self.kernels,
            "window": (0, *useful),
        }

    def variant(self, point: Point) -> dict[str, Any]:
        """See `Space.variant`."""
        heads = _stages_of(point, "heads")
        widths = _stages_of(point, "head_width")
        return {
            "embed_dim": tuple(count * width for count, width in zip(heads, widths, strict=True)),
            "depths": _stages_of(point, "depth"),
            "num_heads": heads,
            "kernels": tuple(map(int, str(point["kernels"])))[: max(heads)],
            "key_dim": int(point["key_dim"]),
            "window_size": int(point.get("window", 0)) or None,
        }

    def point_of(self, config: Any) -> dict[str, Value]:
        """See `Space.point_of`."""
        widths = (dim // heads for dim, heads in zip(config.embed_dim, config.num_heads, strict=True))
        return {
            **_named("depth", config.depths),
            **_named("heads", config.num_heads),
            **_named("head_width", widths),
            "key_dim": config.key_dim,
            "kernels": "".join(map(str, config.kernels)),
            "window": config.window_size or 0,
        }


@dataclass(frozen=True, kw_only=True)
class SHViTSpace(Space):
    """SHViT, around S1 to S4.

    Attributes:
        depths, widths: of each stage: blocks, channels.
        shares: of each stage, the channels that its head attends on, in parts of `SHARES`; 0 is no attention.
        key_dims: width of the queries and keys.
    """

    family: ClassVar[str] = "shvit"
    configs: ClassVar[Mapping[str, Any]] = shvit.CONFIGS

    depths: Stages = (range(1, 5), range(1, 8), range(1, 8))
    widths: Stages = (range(32, 257, 8), range(64, 385, 4), range(96, 513, 8))
    shares: Stages = (range(0, 13, 3), range(0, 13, 3), range(0, 13, 3))
    key_dims: range = range(8, 33, 8)

    def shape_choices(self) -> dict[str, Choices]:
        """See `Space.shape_choices`."""
        return {
            **_per_stage("depth", self.depths),
            **_per_stage("width", self.widths),
            **_per_stage("share", self.shares),
            "key_dim": self.key_dims,
        }

    def variant(self, point: Point) -> dict[str, Any]:
        """See `Space.variant`."""
        widths, shares = _stages_of(point, "width"), _stages_of(point, "share")
        return {
            "embed_dim": widths,
            "depths": _stages_of(point, "depth"),
            "partial_dim": tuple(w * share // SHARES for w, share in zip(widths, shares, strict=True)),
            "key_dim": int(point["key_dim"]),
        }

    def point_of(self, config: Any) -> dict[str, Value]:
        """See `Space.point_of`."""
        pairs = zip(config.partial_dim, config.embed_dim, strict=True)
        return {
            **_named("depth", config.depths),
            **_named("width", config.embed_dim),
            **_named("share", (-(-part * SHARES // width) for part, width in pairs)),
            "key_dim": config.key_dim,
        }


SPACES: Mapping[str, type[Space]] = {space.family: space for space in (EfficientViTSpace, SHViTSpace)}


def space_for(family: str, image_sizes: tuple[int, ...]) -> Space:
    """The space of a family.

    Raises:
        ConfigError: no family has this name, or an image side is too small for it.
    """
    if family not in SPACES:
        raise ConfigError(f"--family: no design space for {family!r}; {did_you_mean(family, SPACES)}")
    if not image_sizes or min(image_sizes) < STRIDE:
        raise ConfigError(f"--image-size: expected sides of at least {STRIDE} pixels, got {image_sizes}")
    return SPACES[family](image_sizes=tuple(dict.fromkeys(image_sizes)))


def narrowed(space: Space, **changes: Any) -> Space:
    """The same space with other ranges."""
    return dataclasses.replace(space, **changes)


def _per_stage(name: str, choices: Stages) -> dict[str, Choices]:
    return {f"{name}{stage}": values for stage, values in enumerate(choices, 1)}


def _named(name: str, values: Any) -> dict[str, Value]:
    return {f"{name}{stage}": value for stage, value in enumerate(values, 1)}


def _stages_of(point: Point, name: str) -> tuple[int, int, int]:
    one, two, three = (int(point[f"{name}{stage}"]) for stage in (1, 2, 3))
    return one, two, three
