"""Which channels matter: the change of the loss, to first order, when a channel is taken out.

Molchanov et al., CVPR 2019, arXiv 1906.10771, as in the analysis of EfficientViT (arXiv 2305.07027, section
2.3 and figure 5).

Shape suffixes: B images, C channels.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.analyze.channels import KINDS, Channels, Structure, Tap
from vitesse.analyze.structure import structure_of
from vitesse.catalogue import is_untrained
from vitesse.data.sources import Source, open_source, take
from vitesse.errors import ConfigError, DataError, ImageError, WeightsError
from vitesse.metrics import with_classes
from vitesse.models.create import build, create_model
from vitesse.models.foreign import is_timm, timm_preprocess
from vitesse.models.loading import load_torch, manifest_for
from vitesse.progress import track
from vitesse.runtime.artefact import bundled_names
from vitesse.runtime.imaging import load_tensor
from vitesse.spec import Manifest, PreprocessSpec, as_size, to_mapping
from vitesse.weights.load import load_tensors

FEWEST = 2


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """The channels of one kind in one block.

    Attributes:
        kind: of `vitesse.analyze.channels.KINDS`.
        stage: from 1 on.
        block: from 1 on, `s` for a subsampling, empty for the whole stage.
        importance: of each channel, in units of the loss.
    """

    kind: str
    stage: int
    block: str
    importance: NDArray[np.float64]

    @property
    def place(self) -> str:
        """Such as `2.1`, the first block of the second stage."""
        return f"{self.stage}.{self.block}" if self.block else str(self.stage)


@dataclass(frozen=True, kw_only=True)
class ImportanceAnalysis:
    """How much each channel of a model matters.

    Attributes:
        model: as the user named it.
        pictures: so many were looked at.
        refused: pictures that could not be read.
        labels: `data` or `self`, the model's own first choices.
        groups: in the order of the model, stage by stage.
    """

    model: str
    image_size: tuple[int, int]
    pictures: int
    refused: int
    labels: str
    groups: tuple[ChannelGroup, ...]

    def remaining(self, cut: float) -> list[int]:
        """How many channels of each group stay when the least important share `cut` of all is taken out."""
        every = np.concatenate([group.importance for group in self.groups])
        owner = np.repeat(np.arange(len(self.groups)), [len(group.importance) for group in self.groups])
        kept = np.argsort(every, kind="stable")[round(cut * len(every)) :]
        return [int(count) for count in np.bincount(owner[kept], minlength=len(self.groups))]

    def share_by_kind(self, cut: float) -> dict[str, float]:
        """The share of each kind's channels that stays."""
        left, total = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
        for group, stays in zip(self.groups, self.remaining(cut), strict=True):
            left[group.kind] += stays
            total[group.kind] += len(group.importance)
        return {kind: left[kind] / total[kind] for kind in KINDS if total[kind]}

    def records(self, cut: float, with_channels: bool = False) -> list[dict[str, Any]]:
        """One JSON record a group; `importance` is the mean over its channels, `channels` their number."""
        common = {"model": self.model, "image_size": list(self.image_size), "pictures": self.pictures}
        common |= {"refused": self.refused, "labels": self.labels, "cut": cut}
        return [
            {
                **common,
                "kind": group.kind,
                "stage": group.stage,
                "block": group.block or None,
                "channels": len(group.importance),
                "stay": stays,
                "share": round(stays / len(group.importance), 4),
                "importance": float(group.importance.mean()),
                **({"importances": group.importance.tolist()} if with_channels else {}),
            }
            for group, stays in zip(self.groups, self.remaining(cut), strict=True)
        ]


def analyze_importance(
    model: str,
    data: str | Path,
    *,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 16,
    image_size: int | tuple[int, int] | None = None,
    arch: str | None = None,
    own_labels: bool = False,
) -> ImportanceAnalysis:
    """How much the channels of queries, keys, values, feed-forwards and stages matter on labelled pictures.

    The importance of a channel is the mean over pictures of |gradient x weight|, added up within the bars
    over the weights and biases that make the channel. That equals the gradient of a factor of 1 put on its
    values, and the change of the loss, to first order, when it is taken out. The batch size changes nothing.

    Args:
        model: a `.safetensors` checkpoint, a name of ours or `timm:NAME` with published weights.
        data: pictures as `open_source` reads them.
        split: of `data`.
        limit: at most so many pictures, drawn by seed 0.
        batch_size: pictures at a time.
        image_size: (height, width) in pixels, or one number for both; default the model's own.
        arch: the architecture of a checkpoint whose header does not name it.
        own_labels: take the model's first choices for labels, so that its classes need not be the data's.

    Raises:
        UnknownModelError: no model has this name; the message lists the nearest.
        ConfigError: an impossible number, or a model without channels that are known.
        DataError: the data cannot be read, its classes are not the model's, or it has too few pictures.
        WeightsError, MissingExtraError: see their messages.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch-size: expected at least 1, got {batch_size}")
    module, manifest = loaded(model, arch, None if image_size is None else as_size(image_size))
    structure = structure_of(module)
    source = take(open_source(data, split), limit)
    if not own_labels:
        source = with_classes(source, manifest.class_names)
    pictures = LabelledBatches(source, manifest.preprocess, batch_size)
    found = channel_importance(module, structure.taps, pictures, own_labels=own_labels)
    return ImportanceAnalysis(
        model=model,
        image_size=manifest.model.image_size,
        pictures=pictures.read,
        refused=len(source) - pictures.read,
        labels="self" if own_labels else "data",
        groups=_grouped(structure, found),
    )


def loaded(
    model: str, arch: str | None = None, image_size: tuple[int, int] | None = None
) -> tuple[nn.Module, Manifest]:
    """A classifier in evaluation mode, and what its weights mean; for another image size if given.

    Raises:
        ConfigError: it is no classifier, or does not take the size.
        UnknownModelError, WeightsError, MissingExtraError: see their messages.
    """
    module: nn.Module
    if model in bundled_names() or is_untrained(model):
        why = "is bundled as an artefact" if model in bundled_names() else "has no published weights"
        raise ConfigError(f"{model}: expected a checkpoint (.safetensors) or a model's name, this one {why}")
    if is_timm(model):
        module = create_model(model, pretrained=True)
        preprocess = timm_preprocess(model)
        spec = dataclasses.replace(module.spec, image_size=preprocess.image_size)
        manifest = manifest_for(spec, {"preprocess": to_mapping(preprocess)})
    else:
        module, manifest = load_torch(model, arch)
    if manifest.task != "classify":
        raise ConfigError(f"{model}: expected a classifier, got a model to {manifest.task}")
    if image_size not in (None, manifest.model.image_size):
        spec = dataclasses.replace(manifest.model, image_size=image_size)
        resized = build(spec)
        load_tensors(resized, module.state_dict(), model, image_size=manifest.model.image_size, foreign=False)
        module = resized
        preprocess = dataclasses.replace(manifest.preprocess, image_size=image_size)
        manifest = dataclasses.replace(manifest, model=spec, preprocess=preprocess)
    return module.eval(), manifest


class LabelledBatches:
    """The readable pictures of a source as tensors (B, C, H, W) with their labels (B,).

    Attributes:
        read: so many were given in the last pass.
    """

    def __init__(self, source: Source, preprocess: PreprocessSpec, batch_size: int) -> None:
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.read = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """
        Raises:
            DataError: fewer than two pictures could be read.
        """
        self.read, size = 0, self.batch_size
        total = -(-len(self.source) // size)
        for first in track(range(0, len(self.source), size), "importance", total):
            tensors, labels = [], []
            for index in range(first, min(first + size, len(self.source))):
                with contextlib.suppress(ImageError, OSError):
                    tensors.append(load_tensor(self.source.read(index), self.preprocess))
                    labels.append(int(self.source.labels[index]))
            if tensors:
                self.read += len(tensors)
                yield torch.from_numpy(np.stack(tensors)), torch.tensor(labels)
        if self.read < FEWEST:
            raise DataError(f"expected at least {FEWEST} readable pictures, got {self.read}")


def channel_importance(
    model: nn.Module,
    taps: Sequence[Tap],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    own_labels: bool = False,
) -> dict[Channels, NDArray[np.float64]]:
    """The importance (C,) of all channels that `taps` name, see `analyze_importance`.

    Where channels are tied to others, these are charged with both.

    Args:
        model: a classifier in evaluation mode; its weights get no gradients from now on.
        batches: images (B, ...) and labels (B,).

    Raises:
        ConfigError: a module's weights are used without calling it, so that its values cannot be followed.
        WeightsError: the gradients are not finite.
    """
    model.requires_grad_(False)
    totals: dict[Channels, Tensor] = {}
    pictures = 0
    for images, labels in batches:
        pictures += len(images)
        with _gated(model, taps, len(images)) as gates:
            logits = model(images)
            _check_called(taps, gates)
            loss = F.cross_entropy(logits, logits.argmax(1) if own_labels else labels, reduction="sum")
            gradients = torch.autograd.grad(loss, [gates[tap] for tap in taps])
        changes: dict[Channels, Tensor] = {}
        for tap, gradient_BC in zip(taps, gradients, strict=True):
            pieces = torch.split(gradient_BC.double(), [channels.size for channels in tap.axis], dim=1)
            for channels, change_BC in zip(tap.axis, pieces, strict=True):
                for charged in _charged(channels):
                    changes[charged] = changes.get(charged, 0) + change_BC
        for channels, change_BC in changes.items():
            totals[channels] = totals.get(channels, 0) + change_BC.abs().sum(0)
    if not all(total.isfinite().all() for total in totals.values()):
        raise WeightsError("importance of channels: its gradients are not finite; are these sound weights?")
    return {channels: (total / pictures).numpy() for channels, total in totals.items()}


def _check_called(taps: Sequence[Tap], gates: Mapping[Tap, Tensor]) -> None:
    if silent := [tap.module for tap in taps if tap not in gates]:
        raise ConfigError(
            f"{silent[0]}: expected a layer that the model calls, its attention takes the weights alone, as "
            "Swin V2 and BEiT do; take a ViT, DeiT or Swin"
        )


def _charged(channels: Channels) -> set[Channels]:
    """These and their leader; but without a key its query says nothing, so that counts once."""
    return {channels} if channels.kind == "q" else {channels, channels.leader}


@contextlib.contextmanager
def _gated(model: nn.Module, taps: Sequence[Tap], images: int) -> Iterator[Mapping[Tap, Tensor]]:
    """While this lasts, the values at each tap are multiplied by factors of 1: (B, C)."""
    gates: dict[Tap, Tensor] = {}
    handles = []

    def gated(tap: Tap, x: Tensor) -> Tensor:
        gate_BC = torch.ones(images, x.shape[tap.dim], dtype=x.dtype, device=x.device, requires_grad=True)
        gates[tap] = gate_BC
        spread_BC = gate_BC.repeat_interleave(len(x) // images, 0)  # windows of an image lie side by side
        shape = [len(x)] + [1] * (x.ndim - 1)
        shape[tap.dim] = x.shape[tap.dim]
        return x * spread_BC.view(shape)

    for tap in taps:
        module = model.get_submodule(tap.module)
        if tap.of_input:
            hook = _before(tap, gated)
            handles.append(module.register_forward_pre_hook(hook))
        else:
            handles.append(module.register_forward_hook(_after(tap, gated)))
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def _before(tap: Tap, gated: Any) -> Any:
    return lambda _, inputs: (gated(tap, inputs[0]), *inputs[1:])


def _after(tap: Tap, gated: Any) -> Any:
    return lambda _, inputs, output: gated(tap, output)


def _grouped(structure: Structure, found: Mapping[Channels, NDArray[np.float64]]) -> tuple[ChannelGroup, ...]:
    """By kind, stage and block, in the order of the model."""
    parts: dict[tuple[int, str, str], list[NDArray[np.float64]]] = {}
    for channels in structure.channels():
        if channels.kind in KINDS:
            parts.setdefault((channels.stage, channels.block, channels.kind), []).append(found[channels])
    return tuple(
        ChannelGroup(kind=kind, stage=stage, block=block, importance=np.concatenate(arrays))
        for (stage, block, kind), arrays in parts.items()
    )
