"""From a checkpoint and labelled pictures to a smaller checkpoint with its spec, and fine-tuned if wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vitesse.analyze.importance import LabelledBatches, channel_importance, loaded
from vitesse.analyze.structure import structure_of
from vitesse.bench.contenders import count_macs
from vitesse.catalogue import CHECKPOINT_SUFFIX, SPEC_SUFFIX
from vitesse.data.sources import Source, open_source, seen_in_training, take, unseen
from vitesse.errors import ConfigError
from vitesse.metrics import Showing, score, with_classes
from vitesse.models.engine import TorchEngine
from vitesse.models.variants import write_spec
from vitesse.progress import say
from vitesse.provenance import provenance
from vitesse.prune.cut import cut
from vitesse.prune.plan import check_share, cuttables, groups_of, smaller_spec
from vitesse.spec import Manifest, ModelSpec, to_mapping
from vitesse.weights.files import save_weights


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's size, and its accuracy on the held-out pictures."""

    params: int
    macs: int
    top1: float
    images: int


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What `prune` wrote, and what it measured.

    Attributes:
        checkpoint: the smaller model's weights.
        spec_file: its architecture alone, which `vitesse train --model` takes.
        spec: the same.
        pictures: so many gave the importance.
        before, after: the model given, and the smaller one without fine-tuning.
        tuned: the smaller one fine-tuned; `tuned_checkpoint` are its weights.
    """

    checkpoint: Path
    spec_file: Path
    spec: ModelSpec
    pictures: int
    before: Measured
    after: Measured
    tuned: Measured | None = None
    tuned_checkpoint: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON record."""
        record = to_mapping(self)
        return record | {
            key: None if (path := getattr(self, key)) is None else str(path)
            for key in ("checkpoint", "spec_file", "tuned_checkpoint")
        }


def prune(
    model: str,
    data: str | Path,
    out: str | Path,
    *,
    keep: float = 0.7,
    of: Sequence[str] | None = None,
    cost: str = "macs",
    split: str = "train",
    limit: int | None = 512,
    batch_size: int = 16,
    arch: str | None = None,
    recipe: str | None = None,
    overrides: Iterable[str] = (),
) -> Pruned:
    """Take the channels that matter least out of a classifier: a smaller model, no masks.

    Known are EfficientViT (MSRA), SHViT and plain ViTs, whose width stays.

    Importance is that of `vitesse.analyze.importance`. Hidden channels of feed-forwards go one by one, keys
    with their queries by the same number in each head, residual channels of a stage by the same number for
    each head of a cascade. Where no GroupNorm or LayerNorm is cut, the smaller model computes what the whole
    one does with 0 for what is gone, and its mean in the classifier.

    Args:
        model: a `.safetensors` checkpoint, or a name with published weights.
        data: labelled pictures as `open_source` reads them; accuracy is measured on their split `test`, of
            data without splits on what training held out.
        out: the `.safetensors` file to write; the spec comes beside it as `.json`.
        keep: share of the costs that the smaller model may have at most.
        of: of `PRUNED`: feed-forwards, queries and keys, widths of stages; by default all there are.
        cost: `macs` or `params`.
        split: of `data`, which the importance is taken from; of data without splits what training saw.
        limit: at most so many pictures for it, drawn by seed 0.
        batch_size: pictures at a time.
        arch: the architecture of a checkpoint whose header does not name it.
        recipe: fine-tune with it, in a folder named as `out` without its suffix, see `vitesse.train`.
        overrides: `key=value` texts over the recipe.

    Raises:
        ConfigError: an impossible option, or a model of another family.
        DataError, WeightsError, TrainingError, UnknownModelError: see their messages.
    """
    out = Path(out)
    if out.suffix != CHECKPOINT_SUFFIX:
        raise ConfigError(f"--out: expected a name ending in {CHECKPOINT_SUFFIX}, got {out}")
    if out.resolve() == Path(model).resolve():
        raise ConfigError(f"--out: expected another file than the model's, which it would replace, got {out}")
    if batch_size < 1:
        raise ConfigError(f"--batch-size: expected at least 1, got {batch_size}")
    check_share(keep, cost)
    if overrides and recipe is None:
        raise ConfigError(f"{', '.join(overrides)}: expected --recipe NAME beside it, to fine-tune with")
    module, manifest = loaded(model, arch)
    structure = structure_of(module)
    if not structure.uses:
        raise ConfigError(f"{manifest.model.name}: expected an EfficientViT (MSRA), SHViT or ViT to prune")
    groups_of(structure, of)  # what would be refused after the pictures is refused before them
    out.parent.mkdir(parents=True, exist_ok=True)
    seen = seen_in_training(_of_classes(data, split, manifest), manifest.provenance)
    source = take(seen, limit)
    held_out = unseen(_of_classes(data, "test", manifest), manifest.provenance)
    if seen.fingerprint == held_out.fingerprint:
        say("importance and accuracy are of the same pictures, which flatters; give data with splits")
    pictures = LabelledBatches(source, manifest.preprocess, batch_size)
    importance = channel_importance(module, structure.taps, pictures)
    spec = smaller_spec(module, structure, cuttables(structure, importance, of), keep=keep, cost=cost)
    smaller = cut(module, structure, spec, importance)
    before, after = (_measured(each, manifest, held_out) for each in (module, smaller))
    facts = {"from": Path(model).name, "keep": keep, "of": of, "cost": cost, "pictures": pictures.read}
    _write(smaller, manifest, out, {"macs": after.macs, "pruned": facts | {"by": provenance()}})
    result = Pruned(
        checkpoint=out,
        spec_file=out.with_suffix(SPEC_SUFFIX),
        spec=spec,
        pictures=pictures.read,
        before=before,
        after=after,
    )
    return result if recipe is None else _tuned(result, data, recipe, overrides)


def _of_classes(data: str | Path, split: str, manifest: Manifest) -> Source:
    return with_classes(open_source(data, split), manifest.class_names)


def _measured(model: nn.Module, manifest: Manifest, source: Source) -> Measured:
    scores = score(TorchEngine(model), source, Showing(preprocess=manifest.preprocess))
    return Measured(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=count_macs(model, manifest.model),
        top1=scores.top1,
        images=scores.images,
    )


def _write(model: Any, manifest: Manifest, out: Path, made: dict[str, Any]) -> None:
    metadata = {
        "class_names": list(manifest.class_names),
        "preprocess": to_mapping(manifest.preprocess),
        "provenance": {**manifest.provenance, **made},
    }
    save_weights(out, model, metadata)
    write_spec(model.spec, out.with_suffix(SPEC_SUFFIX))


def _tuned(pruned: Pruned, data: str | Path, recipe: str, overrides: Iterable[str]) -> Pruned:
    """The result with what fine-tuning made of it, at the model's own image size unless told otherwise."""
    from vitesse.train import train

    given = [f"init={pruned.checkpoint}", f"image_size={pruned.spec.image_size[1]}", *overrides]
    run = train(
        data,
        model=str(pruned.spec_file),
        out=pruned.checkpoint.with_suffix(""),
        recipe=recipe,
        overrides=given,
    )
    module, manifest = loaded(str(run.checkpoint))
    held_out = unseen(_of_classes(data, "test", manifest), manifest.provenance)
    tuned = _measured(module, manifest, held_out)
    return dataclasses.replace(pruned, tuned=tuned, tuned_checkpoint=run.checkpoint)
