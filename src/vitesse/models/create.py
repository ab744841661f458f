"""From a name or a spec to a model."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vitesse.catalogue import CHANGE, SPEC_SUFFIX, facts, resolve
from vitesse.errors import ConfigError
from vitesse.models import (  # noqa: F401  (register)
    detectors,
    efficientsam,
    efficientvit_mit,
    efficientvit_msra,
    efficientvit_sam,
    efficientvit_seg,
    multiplex,
    shvit,
    vit,
)
from vitesse.models.backbone import Backbone, FeatureExtractor, VisionModel
from vitesse.models.foreign import build_timm, is_timm, timm_weights
from vitesse.models.registry import build_model, registered_models
from vitesse.models.variants import named_variant, read_spec
from vitesse.spec import ModelSpec, Task, as_size
from vitesse.weights.convert import read_foreign
from vitesse.weights.hub import fetch, fetch_pretrained
from vitesse.weights.load import load_tensors

if TYPE_CHECKING:
    from vitesse.models.foreign import TimmModel


def build(spec: ModelSpec) -> VisionModel | TimmModel:
    """The model that `spec` describes, with fresh weights; `timm:NAME` is built by timm.

    Raises:
        UnknownModelError: no model has this name.
        ConfigError: a distilled timm model is asked for.
        MissingExtraError: a timm model is asked for and timm is not installed.
    """
    return build_timm(spec) if is_timm(spec.name) else build_model(spec)


def spec_for(name: str, image_size: int | tuple[int, int] | None = None) -> ModelSpec:
    """The published spec that `arch`, `arch.tag` or `timm:NAME` names, for another image size if given.

    A tag brings the image size that its weights were trained for, and their distillation head.
    `arch+CHANGE` is a named variant of it, and `FILE.json` what `write_spec` wrote.

    Raises:
        UnknownModelError: no architecture or weights have this name; timm's names are not looked up.
        ConfigError: an image side is not a positive whole number, a spec file cannot be read, or the
            architecture has no such variant.
    """
    if name.endswith(SPEC_SUFFIX):
        spec = read_spec(name)
    elif is_timm(name):
        spec = ModelSpec(name=name)
    elif CHANGE in name:
        arch, *changes = name.split(CHANGE)
        spec = dataclasses.replace(spec_for(arch), variant=named_variant(arch, changes))
    elif "." in name:
        model, weights = resolve(name)
        spec = ModelSpec(name=model.name, image_size=weights.image_size, distilled=weights.distilled)
    else:
        known = facts(name)
        spec = ModelSpec(name=name, image_size=known.image_size, num_classes=known.num_classes)
    return spec if image_size is None else dataclasses.replace(spec, image_size=as_size(image_size))


def list_models(pattern: str = "*", task: Task | None = "classify") -> tuple[str, ...]:
    """The names of Vitesse's models that match a shell pattern such as `*_m?`, sorted.

    `task` is `classify`, `detect`, `segment`, `promptable`, or None for all.
    """
    return tuple(name for name in registered_models(task) if fnmatchcase(name, pattern))


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    features_only: bool = False,
    distilled: bool = False,
    drop_path_rate: float | None = None,
) -> VisionModel | TimmModel | FeatureExtractor:
    """A model by name, in training mode, float32, on the CPU.

    Args:
        name: `arch`, `arch.tag` to choose the weights, `arch+CHANGE` for a variant, a spec file (.json), or
            `timm:NAME`.
        pretrained: load the published weights from the Hugging Face Hub or its cache.
        num_classes: classes of the head, default the architecture's own, 1000 of a classifier; other than
            the weights' own, the head starts fresh.
        in_chans: image channels, default 3 or what a spec file says; other than 3, the pretrained first
            convolution is adapted so that a picture with equal channels gives the response it gave
            (`weights.load.adapt_channels`).
        image_size: pixels, one side or (height, width); default the architecture's own.
        features_only: feature maps by name instead of logits, of Vitesse's classifiers.
        distilled: a second head that learns from a teacher; with weights that have none, both start fresh.
        drop_path_rate: stochastic depth at the last block, 0 to 1; default 0 or what a spec file says.

    Raises:
        UnknownModelError: no architecture or weights have this name; the message lists the nearest.
        ConfigError: an impossible value, or an option that this model does not have.
        MissingExtraError: timm or huggingface_hub is needed and not installed.
        WeightsError: the weights cannot be fetched or do not fit.
    """
    spec = spec_for(name, image_size)
    if features_only and spec.name not in registered_models():
        raise ConfigError(f"features_only: expected one of {', '.join(registered_models())}, got {name}")
    model = build(
        dataclasses.replace(
            spec,
            in_chans=spec.in_chans if in_chans is None else in_chans,
            num_classes=spec.num_classes if num_classes is None else num_classes,
            distilled=distilled or spec.distilled,
            drop_path_rate=spec.drop_path_rate if drop_path_rate is None else drop_path_rate,
        )
    )
    for key, asked in (("num_classes", num_classes), ("distilled", distilled or None)):
        if asked not in (None, own := getattr(model.spec, key)):
            raise ConfigError(f"{key}: {name} has {own} and no other, got {asked}; leave it out")
    if pretrained:
        _load_pretrained(model, name)
    if features_only and isinstance(model, Backbone):
        return FeatureExtractor(model)
    return model


def _load_pretrained(model: VisionModel | TimmModel, name: str) -> None:
    distilled, image_size = False, None
    if is_timm(name):
        hub_id, num_classes = timm_weights(name)
        path = fetch(hub_id)
    else:
        weights = resolve(name)[1]
        num_classes, distilled, image_size = weights.num_classes, weights.distilled, weights.image_size
        path = fetch_pretrained(name)
    same_head = (model.spec.num_classes, model.spec.distilled) == (num_classes, distilled)
    load_tensors(
        model,
        read_foreign(path),
        str(path),
        head="keep" if same_head else "new",
        first_conv="adapt",
        image_size=image_size,
    )
