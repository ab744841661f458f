"""What models for promptable masks share: an encoder that sees an image once, a decoder for every prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from vitesse.heads.promptable import PromptConfig, PromptDecoder
from vitesse.models.backbone import DenseModel
from vitesse.spec import PreprocessSpec

if TYPE_CHECKING:
    from vitesse.models.backbone import Backbone
    from vitesse.spec import ModelSpec, Task


class PromptableModel(DenseModel):
    """Images (B, C, H, W), square, to embeddings; of these and prompts `decoder` makes masks.

    The images are those that `preprocess` makes. There is one class, any object.

    Attributes:
        neck: the backbone's feature maps to one embedding.
        decoder: see `PromptDecoder`.
    """

    task: ClassVar[Task] = "promptable"
    head_prefixes = ()
    class_names = ("object",)

    def __init__(self, spec: ModelSpec, backbone: Backbone, neck: nn.Module, config: PromptConfig) -> None:
        super().__init__(replace(spec, num_classes=len(self.class_names), distilled=False), backbone)
        self.neck = neck
        self.decoder = PromptDecoder(config)
        self.check_image_size()

    @property
    def preprocess(self) -> PreprocessSpec:
        """The whole picture at the top left, and the mean of the training pictures where none of it is."""
        return PreprocessSpec(image_size=self.spec.image_size, resize="fit", interpolation="bilinear")

    def takes(self, height: int, width: int) -> bool:
        return height == width and super().takes(height, width)

    def _sizes(self) -> str:
        return f"squares of {super()._sizes()}"

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The image embedding, (B, `width`, `grid`, `grid`) of the decoder's `PromptConfig`.

        Raises:
            ConfigError: the channels differ from `spec.in_chans`, or the model does not take the size.
        """
        embedding_BCHW: Tensor = self.neck(self.forward_features(x_BCHW))
        return embedding_BCHW
