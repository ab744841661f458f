"""Training augmentation: pictures in worker processes, whole batches on the training device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from vitesse.errors import ConfigError, require

if TYPE_CHECKING:
    from vitesse.data.loader import Transform
    from vitesse.spec import PreprocessSpec

GREY = (128, 128, 128)


def augment_pictures(
    size: tuple[int, int], *, crop_scale: tuple[float, float], hflip: float, rand_augment: str
) -> Transform:
    """PIL picture to uint8 (3, H, W) of `size` pixels: random crop, flip, RandAugment.

    Args:
        size: (height, width) in pixels.
        crop_scale: smallest and largest share of the picture that a crop keeps.
        hflip: probability of mirroring.
        rand_augment: timm's policy text, such as `rand-m9-mstd0.5-inc1`; empty is off.

    Raises:
        ConfigError: the policy text is not one that timm reads.
    """
    steps: list[nn.Module] = [
        v2.RandomResizedCrop(
            size, scale=crop_scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True
        ),
        v2.RandomHorizontalFlip(hflip),
    ]
    if rand_augment:
        steps.append(v2.Lambda(_rand_augment(rand_augment)))
    transform: Transform = v2.Compose([*steps, v2.PILToTensor()])
    return transform


def _rand_augment(policy: str) -> Callable[[Image], Image]:
    auto_augment = require("timm.data.auto_augment", "train")
    try:
        transform: Callable[[Image], Image] = auto_augment.rand_augment_transform(policy, {"img_mean": GREY})
    except (AssertionError, ValueError, KeyError) as error:
        expected = "expected timm's form, such as rand-m9-mstd0.5-inc1"
        raise ConfigError(f"rand_augment: {expected}, got {policy!r}") from error
    return transform


class DeviceTransform(nn.Module):
    """uint8 pictures (B, C, h, w) to normalised float32 (B, C, H, W), on whatever device they are.

    Pictures smaller than the model's input were augmented at their own size; they are enlarged here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: PreprocessSpec) -> None:
        super().__init__()
        self.size = preprocess.image_size
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(-1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(preprocess.std).view(-1, 1, 1) * 255)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW.float()
        if x_BCHW.shape[2:] != self.size:
            x_BCHW = F.interpolate(x_BCHW, self.size, mode="bicubic", align_corners=False).clamp(0, 255)
        return (x_BCHW - self.mean) / self.std


def mix_batches(mixup: float, cutmix: float, probability: float) -> v2.Transform | None:
    """Mixup or CutMix, one of them at random a batch, on images (B, C, H, W) with target shares (B, K).

    `mixup` and `cutmix` are the strengths (alpha), 0 is off; `probability` is the share of mixed batches.
    """
    kinds: list[v2.Transform] = []
    if mixup:
        kinds.append(v2.MixUp(alpha=mixup))
    if cutmix:
        kinds.append(v2.CutMix(alpha=cutmix))
    return v2.RandomApply([v2.RandomChoice(kinds)], p=probability) if kinds else None
