"""What is known of every architecture without building it: size, cost, published accuracy, weights. No torch.

The facts are in `catalogue.json` beside this file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from vitesse.errors import UnknownModelError, did_you_mean
from vitesse.spec import from_mapping


@dataclass(frozen=True, kw_only=True)
class WeightFacts:
    """One published set of weights; `arch.tag` names it.

    Attributes:
        tag: what follows the dot, such as `r224_in1k`.
        hub_id: repository on the Hugging Face Hub that holds `model.safetensors`.
        num_classes: classes of its head.
        image_size: (height, width) in pixels it was trained for.
        crop_pct: share of the resized shorter side that evaluation keeps, 0 to 1.
        top1, top5: ImageNet-1k validation accuracy of these very weights, fractions.
        licence: SPDX identifier.
        source: where the accuracy was published.
    """

    tag: str
    hub_id: str
    num_classes: int
    image_size: tuple[int, int]
    crop_pct: float
    top1: float
    top5: float
    licence: str
    source: str


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """One architecture.

    Attributes:
        name: registry name.
        family: the paper's model family; it decides which foreign key names are understood.
        params: parameters with a head of 1000 classes, BatchNorm not folded.
        macs: multiply-accumulates of convolutions and matrix products for one image of `image_size`.
        image_size: (height, width) in pixels of the published figures.
        top1, top5: ImageNet-1k validation accuracy as its authors published it, fractions.
        source: where they published it.
        weights: published weights, the default first.
    """

    name: str
    family: str
    params: int
    macs: int
    image_size: tuple[int, int]
    top1: float
    top5: float
    source: str
    weights: tuple[WeightFacts, ...]


@cache
def models() -> tuple[ModelFacts, ...]:
    """All architectures, in the catalogue's order."""
    rows = json.loads((files("vitesse") / "catalogue.json").read_text(encoding="utf-8"))
    return tuple(_read(row) for row in rows)


def _read(row: dict[str, Any]) -> ModelFacts:
    weights = tuple(from_mapping(WeightFacts, facts) for facts in row["weights"])
    return from_mapping(ModelFacts, {**row, "weights": weights})


def facts(name: str) -> ModelFacts:
    """The facts of one architecture, named without tag.

    Raises:
        UnknownModelError: no architecture has this name; the message lists the nearest.
    """
    known = {model.name: model for model in models()}
    if name not in known:
        raise UnknownModelError(f"no model is named {name!r}; {did_you_mean(name, known)}")
    return known[name]


def resolve(name: str) -> tuple[ModelFacts, WeightFacts]:
    """The architecture and weights that `arch` or `arch.tag` names; without tag, the default weights.

    Raises:
        UnknownModelError: neither an architecture nor its weights; the message lists the nearest names.
    """
    arch, dot, tag = name.partition(".")
    model = facts(arch)
    if not dot:
        return model, model.weights[0]
    known = {weights.tag: weights for weights in model.weights}
    if tag not in known:
        raise UnknownModelError(f"{arch} has no weights tagged {tag!r}; {did_you_mean(tag, known)}")
    return model, known[tag]
