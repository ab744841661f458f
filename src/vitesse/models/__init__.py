"""Model architectures: one file a family, each readable beside its paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitesse.models import efficientvit_msra  # noqa: F401  (registers its names)
from vitesse.models.backbone import Backbone, FeatureExtractor
from vitesse.models.foreign import build_timm, is_timm
from vitesse.models.registry import build_model, registered_models
from vitesse.spec import ModelSpec, as_size

if TYPE_CHECKING:
    from vitesse.models.foreign import TimmModel

__all__ = ["Backbone", "FeatureExtractor", "build", "create_model", "registered_models"]


def build(spec: ModelSpec) -> Backbone | TimmModel:
    """The model that `spec` describes, with fresh weights; `timm:NAME` is built by timm.

    Raises:
        UnknownModelError: no model has this name.
        MissingExtraError: a timm model is asked for and timm is not installed.
    """
    return build_timm(spec) if is_timm(spec.name) else build_model(spec)
