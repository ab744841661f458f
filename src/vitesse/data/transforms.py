"""Training augmentation: pictures in worker processes, whole batches on the training device.

Shape suffixes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop, v2

from vitesse.errors import ConfigError, require
from vitesse.runtime.bands import NPY_MAGIC, read_bands
from vitesse.runtime.decode import DEFAULT_LIMITS, Decoded, decode
from vitesse.runtime.imaging import to_rgb

if TYPE_CHECKING:
    from vitesse.spec import PreprocessSpec

FILL = (124, 116, 104)
"""ImageNet's mean colour, with which RandAugment fills what it moves a picture away from."""
CROP_RATIOS = (3 / 4, 4 / 3)
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Interpolation = Literal["bicubic", "bilinear", "random"]


class Augment:
    """Encoded picture to uint8 (3, H, W): random crop, flip, colour jitter, RandAugment.

    The crop is drawn before decoding, from the header alone: of a JPEG far larger than `size`, only as many
    pixels are decoded as the crop needs. torch resizes bytes several times faster than Pillow, to the same
    pixels but for rounding.

    Args:
        size: (height, width) in pixels.
        crop_scale: smallest and largest share of the picture that a crop keeps.
        hflip, vflip: probability of exchanging left and right, top and bottom.
        color_jitter: range of brightness, contrast and saturation, 0 is off.
        rand_augment: timm's policy text, such as `rand-m9-mstd0.5-inc1`; empty is off.
        interpolation: of the resize and of RandAugment; `random` draws one of the two for every picture.

    Raises:
        ConfigError: the policy text is not one that timm reads.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        vflip: float = 0.0,
        color_jitter: float = 0.0,
        rand_augment: str = "",
        interpolation: Interpolation = "bicubic",
    ) -> None:
        self.size, self.crop_scale, self.hflip, self.vflip = size, crop_scale, hflip, vflip
        self.modes = tuple(FILTERS) if interpolation == "random" else (interpolation,)
        self.steps: list[Callable[[Image.Image], Image.Image]] = []
        if color_jitter:
            self.steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
        if rand_augment:
            self.steps.append(_rand_augment(rand_augment, self.modes))

    def __call__(self, encoded: bytes) -> Tensor:
        """
        Raises:
            ImageError: the picture cannot be read, or is an array of other than colours.
        """
        image = self._cropped(encoded)
        if random.random() < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.vflip and random.random() < self.vflip:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        x_HWC = self._resized(image)
        if self.steps:
            image = Image.fromarray(x_HWC.numpy())
            for step in self.steps:
                image = step(image)
            x_HWC = torch.from_numpy(np.array(image))
        return x_HWC.permute(2, 0, 1)

    def _cropped(self, encoded: bytes) -> Image.Image:
        crop = (0, 0, 0, 0)

        def enough(height: int, width: int) -> tuple[int, int]:
            """Draws the crop of a picture, and says which size of the whole leaves `size` in the crop."""
            nonlocal crop
            whole = torch.empty(1, height, width, device="meta")
            crop = RandomResizedCrop.get_params(whole, list(self.crop_scale), list(CROP_RATIOS))
            _, _, kept_h, kept_w = crop
            return math.ceil(height * self.size[0] / kept_h), math.ceil(width * self.size[1] / kept_w)

        if encoded.startswith(NPY_MAGIC):
            image = to_rgb(read_bands(encoded))
            decoded = Decoded(image, (image.height, image.width), 1)
            enough(image.height, image.width)
        else:
            decoded = decode(encoded, DEFAULT_LIMITS, enough)
        top, left, height, width = crop
        right, bottom = left + width, top + height
        left, top, right, bottom = (round(end / decoded.fraction) for end in (left, top, right, bottom))
        return decoded.image.crop((left, top, right, bottom))

    def _resized(self, image: Image.Image) -> Tensor:
        """(H, W, 3); a view that torch sees as channels last, for which it is quickest."""
        x_BCHW = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
        x_BCHW = F.interpolate(x_BCHW, self.size, mode=random.choice(self.modes), antialias=True)
        return x_BCHW[0].permute(1, 2, 0)


def _rand_augment(policy: str, modes: Sequence[str]) -> Callable[[Image.Image], Image.Image]:
    auto_augment = require("timm.data.auto_augment", "train")
    filters = tuple(FILTERS[mode] for mode in modes)
    try:
        transform: Callable[[Image.Image], Image.Image] = auto_augment.rand_augment_transform(
            policy, {"img_mean": FILL, "interpolation": filters if len(filters) > 1 else filters[0]}
        )
    except (AssertionError, ValueError, KeyError) as error:
        expected = "expected timm's form, such as rand-m9-mstd0.5-inc1"
        raise ConfigError(f"rand_augment: {expected}, got {policy!r}") from error
    return transform


class DeviceTransform(nn.Module):
    """uint8 pictures (B, C, h, w) to normalised float32 (B, C, H, W), on whatever device they are.

    Pictures smaller than the model's input were augmented at their own size; they are enlarged here, and
    those of a step that is trained at less than full size are shrunk.

    Args:
        preprocess: size, mean and standard deviation of the model's input.
        random_erase: share of pictures of which a rectangle is replaced by noise (arXiv 1708.04896).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: PreprocessSpec, random_erase: float = 0.0) -> None:
        super().__init__()
        self.size = preprocess.image_size
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(-1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(preprocess.std).view(-1, 1, 1) * 255)
        self.random_erase = random_erase

    def forward(self, x_BCHW: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`size` (height, width) in pixels; by default that of the preprocessing."""
        x_BCHW, size = x_BCHW.float(), size or self.size
        if x_BCHW.shape[2:] != size:
            shrinks = size[0] < x_BCHW.shape[2] or size[1] < x_BCHW.shape[3]
            x_BCHW = F.interpolate(
                x_BCHW, size, mode="bicubic", align_corners=False, antialias=shrinks
            ).clamp(0, 255)
        x_BCHW = x_BCHW.sub_(self.mean).div_(self.std)
        if self.random_erase:
            erasing = require("timm.data.random_erasing", "train").RandomErasing
            x_BCHW = erasing(self.random_erase, mode="pixel", device=x_BCHW.device)(x_BCHW)
        return x_BCHW


def mix_batches(mixup: float, cutmix: float, probability: float) -> v2.Transform | None:
    """Mixup or CutMix, one of them at random a batch, on images (B, C, H, W) with target shares (B, K).

    `mixup` and `cutmix` are the strengths (alpha), 0 is off; `probability` is the share of mixed batches.
    """
    kinds: Sequence[v2.Transform] = [
        kind(alpha=alpha) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha
    ]
    return v2.RandomApply([v2.RandomChoice(kinds)], p=probability) if kinds else None


def _blended(x: Tensor, share: float) -> Tensor:
    """Each entry with `share` of itself and the rest of its neighbour."""
    return x.roll(1, 0).lerp_(x, share)
