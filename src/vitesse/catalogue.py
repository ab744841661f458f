"""What is known of every architecture without building it: size, cost, published accuracy, weights. No torch.

The facts are in `catalogue.json` beside this file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from vitesse.errors import UnknownModelError, WeightsError, did_you_mean
from vitesse.spec import Task, as_size, from_mapping

ARTEFACT_SUFFIX, CHECKPOINT_SUFFIX = ".onnx", ".safetensors"
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
"""What ends so is a file and no model's name."""
SPEC_SUFFIX, CHANGE = ".json", "+"
"""Of a file that says how a model is built, and before the name of a change to an architecture."""


@dataclass(frozen=True, kw_only=True)
class WeightFacts:
    """One published set of weights; `arch.tag` names it.

    Attributes:
        tag: what follows the dot, such as `r224_in1k`.
        hub_id: repository on the Hugging Face Hub that holds `file`.
        num_classes: classes of its head.
        distilled: it belongs to a model with a distillation head (a plain ViT: and token).
        image_size: (height, width) in pixels it was trained for.
        crop_pct: share of the resized shorter side that evaluation keeps, 0 to 1.
        top1, top5: ImageNet-1k validation accuracy of these very weights, fractions; None where they are of
            another task.
        licence: SPDX identifier.
        source: where they, and their accuracy, were published.
        file: safetensors, or a `.pt` of an original release, which is read without running code.
        trained_on: the data set.
    """

    tag: str
    hub_id: str
    image_size: tuple[int, int]
    licence: str
    source: str
    crop_pct: float = 1.0
    top1: float | None = None
    top5: float | None = None
    num_classes: int = 1000
    distilled: bool = False
    file: str = "model.safetensors"
    trained_on: str = "ImageNet-1k"


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """One architecture.

    Attributes:
        name: registry name.
        family: the paper's model family; it decides which foreign key names are understood.
        task: see `Manifest.task`.
        params: parameters with a head of `num_classes`, BatchNorm not folded.
        macs: multiply-accumulates of convolutions and matrix products for one image of `image_size`; of a
            multiplexed model for one of a whole group, of one for promptable masks without the prompts.
        image_size: (height, width) in pixels of the published figures.
        num_classes: classes of the published figures.
        dataset: whose validation split the published accuracy was measured on.
        top1, top5: of classifiers; fractions, None where nobody published them.
        miou: of segmentation models: mean over classes of intersection over union, a fraction.
        source: where the accuracy was published, empty without.
        weights: published weights, the default first; none for some architectures.
        pickle: published weights in a file that `vitesse convert` alone reads, as OWNER/REPO/FILE on the
            Hugging Face Hub; empty for none.
    """

    name: str
    family: str
    params: int
    macs: int
    image_size: tuple[int, int]
    source: str
    weights: tuple[WeightFacts, ...]
    task: Task = "classify"
    num_classes: int = 1000
    dataset: str = "ImageNet-1k"
    top1: float | None = None
    top5: float | None = None
    miou: float | None = None
    pickle: str = ""

    @property
    def accuracy(self) -> float | None:
        """The published accuracy of the model's task: top-1 or mean IoU, a fraction."""
        return self.miou if self.task == "segment" else self.top1


@cache
def models() -> tuple[ModelFacts, ...]:
    """All architectures, in the catalogue's order."""
    families = json.loads((files("vitesse") / "catalogue.json").read_text(encoding="utf-8"))
    return tuple(_read(row, family) for family in families for row in family["models"])


def _read(row: dict[str, Any], family: dict[str, Any]) -> ModelFacts:
    """A row of the catalogue with what all rows of its family share."""
    shared = {"licence": family["licence"], "source": family["weights_source"]}
    weights = tuple(
        from_mapping(
            WeightFacts,
            {"hub_id": f"timm/{row['name']}.{entry['tag']}", **shared, **entry}
            | {"image_size": as_size(entry["image_size"])},
        )
        for entry in row["weights"]
    )
    known = {field.name for field in fields(ModelFacts)}
    own = {key: value for key, value in family.items() if key in known} | row
    if "pickles" in family:
        own["pickle"] = f"{family['pickles']}/{row['name']}.pt"
    return from_mapping(ModelFacts, own | {"weights": weights, "image_size": as_size(row["image_size"])})


def select(
    pattern: str = "*",
    *,
    family: str | None = None,
    max_params: float = math.inf,
    max_macs: float = math.inf,
    min_top1: float = 0.0,
    pretrained: bool = False,
    task: Task | None = None,
) -> tuple[ModelFacts, ...]:
    """The architectures that meet every condition, in the catalogue's order.

    Args:
        pattern: a shell pattern for the name, as in `*_m?`.
        family: as in `ModelFacts.family`.
        max_params, max_macs: numbers, not millions.
        min_top1: a fraction; above 0, architectures without a published accuracy are left out.
        pretrained: only those with published weights that are fetched by name.
        task: as in `ModelFacts.task`.

    Raises:
        UnknownModelError: no model is of this family; the message lists the nearest.
    """
    families = {model.family for model in models()}
    if family is not None and family not in families:
        raise UnknownModelError(f"no family is named {family!r}; {did_you_mean(family, families)}")
    return tuple(
        model
        for model in models()
        if fnmatchcase(model.name, pattern)
        and family in (None, model.family)
        and task in (None, model.task)
        and model.params <= max_params
        and model.macs <= max_macs
        and (model.top1 or 0) >= min_top1
        and (model.weights or not pretrained)
    )


def facts(name: str) -> ModelFacts:
    """The facts of one architecture, named without tag.

    Raises:
        UnknownModelError: no architecture has this name; the message lists the nearest.
    """
    known = {model.name: model for model in models()}
    if name not in known:
        raise UnknownModelError(f"no model is named {name!r}; {did_you_mean(name, known)}")
    return known[name]


def is_untrained(name: str) -> bool:
    """Whether this is a spec file or a changed architecture, which never have weights."""
    return name.endswith(SPEC_SUFFIX) or (CHANGE in name and not Path(name).exists() and "." not in name)


def untrained(name: str) -> str:
    """What to do with such a name where weights are needed."""
    return f"this is an architecture without weights; run `vitesse train DATA --model {name}` first"


def resolve(name: str) -> tuple[ModelFacts, WeightFacts]:
    """The architecture and weights that `arch` or `arch.tag` names; without tag, the default weights.

    Raises:
        UnknownModelError: neither an architecture nor its weights; the message lists the nearest names.
        WeightsError: no weights of this architecture were published.
    """
    arch, dot, tag = name.partition(".")
    model = facts(arch)
    if not model.weights:
        raise WeightsError(f"{arch}: {_why_no_weights(model)}")
    if not dot:
        return model, model.weights[0]
    known = {weights.tag: weights for weights in model.weights}
    if tag not in known:
        raise UnknownModelError(f"{arch} has no weights tagged {tag!r}; {did_you_mean(tag, known)}")
    return model, known[tag]


def _why_no_weights(model: ModelFacts) -> str:
    if not model.pickle:
        return "no weights of it were published; train it, or take a model that has some"
    repository, _, file = model.pickle.rpartition("/")
    return (
        f"its weights were published as a pickle file: fetch {file} from huggingface.co/{repository} and run "
        f"`vitesse convert {file} --model {model.name} --out {model.name}.safetensors`"
    )
