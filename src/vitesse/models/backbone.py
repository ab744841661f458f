"""The contracts that every model obeys: what all share, what classifiers are, and what stands on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from vitesse.errors import ConfigError

if TYPE_CHECKING:
    from vitesse.spec import FeatureSpec, ModelSpec, Task


class VisionModel(nn.Module):
    """A network from images to what its task asks for.

    Attributes:
        spec: enough to rebuild the module.
        task: `classify`, `detect`, `segment` or `promptable`.
        min_image_size: shortest image side in pixels that gives every stage at least one position.
        size_multiple: image sides must be multiples of so many pixels.
        head_prefixes: how the names of the classifier's parameters begin.
        starts_from: shell patterns for the names of other architectures whose weights can start this one.
        same_weights: name of the architecture whose weights are this one's too; empty for none.
        fresh_prefixes: how the names of parameters begin that those do not have.
        mux_width: images that share a sequence of tokens; a batch of any size is taken, whole groups cost
            least.
        any_batch: whether an exported file takes any number of images in a run, or one.
    """

    spec: ModelSpec
    task: ClassVar[Task] = "classify"
    min_image_size: int
    size_multiple: int = 1
    head_prefixes: tuple[str, ...] = ("head.",)
    starts_from: tuple[str, ...] = ()
    same_weights: str = ""
    fresh_prefixes: tuple[str, ...] = ()
    mux_width: int = 1
    any_batch: bool = True

    def check_input(self, x_BCHW: Tensor) -> None:
        """Refuse a batch that this model cannot take, with the shapes that it can."""
        shape = tuple(x_BCHW.shape)
        if len(shape) != 4 or shape[1] != self.spec.in_chans or not self.takes(shape[2], shape[3]):
            expected = f"(batch, {self.spec.in_chans}, height, width)"
            raise ConfigError(
                f"{self.spec.name}: expected images of shape {expected}, {self._sizes()}, got {shape}"
            )

    def check_image_size(self) -> None:
        """Refuse a spec whose image size this model cannot take, with the sizes that it can."""
        height, width = self.spec.image_size
        if not self.takes(height, width):
            raise ConfigError(f"{self.spec.name}: expected {self._sizes()}, got image_size {height}x{width}")

    def takes(self, height: int, width: int) -> bool:
        """Whether images of this size in pixels work."""
        return min(height, width) >= self.min_image_size and not (
            height % self.size_multiple or width % self.size_multiple
        )

    def check_channel_order(self, values: Mapping[str, Tensor], label: str) -> None:
        """Refuse foreign weights of this model's names and shapes whose channels lie in another order.

        Args:
            values: the weights by this model's names; the model itself stays as it is.
            label: what error messages call the file.

        Raises:
            WeightsError: they do.
        """

    def deployed(self) -> nn.Module:
        """What an artefact of this model computes: images to the outputs of its task, see `Manifest.task`."""
        return self

    def _sizes(self) -> str:
        if self.size_multiple == 1:
            return f"height and width at least {self.min_image_size}"
        return f"height and width multiples of {self.size_multiple}"


class Backbone(VisionModel, ABC):
    """An image classifier whose feature maps can be used by other heads.

    Attributes:
        feature_specs: name, channels and stride of each map of `forward_features`, finest first.
    """

    feature_specs: tuple[FeatureSpec, ...]
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


class StagedBackbone(Backbone):
    """A backbone whose stem and stages follow one another; each stage gives a feature map.

    Attributes:
        stem: images to the first stage's input.
        stages: one module for each of `feature_specs`.
    """

    stem: nn.Module
    stages: nn.ModuleList

    def forward_features(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        x_BCHW = self.stem(x_BCHW)
        features = {}
        for feature, stage in zip(self.feature_specs, self.stages, strict=True):
            features[feature.name] = x_BCHW = stage(x_BCHW)
        return features


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


class DenseModel(VisionModel):
    """A head on the feature maps of a backbone; published weights of the backbone alone can start it.

    Attributes:
        backbone: without its classifier.
    """

    def __init__(self, spec: ModelSpec, backbone: Backbone) -> None:
        super().__init__()
        if spec.distilled:
            raise ConfigError(f"distilled: expected a classifier, got {spec.name}")
        backbone.head = nn.Identity()
        self.spec, self.backbone = spec, backbone
        self.min_image_size, self.size_multiple = backbone.min_image_size, backbone.size_multiple
        self.starts_from = (backbone.spec.name,)

    @property
    def fresh_prefixes(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"{name}." for name, _ in self.named_children() if name != "backbone")

    def forward_features(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """The backbone's feature maps by name, finest first.

        Raises:
            ConfigError: the channels differ from `spec.in_chans`, or the model does not take the size.
        """
        self.check_input(x_BCHW)
        return self.backbone.forward_features(x_BCHW)

    def check_channel_order(self, values: Mapping[str, Tensor], label: str) -> None:
        """See `VisionModel`: that of the backbone."""
        prefix = "backbone."
        own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        self.backbone.check_channel_order(own, label)
