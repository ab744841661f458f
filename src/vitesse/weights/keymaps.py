"""Two-way maps between our parameter names and those of public releases.

A family's names are one table, a row for each part of a name: (ours, timm's, the original release's).
The same rows are read from left to right to write foreign names and from right to left to read them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from vitesse.errors import WeightsError, did_you_mean

OURS, TIMM, ORIGINAL = "vitesse", "timm", "original"

# `<s+1>` is a number one higher than `<s>`. The first row that fits a part of a name wins.
EFFICIENTVIT_MSRA = (
    ("stem.0", "patch_embed.conv1", "patch_embed.0"),
    ("stem.2", "patch_embed.conv2", "patch_embed.2"),
    ("stem.4", "patch_embed.conv3", "patch_embed.4"),
    ("stem.6", "patch_embed.conv4", "patch_embed.6"),
    ("stages.0.blocks.<j>", "stages.0.blocks.<j>", "blocks1.<j>"),
    ("stages.<s>.blocks.<j>", "stages.<s>.blocks.<j>", "blocks<s+1>.<j+3>"),
    ("stages.<s>.subsample.dw0", "stages.<s>.downsample.res1.0", "blocks<s+1>.0.0"),
    ("stages.<s>.subsample.ffn0", "stages.<s>.downsample.res1.1", "blocks<s+1>.0.1"),
    ("stages.<s>.subsample.merge.expand", "stages.<s>.downsample.patchmerge.conv1", "blocks<s+1>.1.conv1"),
    ("stages.<s>.subsample.merge.depthwise", "stages.<s>.downsample.patchmerge.conv2", "blocks<s+1>.1.conv2"),
    ("stages.<s>.subsample.merge.project", "stages.<s>.downsample.patchmerge.conv3", "blocks<s+1>.1.conv3"),
    (
        "stages.<s>.subsample.merge.se.reduce",
        "stages.<s>.downsample.patchmerge.se.fc1",
        "blocks<s+1>.1.se.fc1",
    ),
    (
        "stages.<s>.subsample.merge.se.expand",
        "stages.<s>.downsample.patchmerge.se.fc2",
        "blocks<s+1>.1.se.fc2",
    ),
    ("stages.<s>.subsample.dw1", "stages.<s>.downsample.res2.0", "blocks<s+1>.2.0"),
    ("stages.<s>.subsample.ffn1", "stages.<s>.downsample.res2.1", "blocks<s+1>.2.1"),
    ("branch.expand", "m.pw1", "m.pw1"),
    ("branch.project", "m.pw2", "m.pw2"),
    ("branch.attention", "m.attn", "m.attn"),
    ("branch", "m", "m"),
    ("query_convs", "dws", "dws"),
    ("attention_bias_ARS", "attention_biases", "attention_biases"),
    ("head.classifier", "head", "head"),
    ("head.classifier_dist", "head_dist", "head_dist"),
    ("conv", "conv", "c"),
    ("linear", "linear", "l"),
)

SHVIT = (
    ("stem", "patch_embed", "patch_embed"),
    ("stages.0.blocks.<j>", "stages.0.blocks.<j>", "blocks1.<j>"),
    ("stages.<s>.blocks.<j>", "stages.<s>.blocks.<j>", "blocks<s+1>.<j+3>"),
    ("stages.<s>.subsample.dw0", "stages.<s>.downsample.0", "blocks<s+1>.0.0"),
    ("stages.<s>.subsample.ffn0", "stages.<s>.downsample.1", "blocks<s+1>.0.1"),
    ("stages.<s>.subsample.merge.expand", "stages.<s>.downsample.2.conv1", "blocks<s+1>.1.conv1"),
    ("stages.<s>.subsample.merge.depthwise", "stages.<s>.downsample.2.conv2", "blocks<s+1>.1.conv2"),
    ("stages.<s>.subsample.merge.project", "stages.<s>.downsample.2.conv3", "blocks<s+1>.1.conv3"),
    ("stages.<s>.subsample.merge.se.reduce", "stages.<s>.downsample.2.se.fc1", "blocks<s+1>.1.se.fc1"),
    ("stages.<s>.subsample.merge.se.expand", "stages.<s>.downsample.2.se.fc2", "blocks<s+1>.1.se.fc2"),
    ("stages.<s>.subsample.dw1", "stages.<s>.downsample.3", "blocks<s+1>.2.0"),
    ("stages.<s>.subsample.ffn1", "stages.<s>.downsample.4", "blocks<s+1>.2.1"),
    ("dw", "conv", "conv"),
    ("branch.expand", "m.pw1", "m.pw1"),
    ("branch.project", "m.pw2", "m.pw2"),
    ("branch.norm", "m.pre_norm", "m.pre_norm"),
    ("branch", "m", "m"),
    ("head.classifier", "head", "head"),
    ("head.classifier_dist", "head_dist", "head_dist"),
    ("conv", "c", "c"),
    ("linear", "l", "l"),
)

EFFICIENTVIT_MIT_PARTS = (
    ("expand", "inverted_conv", "inverted_conv"),
    ("spatial", "spatial_conv", "spatial_conv"),
    ("depthwise", "depth_conv", "depth_conv"),
    ("project", "point_conv", "point_conv"),
    ("qkv", "qkv.conv", "qkv.conv"),
    ("aggregate", "aggreg", "aggreg"),
    ("bn", "norm", "norm"),
)


def _efficientvit_mit(stem: str, stage: str) -> tuple[tuple[str, str, str], ...]:
    """The rows of a series by what its original release calls the stem and stage `<s>`."""
    return (
        ("stem.conv", "stem.in_conv", f"{stem}.op_list.0"),
        ("stem.blocks.<j>.branch", "stem.res<j>.main", f"{stem}.op_list.<j+1>.main"),
        ("stages.<s>.0", "stages.<s>.blocks.0.main", f"{stage}.op_list.0.main"),
        ("stages.<s>.<j>.branch", "stages.<s>.blocks.<j>.main", f"{stage}.op_list.<j>.main"),
        (
            "stages.<s>.<j>.attention.branch",
            "stages.<s>.blocks.<j>.context_module.main",
            f"{stage}.op_list.<j>.context_module.main",
        ),
        (
            "stages.<s>.<j>.ffn.branch",
            "stages.<s>.blocks.<j>.local_module.main",
            f"{stage}.op_list.<j>.local_module.main",
        ),
        ("head.conv", "head.in_conv", "head.op_list.0"),
        ("head.fc", "head.classifier.0", "head.op_list.2.linear"),
        ("head.norm", "head.classifier.1", "head.op_list.2.norm"),
        ("head.classifier", "head.classifier.4", "head.op_list.3.linear"),
        *EFFICIENTVIT_MIT_PARTS,
    )


EFFICIENTVIT_MIT_B = _efficientvit_mit("backbone.input_stem", "backbone.stages.<s>")
EFFICIENTVIT_MIT_L = _efficientvit_mit("backbone.stages.0", "backbone.stages.<s+1>")

# Of EfficientViT-Seg's head: ours, the original's.
SEG_HEAD = (
    ("head.inputs.2", "head.input_ops.2"),
    ("head.inputs.<j>", "head.input_ops.<j>.op_list.0"),
    ("head.blocks.<j>.branch", "head.middle.op_list.<j>.main"),
    *EFFICIENTVIT_MIT_PARTS,
)
SEG_CLASSIFIER = (("head.classifier", "head.output_ops.0.op_list.0.conv"),)
SEG_EXPANDED_CLASSIFIER = (
    ("head.expand.0", "head.output_ops.0.op_list.0"),
    ("head.classifier", "head.output_ops.0.op_list.1.conv"),
)

VIT = (
    ("patch_embed", "patch_embed.proj", "patch_embed.proj"),
    ("attention.branch.norm", "norm1", "norm1"),
    ("attention.branch.attention", "attn", "attn"),
    ("ffn.branch.norm", "norm2", "norm2"),
    ("ffn.branch", "mlp", "mlp"),
    ("head.classifier", "head", "head"),
    ("head.classifier_dist", "head_dist", "head_dist"),
    ("blocks.<j>", "blocks.<j>", "blocks.<j>"),
)

# Models for promptable masks, published under their original names only.
PROMPT_DECODER = (
    (
        "decoder.prompt_encoder.positions.frequencies",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    ("decoder.prompt_encoder.kinds.<j>", "prompt_encoder.point_embeddings.<j>.weight"),
    ("decoder.prompt_encoder.no_point", "prompt_encoder.not_a_point_embed.weight"),
    ("decoder.prompt_encoder.no_mask", "prompt_encoder.no_mask_embed.weight"),
    ("decoder.prompt_encoder.mask_downscale", "prompt_encoder.mask_downscaling"),
    ("decoder.mask_decoder.iou_token", "mask_decoder.iou_token.weight"),
    ("decoder.mask_decoder.mask_tokens", "mask_decoder.mask_tokens.weight"),
    ("decoder.mask_decoder.upscale", "mask_decoder.output_upscaling"),
    ("decoder.mask_decoder.hypernetworks", "mask_decoder.output_hypernetworks_mlps"),
    ("decoder.mask_decoder.quality", "mask_decoder.iou_prediction_head"),
    ("decoder.mask_decoder.transformer.blocks", "mask_decoder.transformer.layers"),
    ("decoder.mask_decoder.transformer.final", "mask_decoder.transformer.final_attn_token_to_image"),
    ("decoder.mask_decoder.transformer.norm_final", "mask_decoder.transformer.norm_final_attn"),
    ("self_attention", "self_attn"),
    ("to_image", "cross_attn_token_to_image"),
    ("to_tokens", "cross_attn_image_to_token"),
    ("q", "q_proj"),
    ("k", "k_proj"),
    ("v", "v_proj"),
    ("out", "out_proj"),
    ("mlp.fc1", "mlp.lin1"),
    ("mlp.fc2", "mlp.lin2"),
)

EFFICIENTVIT_SAM = (
    *PROMPT_DECODER,
    ("neck.norm", "image_encoder.norm"),
    ("neck.project", "image_encoder.neck.output_ops.0.op_list.0.conv"),
    ("neck.inputs.<j>", "image_encoder.neck.input_ops.<j>.op_list.0"),
    ("neck.blocks.<j>.branch", "image_encoder.neck.middle.op_list.<j>.main"),
    *(
        (f"backbone.{ours}", f"image_encoder.{original}")
        for ours, _, original in EFFICIENTVIT_MIT_L
        if original.startswith("backbone.")
    ),
    *((ours, original) for ours, _, original in EFFICIENTVIT_MIT_PARTS),
)

EFFICIENTSAM = (
    *PROMPT_DECODER,
    ("neck", "image_encoder.neck"),
    ("backbone.patch_embed", "image_encoder.patch_embed.proj"),
    *(
        (f"backbone.blocks.<j>.{ours}", f"image_encoder.blocks.<j>.{original}")
        for ours, _, original in VIT
        if ".branch" in ours
    ),
    ("backbone", "image_encoder"),
)

TIMM_PREFIX = "timm:"
BIAS_TABLE = "attention_bias_ARS"
BIAS_INDEX = (
    "attention_bias_idxs"  # the original's map from position pairs to table entries, derived from the size
)

Rename = Callable[[str], str]
_NUMBER = re.compile(r"<(\w)(?:\+(\d+))?>")


class _Row:
    """One row of a table, read from one column to another."""

    def __init__(self, source: str, target: str) -> None:
        self.offsets = {letter: int(offset or 0) for letter, offset in _NUMBER.findall(source)}
        self.target = target
        self.pattern = re.compile(_NUMBER.sub(r"(?P<\1>\\d+)", source.replace(".", r"\.")) + r"(?=\.|$)")

    def apply(self, name: str) -> tuple[str, str] | None:
        """The renamed beginning of `name` and what is left of it, or nothing where the row does not fit."""
        match = self.pattern.match(name)
        if match is None:
            return None
        numbers = {letter: int(match[letter]) - offset for letter, offset in self.offsets.items()}
        if min(numbers.values(), default=0) < 0:
            return None
        renamed = _NUMBER.sub(lambda number: str(numbers[number[1]] + int(number[2] or 0)), self.target)
        return renamed, name[match.end() :].removeprefix(".")


def _renaming(table: Iterable[tuple[str, ...]], source: int, target: int) -> Rename:
    """The function that rewrites names of one column of a table as those of another."""
    rows = [_Row(columns[source], columns[target]) for columns in table]

    def rename(name: str) -> str:
        done = []
        while name:
            part, _, rest = name.partition(".")
            done_and_rest = next((result for row in rows if (result := row.apply(name))), (part, rest))
            done.append(done_and_rest[0])
            name = done_and_rest[1]
        return ".".join(done)

    return rename


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """The names that one family's weights are found under.

    Attributes:
        renames: by naming, the functions (their name to ours, our name to theirs).
        parts: by naming, for weights of a part of the model alone, the function (their name to ours).
    """

    renames: Mapping[str, tuple[Rename, Rename]]
    parts: Mapping[str, Rename] = field(default_factory=dict)

    @property
    def readers(self) -> Mapping[str, Rename]:
        """By naming, for weights of the whole model or of a part, the function (their name to ours)."""
        return {**{naming: to_ours for naming, (to_ours, _) in self.renames.items()}, **self.parts}

    def detect(self, keys: Iterable[str], ours: Iterable[str]) -> str:
        """The naming under which most of a file's `keys` are names of `ours`."""
        keys, known, readers = list(keys), set(ours), self.readers
        return max(readers, key=lambda naming: sum(readers[naming](key) in known for key in keys))

    def read(self, state: Mapping[str, Tensor], naming: str) -> Iterator[tuple[str, str, Tensor]]:
        """Foreign weights as (our name, their name, tensor), bias tables (A, R*R) unfolded to (A, R, R).

        Index buffers are left out.
        """
        to_ours = self.readers[naming]
        for key, tensor in state.items():
            if not is_index_buffer(key):
                name = to_ours(key)
                yield name, key, _unfold(tensor) if name.endswith(BIAS_TABLE) else tensor

    def write(self, state: Mapping[str, Tensor], naming: str) -> dict[str, Tensor]:
        """Our weights under foreign names; the original's index buffers are added.

        Raises:
            WeightsError: the naming is unknown, or a bias table is not square, as foreign ones are.
        """
        if naming not in self.renames:
            raise WeightsError(
                f"no naming {naming!r} for these weights; {did_you_mean(naming, self.renames)}"
            )
        from_ours = self.renames[naming][1]
        result: dict[str, Tensor] = {}
        for key, tensor in state.items():
            name = from_ours(key)
            if naming == OURS or not key.endswith(BIAS_TABLE):
                result[name] = tensor
                continue
            rows, columns = tensor.shape[1:]
            if rows != columns:
                raise WeightsError(
                    f"{key}: {naming} files hold square tables only, this one is {rows}x{columns}"
                )
            result[name] = tensor.flatten(1)
            if naming == ORIGINAL:
                result[name.rpartition(".")[0] + f".{BIAS_INDEX}"] = bias_index(rows)
        return result


def is_index_buffer(key: str) -> bool:
    """Whether a foreign name is an index buffer, which we derive and never load."""
    return key.endswith(BIAS_INDEX)


def bias_index(side: int) -> Tensor:
    """The original's index buffer, int64 (N, N), N = side*side: |rows apart| * side + |columns apart|."""
    row_N = torch.arange(side).repeat_interleave(side)
    column_N = torch.arange(side).repeat(side)
    return (row_N[:, None] - row_N).abs() * side + (column_N[:, None] - column_N).abs()


def _unfold(table: Tensor) -> Tensor:
    side = math.isqrt(table.shape[-1])
    return table.view(-1, side, side) if table.ndim == 2 and side * side == table.shape[1] else table


def _same(name: str) -> str:
    return name


_OWN = {OURS: (_same, _same)}
_TIMM_WRAPPER = KeyMap(
    renames={**_OWN, TIMM: (lambda name: f"model.{name}", lambda name: name.removeprefix("model."))}
)


def _keymap(table: Iterable[tuple[str, ...]]) -> KeyMap:
    rows = tuple(table)
    foreign = {
        naming: (_renaming(rows, column, 0), _renaming(rows, 0, column))
        for column, naming in ((1, TIMM), (2, ORIGINAL))
    }
    return KeyMap(renames=_OWN | foreign)


def on_backbone(keymap: KeyMap, whole: Mapping[str, tuple[Rename, Rename]] = _OWN) -> KeyMap:
    """The map of a model that has another as its `backbone`, from the other's map.

    Weights of the backbone alone are read under its own namings, each called `NAMING backbone`.

    Args:
        whole: the namings of the whole model.
    """

    def inside(to_ours: Rename) -> Rename:
        return lambda name: f"backbone.{to_ours(name)}"

    parts = {f"{naming} backbone": inside(to_ours) for naming, to_ours in keymap.readers.items()}
    return KeyMap(renames=whole, parts=parts)


def _efficientvit_seg(
    backbone: Sequence[tuple[str, str, str]], classifier: Sequence[tuple[str, str]]
) -> KeyMap:
    """Of EfficientViT-Seg; the original calls the classifier by its place after what comes before it."""
    keymap, rows = _keymap(backbone), (*classifier, *SEG_HEAD)
    (body_to_ours, body_from_ours), prefix = keymap.renames[ORIGINAL], "backbone."
    head_to_ours, head_from_ours = _renaming(rows, -1, 0), _renaming(rows, 0, -1)

    def to_ours(name: str) -> str:
        return f"{prefix}{body_to_ours(name)}" if name.startswith(prefix) else head_to_ours(name)

    def from_ours(name: str) -> str:
        inner = name.removeprefix(prefix)
        return head_from_ours(name) if inner == name else body_from_ours(inner)

    return on_backbone(keymap, _OWN | {ORIGINAL: (to_ours, from_ours)})


def _keymap_of_original(table: Iterable[tuple[str, str]]) -> KeyMap:
    """Of a table without timm's names."""
    rows = tuple(table)
    return KeyMap(renames=_OWN | {ORIGINAL: (_renaming(rows, 1, 0), _renaming(rows, 0, 1))})


_SERIES = {
    "efficientvit_seg_b*_cityscapes": _efficientvit_seg(EFFICIENTVIT_MIT_B, SEG_EXPANDED_CLASSIFIER),
    "efficientvit_seg_b*_ade20k": _efficientvit_seg(EFFICIENTVIT_MIT_B, SEG_CLASSIFIER),
    "efficientvit_seg_l*_cityscapes": _efficientvit_seg(EFFICIENTVIT_MIT_L, SEG_CLASSIFIER),
    "efficientvit_seg_l*_ade20k": _efficientvit_seg(EFFICIENTVIT_MIT_L, SEG_EXPANDED_CLASSIFIER),
    "efficientvit_sam_*": _keymap_of_original(EFFICIENTVIT_SAM),
    "efficientsam_*": _keymap_of_original(EFFICIENTSAM),
    "efficientvit_m*": _keymap(EFFICIENTVIT_MSRA),
    "efficientvit_b*": _keymap(EFFICIENTVIT_MIT_B),
    "efficientvit_l*": _keymap(EFFICIENTVIT_MIT_L),
    "shvit_*": _keymap(SHVIT),
    "vit_*": _keymap(VIT),
    "concatplexer_*": _keymap(VIT),
    "imagemux_*": _keymap(VIT),
    f"{TIMM_PREFIX}*": _TIMM_WRAPPER,
}


def keymap_for(name: str) -> KeyMap:
    """The key map of a model by its name; a model of no known series has our names only."""
    known = (keymap for pattern, keymap in _SERIES.items() if fnmatchcase(name, pattern))
    return next(known, KeyMap(renames=_OWN))


# The papers' detectors beside their backbones: (ours, mmdet's). From the papers' configurations and code; no
# file was at hand to compare with.
MMDET = "mmdet"

PYRAMID = (
    ("neck.laterals.<s>", "neck.lateral_convs.<s>.conv"),
    ("neck.upsamples.<s>", "neck.extra_trans_convs.<s>.conv"),
    ("neck.outputs.0", "neck.extra_fpn_convs.0.conv"),
)

RETINANET = (
    ("neck.outputs.<s+1>", "neck.fpn_convs.<s>.conv"),
    ("head.predict.classification_head.conv.<i>.0", "bbox_head.cls_convs.<i>.conv"),
    ("head.predict.classification_head.cls_logits", "bbox_head.retina_cls"),
    ("head.predict.regression_head.conv.<i>.0", "bbox_head.reg_convs.<i>.conv"),
    ("head.predict.regression_head.bbox_reg", "bbox_head.retina_reg"),
)

MASK_RCNN = (
    ("neck.outputs.1", "neck.extra_fpn_convs.1.conv"),
    ("neck.outputs.<s+2>", "neck.fpn_convs.<s>.conv"),
    ("head.propose.head.conv.0.0", "rpn_head.rpn_conv"),
    ("head.propose.head.cls_logits", "rpn_head.rpn_cls"),
    ("head.propose.head.bbox_pred", "rpn_head.rpn_reg"),
    ("head.regions.box_head.fc6", "roi_head.bbox_head.shared_fcs.0"),
    ("head.regions.box_head.fc7", "roi_head.bbox_head.shared_fcs.1"),
    ("head.regions.box_predictor.classifier", "roi_head.bbox_head.fc_cls"),
    ("head.regions.box_predictor.regressor", "roi_head.bbox_head.fc_reg"),
    ("head.regions.mask_head.<i>.0", "roi_head.mask_head.convs.<i>.conv"),
    ("head.regions.mask_predictor.upsample", "roi_head.mask_head.upsample"),
    ("head.regions.mask_predictor.classifier", "roi_head.mask_head.conv_logits"),
)


def _mmdet(detector: Iterable[tuple[str, str]], backbone: Iterable[tuple[str, str, str]]) -> KeyMap:
    coarsest = ("neck.coarser.0", "neck.fpn_convs.3.conv")
    table = (coarsest, *PYRAMID, *detector, *((ours, original) for ours, _, original in backbone))
    return KeyMap(renames=_OWN | {MMDET: (_renaming(table, 1, 0), _renaming(table, 0, 1))})


_SERIES |= {
    f"{kind}_{family}*": _mmdet(detector, backbone)
    for kind, detector in (("retinanet", RETINANET), ("mask_rcnn", MASK_RCNN))
    for family, backbone in (("efficientvit_m", EFFICIENTVIT_MSRA), ("shvit_", SHVIT))
}
