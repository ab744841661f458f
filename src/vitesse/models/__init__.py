"""Model architectures: one file a family, each readable beside its paper."""

from vitesse.models.backbone import Backbone, FeatureExtractor
from vitesse.models.checkpoint import convert, load_checkpoint
from vitesse.models.create import build, create_model, list_models
from vitesse.models.registry import gives_masks, registered_models

__all__ = [
    "Backbone",
    "FeatureExtractor",
    "build",
    "convert",
    "create_model",
    "gives_masks",
    "list_models",
    "load_checkpoint",
    "registered_models",
]
