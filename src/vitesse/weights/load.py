"""Weights into a model, through the key maps, with a report that leaves nothing out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from vitesse.errors import WeightsError
from vitesse.spec import ModelSpec
from vitesse.weights.files import parse_header, read_safetensors, spec_of, unwrap
from vitesse.weights.keymaps import is_index_buffer, keymap_for

Head = Literal["keep", "new", "fit"]


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of every tensor of the file and of the model.

    Attributes:
        naming: whose names the file uses: `vitesse`, `timm` or `original`.
        loaded: our names that got a value.
        renamed: our name to the file's, where they differ.
        missing: our names that got none; they keep the value they had.
        unexpected: names of the file that have no place in the model.
        resampled: our names whose value was fitted to another size.
        fresh: our names left at their initial value because a new head was asked for.
        skipped: names of the file not loaded on purpose: index buffers, the old head under a new one.
    """

    naming: str
    loaded: tuple[str, ...]
    renamed: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    resampled: tuple[str, ...]
    fresh: tuple[str, ...]
    skipped: tuple[str, ...]

    def explain(self) -> str:
        """The report in one line."""
        parts = [f"loaded {len(self.loaded)} tensors from {self.naming} names"]
        for label in ("missing", "unexpected", "resampled", "fresh", "skipped"):
            names: tuple[str, ...] = getattr(self, label)
            if names:
                parts.append(
                    f"{len(names)} {label} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                )
        return "; ".join(parts)


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    strict: bool = True,
    head: Head = "keep",
    first_conv: Literal["keep", "adapt"] = "keep",
) -> LoadReport:
    """Copy weights into a model; on any error the model stays as it was.

    Bias and position tables of another image size are resampled. A position table says how many patches it
    is for, not of which sides: those come from the file where Vitesse wrote it, else it is taken as square.

    Args:
        model: from `create_model` or `build`; keeps its dtype and device.
        source: a `.safetensors` file, or named tensors; ours, timm's or the original release's names.
        strict: refuse missing and unexpected tensors; otherwise only report them.
        head: `new` leaves the model's classifier as it is, whatever the file's; `fit` does where the file's
            has other classes.
        first_conv: `adapt` fits the first convolution to the model's channels (`adapt_channels`).

    Raises:
        WeightsError: no safetensors; another model's weights; values that are no weights, such as NaN; shapes
            or an order of channels that differ; with `strict`, missing or unexpected tensors.
    """
    label, tensors, written_for = _open(source, spec_of(model).name)
    return load_tensors(
        model,
        tensors,
        label,
        strict=strict,
        head=head,
        first_conv=first_conv,
        image_size=None if written_for is None else written_for.image_size,
        foreign=written_for is None,
    )


def load_tensors(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    label: str,
    *,
    strict: bool = True,
    head: Head = "keep",
    first_conv: Literal["keep", "adapt"] = "keep",
    related: bool = False,
    image_size: tuple[int, int] | None = None,
    foreign: bool = True,
) -> LoadReport:
    """As `load_weights`, for named tensors out of their containers.

    Args:
        label: what messages call them.
        related: of another architecture, that this one `starts_from`: what that has not starts fresh, what
            this one has not is skipped.
        image_size: pixels that the weights were made for, where known.
        foreign: not written by Vitesse, so that the order of their channels must be checked.
    """
    own = model.state_dict()
    keymap = keymap_for(spec_of(model).name)
    naming = keymap.detect(tensors, own)
    heads = tuple(getattr(model, "head_prefixes", ()))
    found = list(keymap.read(tensors, naming))
    new_head = head == "new" or (head == "fit" and not _same_head(found, own, heads))
    fresh = (heads if new_head else ()) + (getattr(model, "fresh_prefixes", ()) if related else ())
    values: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    unexpected: list[str] = []
    skipped = [key for key in tensors if is_index_buffer(key)]
    for name, key, tensor in found:
        if new_head and name.startswith(heads):
            skipped.append(key)
        elif name in own and name not in values:
            values[name] = tensor
            renamed[name] = key
        else:
            (skipped if related else unexpected).append(key)
    _check_values(values, own, renamed, label)
    adapted = _adapt_first_conv(values, own) if first_conv == "adapt" else ()
    resampled = _resample_tables(model, values, own, image_size)
    _check_shapes(spec_of(model), values, own, renamed, heads, label)
    absent = [name for name in own if name not in values]
    report = LoadReport(
        naming=naming,
        loaded=tuple(values),
        renamed={name: key for name, key in renamed.items() if name != key},
        missing=tuple(name for name in absent if not name.startswith(fresh)),
        unexpected=tuple(unexpected),
        resampled=adapted + resampled,
        fresh=tuple(name for name in absent if name.startswith(fresh)),
        skipped=tuple(skipped),
    )
    _check_complete(report, strict, spec_of(model).name, heads, label)
    check_order = getattr(model, "check_channel_order", None)
    if foreign and check_order is not None:
        check_order(values, label)
    model.load_state_dict(values, strict=False)
    return report


def start_from(model: nn.Module, path: str | Path) -> LoadReport:
    """Weights to train on from: of the model's architecture, or of one that it `starts_from`.

    A head of other classes starts fresh, and what the other architecture does not have.

    Raises:
        WeightsError: see `load_weights`.
    """
    tensors, header = read_safetensors(path)
    written = parse_header(header, path)
    name, patterns = spec_of(model).name, tuple(getattr(model, "starts_from", ()))
    if written is not None and not any(fnmatchcase(written[0].name, known) for known in (name, *patterns)):
        raise WeightsError(
            f"{path}: expected weights of {' or '.join((name, *patterns))}, the file holds {written[0].name}"
        )
    same = written is not None and written[0].name == name
    return load_tensors(
        model,
        unwrap(tensors, path),
        str(path),
        head="fit",
        related=bool(patterns) and not same,
        image_size=written[0].image_size if written else None,
        foreign=written is None,
    )


def _same_head(
    found: Sequence[tuple[str, str, Tensor]], own: Mapping[str, Tensor], heads: tuple[str, ...]
) -> bool:
    """Whether the file's classifiers are those of the model, by name and shape."""
    theirs = {name: tensor.shape for name, _, tensor in found if name.startswith(heads)}
    return theirs == {name: tensor.shape for name, tensor in own.items() if name.startswith(heads)}


def adapt_channels(weight_OIHW: Tensor, in_chans: int) -> Tensor:
    """First convolution for another number of image channels, (O, in_chans, H, W).

    Channel j takes the filters of channel j modulo the old number, shared evenly among those that take them;
    fewer channels than before share all filters evenly. So a picture with equal channels gives the same
    response as before.
    """
    old = weight_OIHW.shape[1]
    if in_chans < old:
        return weight_OIHW.sum(1, keepdim=True).expand(-1, in_chans, -1, -1) / in_chans
    source = torch.arange(in_chans) % old
    copies = torch.bincount(source)[source].to(weight_OIHW)
    return weight_OIHW[:, source] / copies[:, None, None]


def _open(
    source: str | Path | Mapping[str, Tensor], name: str
) -> tuple[str, dict[str, Tensor], ModelSpec | None]:
    """A label for messages, the named tensors, and of which model they are where Vitesse wrote them."""
    if isinstance(source, Mapping):
        return "given weights", unwrap(source, "given weights"), None
    tensors, header = read_safetensors(source)
    found = parse_header(header, source)
    if found is not None and found[0].name != name:
        raise WeightsError(f"{source}: expected weights of {name}, the file holds {found[0].name}")
    return str(source), unwrap(tensors, source), found[0] if found else None


def _check_values(
    values: Mapping[str, Tensor], own: Mapping[str, Tensor], keys: Mapping[str, str], label: str
) -> None:
    """Refuse what is not finite in the model's own dtype, and variances below zero."""
    for name, tensor in values.items():
        if not tensor.is_floating_point():
            continue
        if not (finite := torch.isfinite(tensor.to(own[name].dtype))).all():
            bad = int((~finite).sum())
            raise WeightsError(
                f"{label}: {keys[name]}: expected finite numbers, {bad} of {tensor.numel()} are not"
            )
        if name.endswith("running_var") and (tensor < 0).any():
            bad = int((tensor < 0).sum())
            raise WeightsError(
                f"{label}: {keys[name]}: expected variances, {bad} of {tensor.numel()} are below zero"
            )


def first_conv_name(own: Mapping[str, Tensor]) -> str:
    """The name of the convolution that takes the image: the first weight with four dimensions."""
    return next(name for name, tensor in own.items() if tensor.ndim == 4)


def _adapt_first_conv(values: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[str, ...]:
    name = first_conv_name(own)
    in_chans = own[name].shape[1]
    if name not in values or values[name].ndim != 4 or values[name].shape[1] == in_chans:
        return ()
    values[name] = adapt_channels(values[name], in_chans)
    return (name,)


def _resample_tables(
    model: nn.Module,
    values: dict[str, Tensor],
    own: Mapping[str, Tensor],
    image_size: tuple[int, int] | None,
) -> tuple[str, ...]:
    """Fit the tables of another image size to the model's, in place; gives the names of those that changed.

    A module that has such tables names them, with the dimensions that may differ, in `resampled_on_load`.
    """
    changed = []
    for prefix, module in model.named_modules():
        for local, dims in getattr(module, "resampled_on_load", {}).items():
            name = f"{prefix}.{local}".lstrip(".")
            table = values.get(name)
            if table is None or _outside(table.shape, dims) != _outside(own[name].shape, dims):
                continue
            values[name] = cast(Any, module).resampled(table, image_size)
            if values[name] is not table:
                changed.append(name)
    return tuple(changed)


def _check_shapes(
    spec: ModelSpec,
    values: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    keys: Mapping[str, str],
    heads: tuple[str, ...],
    label: str,
) -> None:
    for name, tensor in values.items():
        expected, got = tuple(own[name].shape), tuple(tensor.shape)
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise WeightsError(f"{label}: {keys[name]}: expected {own[name].dtype}, got {tensor.dtype}")
        if expected == got:
            continue
        if name.startswith(heads) and expected[1:] == got[1:]:
            raise WeightsError(
                f"{label}: {keys[name]}: the file's head has {got[0]} classes, the model's {expected[0]}: "
                f"pass num_classes={got[0]}, or head='new' for a fresh one"
            )
        raise WeightsError(
            f"{label}: {keys[name]}: expected shape {expected} of {spec.name} with {spec.in_chans} channels, "
            f"got {got}"
        )


def _outside(shape: Sequence[int], dims: tuple[int, ...]) -> list[int]:
    return [-1 if dim in dims else size for dim, size in enumerate(shape)]


def _check_complete(report: LoadReport, strict: bool, name: str, heads: tuple[str, ...], label: str) -> None:
    if not report.loaded:
        names = ", ".join(report.unexpected[:2])
        raise WeightsError(
            f"{label}: expected weights of {name}, none of its tensors is in the file ({names}, ...)"
        )
    if not strict or not (report.missing or report.unexpected):
        return
    only_head = all(key.startswith(heads) for key in report.missing) and not report.unexpected
    advice = "pass head='new' for a fresh head" if only_head else "is it another architecture or head?"
    raise WeightsError(f"{label}: expected the weights of {name}: {report.explain()}; {advice}")
