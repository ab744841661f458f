"""Fold a trained model into fewer operations that compute the same.

Normalisations go into their convolution or linear layer, a skip around a depthwise convolution into its
kernel, the softmax scale into the queries, a distillation head into the classifier; tables of attention
biases are gathered; enlarging a map becomes two matrix products; what only helps a detector to train is
left out. The arithmetic is in float64; the folded model is float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitesse.errors import ExportError
from vitesse.heads.fcos import EndToEndHead
from vitesse.heads.upsample import MatrixUpsample, Upsample
from vitesse.layers import ClassifierHead, ConvNorm, NormLinear, Residual
from vitesse.models.efficientvit_msra import CascadedGroupAttention
from vitesse.models.shvit import SingleHeadSelfAttention


def fold(model: nn.Module) -> nn.Module:
    """A folded copy of a model, in evaluation mode; folding it again changes nothing.

    Raises:
        ExportError: a normalisation stands where no rule can fold it, or a folded weight is not finite.
    """
    folded = _fold(copy.deepcopy(model).eval())
    for name, module in folded.named_modules():
        if isinstance(module, _BatchNorm):
            raise ExportError(
                f"{name}: expected every BatchNorm beside a convolution or linear layer, this one is not"
            )
    for name, parameter in folded.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ExportError(
                f"{name}: not finite after folding; the model holds NaN, infinite or negative statistics"
            )
    return folded


def _fold(module: nn.Module) -> nn.Module:
    rule = _RULES.get(type(module))
    folded = rule(module) if rule is not None else None
    if folded is not None:
        return folded
    _fold_children(module)
    return module


def _fold_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        setattr(module, name, _fold(child))


def _fold_conv_norm(pair: ConvNorm) -> nn.Module:
    conv = pair.conv
    if conv.bias is not None:  # it has no norm
        return conv
    if not isinstance(pair.bn, _BatchNorm):  # one over channels, which depends on the picture
        return pair
    gain_C, shift_C = _affine(pair.bn)
    return _conv_like(conv, conv.weight.double() * gain_C.view(-1, 1, 1, 1), shift_C)


def _fold_norm_linear(pair: NormLinear) -> nn.Module:
    if not isinstance(pair.bn, _BatchNorm):
        return pair
    gain_C, shift_C = _affine(pair.bn)
    weight_KC = pair.linear.weight.double()
    return _linear(weight_KC * gain_C, pair.linear.bias.double() + weight_KC @ shift_C)


def _fold_residual(residual: Residual) -> nn.Module | None:
    """`x + depthwise(x)` is a depthwise convolution whose centre weight is one more."""
    branch = _fold(residual.branch)
    residual.branch = branch
    if not isinstance(branch, nn.Conv2d) or not _keeps_shape(branch):
        return residual
    weight_C1hw = branch.weight.double()
    weight_C1hw[:, :, branch.kernel_size[0] // 2, branch.kernel_size[1] // 2] += 1
    return _conv_like(branch, weight_C1hw, cast(Tensor, branch.bias).double())


def _fold_cascade(attention: CascadedGroupAttention) -> nn.Module:
    """The softmax scale goes into the query convolutions, the bias tables are gathered."""
    _fold_children(attention)
    if all(isinstance(conv, nn.Conv2d) for conv in attention.query_convs):
        for conv in attention.query_convs:
            _scale(cast(nn.Conv2d, conv), slice(None), attention.scale)
        attention.scale = 1.0
    rows, columns = attention.attention_bias_ARS.shape[1:]
    attention.gathered_ANN = attention.gathered_bias((rows, columns)).detach()
    return attention


def _fold_single_head(attention: SingleHeadSelfAttention) -> nn.Module:
    """The softmax scale goes into the convolution that makes the queries."""
    _fold_children(attention)
    _scale(cast(nn.Conv2d, attention.qkv), slice(attention.qkv_widths[0]), attention.scale)
    attention.scale = 1.0
    return attention


def _fold_end_to_end(head: EndToEndHead) -> nn.Module:
    """Only the predictor whose best are the result stays."""
    head.one_to_many = None
    _fold_children(head)
    return head


def _scale(conv: nn.Conv2d, outputs: slice, factor: float) -> None:
    for parameter in (conv.weight, cast(Tensor, conv.bias)):
        parameter.data[outputs] *= factor


def _fold_head(head: ClassifierHead) -> None:
    """The mean of two linear classifiers is one linear classifier."""
    if head.classifier_dist is None:
        return
    ours, teachers = _fold(head.classifier), _fold(head.classifier_dist)
    if not (isinstance(ours, nn.Linear) and isinstance(teachers, nn.Linear)):  # normalised over channels
        return
    head.classifier = _linear(  # type: ignore[assignment]
        (ours.weight.double() + teachers.weight.double()) / 2,
        (ours.bias.double() + teachers.bias.double()) / 2,
    )
    head.classifier_dist = None


_RULES: dict[type[nn.Module], Callable[[Any], nn.Module | None]] = {
    ConvNorm: _fold_conv_norm,
    NormLinear: _fold_norm_linear,
    Residual: _fold_residual,
    ClassifierHead: _fold_head,
    CascadedGroupAttention: _fold_cascade,
    SingleHeadSelfAttention: _fold_single_head,
    Upsample: lambda upsample: MatrixUpsample(upsample.factor).eval(),
    EndToEndHead: _fold_end_to_end,
}


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Gain and shift per channel (C,) float64 of a normalisation in evaluation mode."""
    mean_C, var_C = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    gain_C = norm.weight.double() / torch.sqrt(var_C + norm.eps)
    return gain_C, norm.bias.double() - mean_C * gain_C


def _keeps_shape(conv: nn.Conv2d) -> bool:
    """Whether a convolution is depthwise, its output as large as its input."""
    same = tuple(k // 2 for k in conv.kernel_size) == conv.padding and all(k % 2 for k in conv.kernel_size)
    return same and conv.stride == (1, 1) and conv.groups == conv.in_channels == conv.out_channels


def _conv_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        cast(Any, conv.kernel_size),
        cast(Any, conv.stride),
        cast(Any, conv.padding),
        groups=conv.groups,
    )
    folded.weight.data, folded.bias.data = weight.float(), bias.float()  # type: ignore[union-attr]
    return folded.eval()


def _linear(weight_KC: Tensor, bias_K: Tensor) -> nn.Linear:
    linear = nn.Linear(weight_KC.shape[1], weight_KC.shape[0])
    linear.weight.data, linear.bias.data = weight_KC.float(), bias_K.float()
    return linear.eval()
