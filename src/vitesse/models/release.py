"""What published weights come with beside the weights: class names, preprocessing, licence."""

from __future__ import annotations

from typing import Any

from vitesse.catalogue import WeightFacts, facts
from vitesse.errors import ConfigError, require
from vitesse.models.foreign import is_timm
from vitesse.spec import ModelSpec

IMAGENET_CLASSES = 1000


def weights_like(spec: ModelSpec) -> WeightFacts | None:
    """Published weights of a model's size, channels, classes and heads, if any: what its own seem to be.

    None for other tasks than classification, where they come with nothing.
    """
    if spec.variant or is_timm(spec.name) or spec.in_chans != 3 or facts(spec.name).task != "classify":
        return None
    wanted = (spec.image_size, spec.num_classes, spec.distilled)
    known = facts(spec.name).weights
    return next((w for w in known if (w.image_size, w.num_classes, w.distilled) == wanted), None)


def release_metadata(weights: WeightFacts) -> dict[str, Any]:
    """Checkpoint metadata of published weights: `class_names` and `preprocess`.

    Raises:
        MissingExtraError, ConfigError: see `imagenet_classes`.
    """
    names = imagenet_classes() if weights.num_classes == IMAGENET_CLASSES else None
    preprocess = {"image_size": list(weights.image_size), "crop_pct": weights.crop_pct}
    return {"preprocess": preprocess} | ({"class_names": list(names)} if names else {})


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet-1k's classes in the standard order, as torchvision publishes them.

    Raises:
        MissingExtraError: torchvision is not installed.
        ConfigError: the installed torchvision does not fit the installed torch.
    """
    try:
        torchvision = require("torchvision.models", "torch")
    except RuntimeError as error:
        raise ConfigError(
            f"expected a torchvision that fits the installed torch, it cannot be imported ({error}); "
            "install both together: pip install --upgrade torch torchvision"
        ) from error
    return tuple(torchvision.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
