"""A backbone of a few layers, and pictures of coloured shapes to find."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from vitesse.heads.detection import Target
from vitesse.layers import ConvNorm
from vitesse.spec import FeatureSpec

SIDE = 96


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On a busy machine torch's threads wait for each other: seven times slower than one."""
    torch.set_num_threads(1)


class TinyBackbone(nn.Module):
    """Images to maps of strides 8, 16 and 32."""

    feature_specs = tuple(
        FeatureSpec(name=f"stage{i}", channels=width, stride=stride)
        for i, (width, stride) in enumerate(((32, 8), (48, 16), (64, 32)))
    )

    def __init__(self) -> None:
        super().__init__()

        def layer(in_chans: int, out_chans: int) -> nn.Module:
            return nn.Sequential(ConvNorm(in_chans, out_chans, 3, stride=2), nn.ReLU(inplace=True))

        self.stages = nn.ModuleList(
            (nn.Sequential(layer(3, 16), layer(16, 32), layer(32, 32)), layer(32, 48), layer(48, 64))
        )

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        maps = {}
        for feature, stage in zip(self.feature_specs, self.stages, strict=True):
            maps[feature.name] = x_BCHW = stage(x_BCHW)
        return maps


class TinyDetector(nn.Module):
    """A pyramid and a head on the tiny backbone."""

    def __init__(self, neck: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = TinyBackbone(), neck, head

    def forward(self, x_BCHW: Tensor, targets: list[Target] | None = None) -> Mapping[str, Tensor]:
        return self.head(self.neck(self.backbone(x_BCHW)), x_BCHW, targets)  # type: ignore[no-any-return]


@pytest.fixture
def tiny() -> Callable[[nn.Module, nn.Module], TinyDetector]:
    return TinyDetector


@pytest.fixture
def features() -> tuple[FeatureSpec, ...]:
    return TinyBackbone.feature_specs


def paint(sides: list[int], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A noisy picture of red rectangles (class 0) and blue ellipses (class 1), drawn one over the other."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    image = torch.randn(3, SIDE, SIDE, generator=generator) * 0.1
    y_HW, x_HW = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    boxes, labels, masks = [], [], []
    for side in sides:
        width, height = side, side + draw(0, 1 + side // 4)
        left, top, label = draw(0, SIDE - width), draw(0, SIDE - height), draw(0, 2)
        across, down = (x_HW - left - width / 2) / width * 2, (y_HW - top - height / 2) / height * 2
        inside = (torch.maximum(across.abs(), down.abs()) if label == 0 else across.hypot(down)) <= 1
        colour = torch.tensor([(1.5, -0.5, -0.5), (-0.5, -0.5, 1.5)][label])
        image[:, inside] = (colour + torch.randn(3, generator=generator) * 0.3)[:, None]
        boxes.append((left, top, left + width, top + height))
        labels.append(label)
        masks.append(inside)
    return image, {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.stack(masks).to(torch.uint8)
        if masks
        else torch.zeros(0, SIDE, SIDE, dtype=torch.uint8),
    }


@pytest.fixture(scope="session")
def scenes() -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Eight pictures: one empty, one of a single shape, one of forty tiny ones, others of several sizes."""
    several = [6, 20, 30, 25, 40]
    painted = [paint(sides, seed) for seed, sides in enumerate(([], [30], [7] * 40, *[several] * 5))]
    return torch.stack([image for image, _ in painted]), [target for _, target in painted]
