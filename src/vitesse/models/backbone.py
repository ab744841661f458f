"""The contract that every model family obeys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from vitesse.errors import ConfigError

if TYPE_CHECKING:
    from vitesse.spec import FeatureSpec, ModelSpec


class Backbone(nn.Module, ABC):
    """An image classifier whose feature maps can be used by other heads.

    Attributes:
        spec: enough to rebuild the module.
        feature_specs: name, channels and stride of each map of `forward_features`, finest first.
        min_image_size: shortest image side in pixels that gives every stage at least one position.
        head_prefixes: how the names of the classifier's parameters begin.
    """

    spec: ModelSpec
    feature_specs: tuple[FeatureSpec, ...]
    min_image_size: ClassVar[int]
    head_prefixes: ClassVar[tuple[str, ...]] = ("head.",)
    head: nn.Module

    @abstractmethod
    def forward_features(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """Feature maps by name, in the order and with the widths of `feature_specs`."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes) of float images (B, in_chans, H, W).

        A distilled model returns the pair (logits, distillation logits) while training.

        Raises:
            ConfigError: the channels differ from `spec.in_chans`, or a side is too short.
        """
        self.check_input(x_BCHW)
        features = self.forward_features(x_BCHW)
        logits_BK: Tensor = self.head(features[self.feature_specs[-1].name])
        return logits_BK

    def check_input(self, x_BCHW: Tensor) -> None:
        """Refuse a batch that this model cannot take, with the shapes that it can."""
        expected = (
            f"(batch, {self.spec.in_chans}, height >= {self.min_image_size}, width >= {self.min_image_size})"
        )
        shape = tuple(x_BCHW.shape)
        if len(shape) != 4 or shape[1] != self.spec.in_chans or min(shape[2:]) < self.min_image_size:
            raise ConfigError(f"{self.spec.name}: expected images of shape {expected}, got {shape}")


class FeatureExtractor(nn.Module):
    """A backbone without its head: images (B, in_chans, H, W) to feature maps by name."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.backbone.head = nn.Identity()
        self.spec = backbone.spec
        self.feature_specs = backbone.feature_specs

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        self.backbone.check_input(x_BCHW)
        return self.backbone.forward_features(x_BCHW)
