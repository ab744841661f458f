"""timm's models behind the same contract, as teachers and peers: `timm:NAME`."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from vitesse.errors import ConfigError, UnknownModelError, WeightsError, did_you_mean, require
from vitesse.layers import fit_position_table
from vitesse.spec import ModelSpec, PreprocessSpec
from vitesse.weights.keymaps import TIMM_PREFIX


def is_timm(name: str) -> bool:
    """Whether a model name asks for timm."""
    return name.startswith(TIMM_PREFIX)


class TimmModel(nn.Module):
    """A timm classifier with a spec: images (B, in_chans, H, W) to logits (B, num_classes)."""

    resampled_on_load: ClassVar = {"model.pos_embed": (1,)}

    def __init__(self, spec: ModelSpec, model: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.model = model
        classifiers = model.pretrained_cfg["classifier"]  # type: ignore[index]
        names = (classifiers,) if isinstance(classifiers, str) else classifiers
        self.head_prefixes = tuple(f"model.{name}." for name in names)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.model(x_BCHW)
        return logits_BK

    def resampled(self, table_1NC: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        """A ViT's position table of another image size (pixels), fitted to this one's grid."""
        patch_embed: Any = self.get_submodule("model.patch_embed")
        patch = patch_embed.patch_size
        source = None if image_size is None else (image_size[0] // patch[0], image_size[1] // patch[1])
        num_prefix = self.get_parameter("model.pos_embed").shape[1] - patch_embed.num_patches
        return fit_position_table(table_1NC, num_prefix, patch_embed.grid_size, source)


def build_timm(spec: ModelSpec) -> TimmModel:
    """The timm model named after the prefix, with fresh weights.

    Raises:
        UnknownModelError: timm has no such model.
        ConfigError: `spec.distilled` or `spec.variant` is set; timm's models bring neither on request.
        MissingExtraError: timm is not installed.
    """
    if spec.distilled:
        raise ConfigError(f"distilled: expected a model of Vitesse's own, got {spec.name}")
    if spec.variant:
        raise ConfigError(f"variant: expected a model of Vitesse's own, got {spec.name}")
    timm = require("timm", "train")
    name = _known_name(timm, spec.name)
    options: dict[str, Any] = {"num_classes": spec.num_classes, "in_chans": spec.in_chans}
    if spec.drop_path_rate:
        options["drop_path_rate"] = spec.drop_path_rate
    try:
        model = timm.create_model(name, img_size=spec.image_size, **options)
    except TypeError:  # a convolutional model has no fixed size to be told
        model = timm.create_model(name, **options)
    return TimmModel(spec, model)


def timm_weights(name: str) -> tuple[str, int]:
    """The hub repository of a timm model's published weights, and the number of their classes.

    Raises:
        UnknownModelError: timm has no such model.
        WeightsError: timm knows no weights of it on the hub.
        MissingExtraError: timm is not installed.
    """
    timm = require("timm", "train")
    config = timm.get_pretrained_cfg(_known_name(timm, name))
    if not config.hf_hub_id:
        raise WeightsError(
            f"{name}: timm names no weights on the Hugging Face Hub; create it with pretrained=False"
        )
    return str(config.hf_hub_id), int(config.num_classes)


def timm_preprocess(name: str) -> PreprocessSpec:
    """Size, crop and normalisation of the pictures for which a timm model's published weights were made.

    Raises:
        UnknownModelError: timm has no such model.
        MissingExtraError: timm is not installed.
    """
    timm = require("timm", "train")
    config = timm.get_pretrained_cfg(_known_name(timm, name))
    _, height, width = config.input_size
    return PreprocessSpec(
        image_size=(height, width),
        crop_pct=config.crop_pct,
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
        mean=tuple(config.mean),
        std=tuple(config.std),
    )


def _known_name(timm: Any, name: str) -> str:
    name = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name):
        raise UnknownModelError(f"timm has no model named {name!r}; {did_you_mean(name, timm.list_models())}")
    return name
