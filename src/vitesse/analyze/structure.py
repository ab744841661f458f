"""Which channels a model has, by following them through its layers.

Of EfficientViT (MSRA) and SHViT all is said, so that a smaller model can be made of them; of our plain vision
transformers all but what carries the residual channels; of timm's and of its Swin only where queries, keys,
values, hidden and residual channels appear.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from vitesse.analyze.channels import INNER, SUBSAMPLING, Axis, Channels, Structure, Tap, Use
from vitesse.errors import ConfigError
from vitesse.layers import ConvNorm, FeedForward, PatchMerging, Residual, Subsample
from vitesse.models.efficientvit_msra import CascadedGroupAttention, EfficientViT
from vitesse.models.shvit import SHViT, SingleHeadSelfAttention
from vitesse.models.token_merging import MergingBlocks
from vitesse.models.vit import VisionTransformer


def structure_of(model: Any) -> Structure:
    """The channels of a classifier.

    Raises:
        ConfigError: it is of no family whose channels are known.
    """
    if isinstance(model, (EfficientViT, SHViT)):
        return _Staged(model).structure
    found = _transformer(model)
    if not any(tap.axis[0].kind == "q" for tap in found.taps):
        raise ConfigError(
            f"{model.spec.name}: expected EfficientViT (MSRA), SHViT, or a transformer with `qkv` in its "
            "attention such as ViT, DeiT and Swin; this one has no attention that is known"
        )
    return found


class _Staged:
    """Follows the channels through an EfficientViT (MSRA) or SHViT, layer by layer."""

    def __init__(self, model: Any) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.structure = Structure()
        self.stage, self.block = 0, ""
        widths = [self._width(number, stage) for number, stage in enumerate(model.stages, 1)]
        self._chain(model.stem, (), widths[0])
        for number, stage in enumerate(model.stages, 1):
            self.stage = number
            if number > 1:
                self.block = SUBSAMPLING
                self._subsample(stage.subsample, widths[number - 2], widths[number - 1])
            for index, block in enumerate(stage.blocks, 1):
                self.block = str(index)
                for residual in block:
                    self._residual(residual, widths[number - 1])
        for name, module in model.head.named_modules(prefix="head"):
            if isinstance(module, (nn.BatchNorm1d, nn.LayerNorm)):
                self._use_vectors(name, module, widths[-1])
            elif isinstance(module, nn.Linear):
                self._use(f"{name}.weight", 1, widths[-1])

    def _width(self, number: int, stage: nn.Module) -> tuple[Channels, ...]:
        """A stage's residual channels: a part for each head of a cascade, or those attended and the rest."""
        sizes, alike = [_residual_width(stage)], True
        for module in stage.modules():
            if isinstance(module, CascadedGroupAttention):
                heads = len(module.qkvs)
                sizes = [sizes[0] // heads] * heads
                break
            if isinstance(module, SingleHeadSelfAttention):
                sizes, alike = module.split_widths, False
                break
        return tuple(
            Channels(
                kind="width",
                stage=number,
                block="",
                size=size,
                group=f"width {number}" if alike else f"width {number}.{part}",
            )
            for part, size in enumerate(sizes)
        )

    def _channels(self, kind: str, size: int, group: str = "", tied: Channels | None = None) -> Channels:
        place = {"stage": self.stage, "block": self.block}
        return Channels(kind=kind, size=size, group=group, tied=tied, **place)  # type: ignore[arg-type]

    def _use(self, tensor: str, dim: int, axis: Axis) -> None:
        self.structure.uses.append(Use(tensor=tensor, dim=dim, axis=tuple(axis)))

    def _use_vectors(self, name: str, module: nn.Module, axis: Axis) -> None:
        """All values of a layer that has one for each channel."""
        for key, value in module.state_dict().items():
            if value.ndim == 1:
                self._use(f"{name}.{key}", 0, axis)

    def _tap(self, module: nn.Module, axis: Axis) -> None:
        self.structure.taps.append(Tap(module=self.names[module], axis=tuple(axis)))

    def _conv(self, conv: nn.Conv2d, given: Axis, made: Axis) -> None:
        name = self.names[conv]
        self._use(f"{name}.weight", 0, made)
        if conv.bias is not None:
            self._use(f"{name}.bias", 0, made)
        if conv.groups == 1 and given:
            self._use(f"{name}.weight", 1, given)

    def _conv_norm(self, layer: ConvNorm, given: Axis, made: Axis, tapped: bool = True) -> None:
        self._conv(layer.conv, given, made)
        self._use_vectors(self.names[layer.bn], layer.bn, made)
        if tapped:
            self._tap(layer, made)

    def _chain(self, layers: nn.Sequential, given: Axis, made: Axis) -> None:
        """Convolutions behind each other; what is between them has no weights."""
        convs = [layer for layer in layers if isinstance(layer, ConvNorm)]
        for layer in convs:
            axis = made if layer is convs[-1] else (self._channels(INNER, layer.conv.out_channels),)
            self._conv_norm(layer, given, axis)
            given = axis

    def _subsample(self, layers: Subsample, given: Axis, made: Axis) -> None:
        for name, layer in layers.named_children():
            if isinstance(layer, PatchMerging):
                self._merging(layer, given, made)
            else:
                assert isinstance(layer, Residual)
                self._residual(layer, given if name.endswith("0") else made)

    def _merging(self, layer: PatchMerging, given: Axis, made: Axis) -> None:
        hidden = (self._channels(INNER, layer.expand.conv.out_channels),)
        squeezed = (self._channels(INNER, layer.se.reduce.out_channels),)
        self._conv_norm(layer.expand, given, hidden, tapped=False)
        self._conv_norm(layer.depthwise, hidden, hidden)
        self._conv(layer.se.reduce, hidden, squeezed)
        self._tap(layer.se.reduce, squeezed)
        self._conv(layer.se.expand, squeezed, hidden)
        self._conv_norm(layer.project, hidden, made)

    def _residual(self, residual: Residual, width: Axis) -> None:
        branch = getattr(residual.branch, "attention", residual.branch)  # inside its windows
        if isinstance(branch, FeedForward):
            hidden = (self._channels("ffn", branch.expand.conv.out_channels, self.names[branch]),)
            self._conv_norm(branch.expand, width, hidden)
            self._conv_norm(branch.project, hidden, width)
        elif isinstance(branch, CascadedGroupAttention):
            self._cascade(branch, width)
        elif isinstance(branch, SingleHeadSelfAttention):
            self._single_head(branch, width)
        else:
            assert isinstance(branch, ConvNorm)
            self._conv_norm(branch, width, width)

    def _cascade(self, attention: CascadedGroupAttention, width: Axis) -> None:
        """What a head gives is added to what the next head sees, so these are cut alike."""
        values = []
        following = [*width[1:], None] if attention.feed == "cascaded" else [None] * len(width)
        parts: Any = zip(attention.qkvs, attention.query_convs, following, strict=True)
        for index, (qkv, query_conv, tied) in enumerate(parts):
            q, k, v = self._qkv(attention.qkv_widths, self.names[attention], tied)
            self._conv_norm(qkv, width if attention.feed == "full" else width[index : index + 1], (q, k, v))
            self._conv_norm(query_conv, (q,), (q,), tapped=False)
            values.append(v)
        self._project(attention.proj, values, width)

    def _single_head(self, attention: SingleHeadSelfAttention, width: Axis) -> None:
        q, k, v = self._qkv(attention.qkv_widths, self.names[attention])
        self._use_vectors(self.names[attention.norm], attention.norm, width[:1])
        self._conv_norm(attention.qkv, width[:1], (q, k, v))
        self._project(attention.proj, (v, *width[1:]), width)

    def _project(self, layers: Any, given: Axis, made: Axis) -> None:
        self._conv_norm(layers[1], given, made)

    def _qkv(
        self, sizes: Sequence[int], group: str, tied: Channels | None = None
    ) -> tuple[Channels, Channels, Channels]:
        """Queries meet keys one by one, so they are cut alike."""
        k = self._channels("k", sizes[1], group)
        return self._channels("q", sizes[0], tied=k), k, self._channels("v", sizes[2], tied=tied)


def _residual_width(stage: nn.Module) -> int:
    projections = [module.project.conv for module in stage.modules() if isinstance(module, FeedForward)]
    return int(projections[-1].out_channels)


_STAGE = re.compile(r"(?:^|\.)(?:layers|stages)\.(\d+)")
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)")


def _transformer(model: nn.Module) -> Structure:
    """Blocks with `qkv` and `proj`, `fc1` and `fc2`: ViT, DeiT and Swin, ours and timm's.

    All queries lie before all keys, and these before all values.
    """
    found = Structure()
    widths: dict[int, Channels] = {}
    is_cut = isinstance(model, VisionTransformer) and not isinstance(model.blocks, MergingBlocks)
    for name, module in model.named_modules():
        block = _BLOCK.search(name)
        if block is None:
            continue
        stage = int(match[1]) + 1 if (match := _STAGE.search(name)) else 1
        place: dict[str, Any] = {"stage": stage, "block": str(int(block[1]) + 1)}
        for first, last in (("qkv", "proj"), ("fc1", "fc2")):
            inner, outer = getattr(module, first, None), getattr(module, last, None)
            if not (isinstance(inner, nn.Linear) and isinstance(outer, nn.Linear)):
                continue
            sizes = _qkv_widths(module) if first == "qkv" else [outer.in_features]
            if inner.out_features != sum(sizes) or hasattr(module, "key_dim"):
                continue  # of unknown sizes, or head by head as in TinyViT and EfficientFormer
            if stage not in widths:
                widths[stage] = Channels(kind="width", stage=stage, block="", size=outer.out_features)
                entry = name[: block.end()]
                found.taps.append(Tap(module=entry, axis=(widths[stage],), dim=-1, of_input=True))
            if first == "qkv":
                made = _heads(module, name, place)
            else:
                made = (Channels(kind="ffn", size=inner.out_features, group=name, **place),)
            found.taps.append(Tap(module=f"{name}.{first}", axis=made, dim=-1))
            found.taps.append(Tap(module=f"{name}.{last}", axis=(widths[stage],), dim=-1))
            if is_cut:
                found.uses += [
                    Use(tensor=f"{name}.{first}.{key}", dim=0, axis=made) for key in ("weight", "bias")
                ]
            if is_cut and last == "fc2":
                found.uses.append(Use(tensor=f"{name}.{last}.weight", dim=1, axis=made))
    return found


def _qkv_widths(attention: Any) -> Sequence[int]:
    """Of all heads."""
    equal: Sequence[int] = [attention.proj.in_features] * 3
    return getattr(attention, "qkv_widths", equal)


def _heads(attention: Any, group: str, place: Mapping[str, Any]) -> tuple[Channels, ...]:
    """Queries of all heads, keys, values; queries meet keys one by one, so they are cut alike."""
    heads = getattr(attention, "num_heads", 1)
    q, k, v = (width // heads for width in _qkv_widths(attention))
    keys = [Channels(kind="k", size=k, group=group, **place) for _ in range(heads)]
    queries = [Channels(kind="q", size=q, tied=key, **place) for key in keys]
    return *queries, *keys, *(Channels(kind="v", size=v, **place) for _ in range(heads))
