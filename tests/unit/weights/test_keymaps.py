"""Names of every family: ours, timm's, the original release's."""

from __future__ import annotations

import re

import pytest
import torch

from vitesse.catalogue import facts
from vitesse.errors import WeightsError
from vitesse.models import build, registered_models
from vitesse.spec import ModelSpec
from vitesse.weights.keymaps import ORIGINAL, OURS, TIMM, KeyMap, bias_index, keymap_for

# Entries of the state dict, counted on the original definitions and on timm's.
ENTRIES = {
    "efficientvit_m0": (699, 693),
    "efficientvit_m1": (615, 609),
    "efficientvit_m2": (603, 597),
    "efficientvit_m3": (675, 669),
    "efficientvit_m4": (699, 693),
    "efficientvit_m5": (835, 827),
    "shvit_s1": (471, 471),
    "shvit_s2": (471, 471),
    "shvit_s3": (521, 521),
    "shvit_s4": (635, 635),
    "efficientvit_b0": (197, 197),
    "efficientvit_b1": (272, 272),
    "efficientvit_b2": (365, 365),
    "efficientvit_b3": (514, 514),
    "efficientvit_l1": (271, 271),
    "efficientvit_l2": (353, 353),
    "efficientvit_l3": (353, 353),
}
DEIT = {f"vit_{size}_patch16": f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")}
# Names and shapes found in the public M5 definitions: original, timm.
M5 = [
    ("patch_embed.0.c.weight", "patch_embed.conv1.conv.weight", (24, 3, 3, 3)),
    ("patch_embed.6.bn.running_var", "patch_embed.conv4.bn.running_var", (192,)),
    ("blocks1.0.dw0.m.c.weight", "stages.0.blocks.0.dw0.m.conv.weight", (192, 1, 3, 3)),
    ("blocks1.0.ffn0.m.pw2.bn.weight", "stages.0.blocks.0.ffn0.m.pw2.bn.weight", (192,)),
    (
        "blocks1.0.mixer.m.attn.qkvs.0.c.weight",
        "stages.0.blocks.0.mixer.m.attn.qkvs.0.conv.weight",
        (96, 64, 1, 1),
    ),
    (
        "blocks1.0.mixer.m.attn.dws.0.c.weight",
        "stages.0.blocks.0.mixer.m.attn.dws.0.conv.weight",
        (16, 1, 7, 7),
    ),
    (
        "blocks1.0.mixer.m.attn.proj.1.c.weight",
        "stages.0.blocks.0.mixer.m.attn.proj.1.conv.weight",
        (192, 192, 1, 1),
    ),
    ("blocks1.0.mixer.m.attn.attention_biases", "stages.0.blocks.0.mixer.m.attn.attention_biases", (3, 49)),
    ("blocks3.3.mixer.m.attn.attention_biases", "stages.2.blocks.0.mixer.m.attn.attention_biases", (4, 16)),
    ("blocks1.0.mixer.m.attn.attention_bias_idxs", None, (49, 49)),
    ("blocks2.0.0.m.c.weight", "stages.1.downsample.res1.0.m.conv.weight", (192, 1, 3, 3)),
    ("blocks2.0.1.m.pw1.c.weight", "stages.1.downsample.res1.1.m.pw1.conv.weight", (384, 192, 1, 1)),
    ("blocks2.1.conv1.c.weight", "stages.1.downsample.patchmerge.conv1.conv.weight", (768, 192, 1, 1)),
    ("blocks2.1.se.fc1.weight", "stages.1.downsample.patchmerge.se.fc1.weight", (192, 768, 1, 1)),
    ("blocks2.2.1.m.pw2.c.weight", "stages.1.downsample.res2.1.m.pw2.conv.weight", (288, 576, 1, 1)),
    ("blocks2.3.dw0.m.c.weight", "stages.1.blocks.0.dw0.m.conv.weight", (288, 1, 3, 3)),
    ("blocks3.6.ffn1.m.pw1.c.weight", "stages.2.blocks.3.ffn1.m.pw1.conv.weight", (768, 384, 1, 1)),
    ("head.bn.weight", "head.bn.weight", (384,)),
    ("head.l.weight", "head.linear.weight", (1000, 384)),
]

MODELS = [name for name in registered_models() if facts(name).family != "multiplex" or "patch4" in name]
"""Multiplexed ViTs of all sizes are the same code."""


def empty_state(name, **options):
    """The state of a model without values, at its own image size."""
    with torch.device("meta"):
        return build(ModelSpec(name=name, image_size=facts(name).image_size, **options)).state_dict()


@pytest.mark.parametrize("name", ENTRIES)
def test_as_many_entries_as_the_public_definitions_have(name):
    state, keymap = empty_state(name), keymap_for(name)
    assert (len(keymap.write(state, ORIGINAL)), len(keymap.write(state, TIMM))) == ENTRIES[name]


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("naming", [OURS, TIMM, ORIGINAL])
@pytest.mark.parametrize("name", MODELS)
def test_round_trip_loses_and_adds_nothing(name, naming, distilled):
    state, keymap = empty_state(name, distilled=distilled), keymap_for(name)
    back = {ours: tensor for ours, _, tensor in keymap.read(keymap.write(state, naming), naming)}
    assert list(back) == list(state)
    assert {key for key in state if back[key].shape != state[key].shape} == set()


def test_values_of_folded_and_unfolded_tables_stay():
    state = build(ModelSpec(name="efficientvit_m0")).state_dict()
    torch.nn.init.normal_(state["stages.0.blocks.0.mixer.branch.attention.attention_bias_ARS"])
    keymap = keymap_for("efficientvit_m0")
    for naming in (OURS, TIMM, ORIGINAL):
        back = {ours: tensor for ours, _, tensor in keymap.read(keymap.write(state, naming), naming)}
        assert all(torch.equal(back[key], state[key]) for key in state)


# Names and shapes found in the public definitions of other families: model, original, timm, shape.
PUBLIC = [
    *(("efficientvit_m5", *row) for row in M5),
    ("shvit_s4", "patch_embed.0.c.weight", "patch_embed.0.c.weight", (28, 3, 3, 3)),
    ("shvit_s4", "blocks1.0.conv.m.c.weight", "stages.0.blocks.0.conv.m.c.weight", (224, 1, 3, 3)),
    ("shvit_s4", "blocks1.0.ffn.m.pw1.c.weight", "stages.0.blocks.0.ffn.m.pw1.c.weight", (448, 224, 1, 1)),
    ("shvit_s4", "blocks2.0.0.m.c.weight", "stages.1.downsample.0.m.c.weight", (224, 1, 3, 3)),
    ("shvit_s4", "blocks2.0.1.m.pw1.c.weight", "stages.1.downsample.1.m.pw1.c.weight", (448, 224, 1, 1)),
    ("shvit_s4", "blocks2.1.conv2.c.weight", "stages.1.downsample.2.conv2.c.weight", (896, 1, 3, 3)),
    ("shvit_s4", "blocks2.1.se.fc1.weight", "stages.1.downsample.2.se.fc1.weight", (224, 896, 1, 1)),
    ("shvit_s2", "blocks3.1.se.fc1.weight", "stages.2.downsample.2.se.fc1.weight", (312, 1232, 1, 1)),
    ("shvit_s4", "blocks2.2.0.m.c.weight", "stages.1.downsample.3.m.c.weight", (336, 1, 3, 3)),
    ("shvit_s4", "blocks2.2.1.m.pw1.c.weight", "stages.1.downsample.4.m.pw1.c.weight", (672, 336, 1, 1)),
    ("shvit_s4", "blocks2.3.mixer.m.pre_norm.weight", "stages.1.blocks.0.mixer.m.pre_norm.weight", (72,)),
    (
        "shvit_s4",
        "blocks2.3.mixer.m.qkv.c.weight",
        "stages.1.blocks.0.mixer.m.qkv.c.weight",
        (104, 72, 1, 1),
    ),
    (
        "shvit_s4",
        "blocks2.3.mixer.m.proj.1.c.weight",
        "stages.1.blocks.0.mixer.m.proj.1.c.weight",
        (336, 336, 1, 1),
    ),
    ("shvit_s4", "head.l.weight", "head.l.weight", (1000, 448)),
    (
        "efficientvit_b1",
        "backbone.input_stem.op_list.0.conv.weight",
        "stem.in_conv.conv.weight",
        (16, 3, 3, 3),
    ),
    (
        "efficientvit_b1",
        "backbone.input_stem.op_list.1.main.depth_conv.conv.weight",
        "stem.res0.main.depth_conv.conv.weight",
        (16, 1, 3, 3),
    ),
    (
        "efficientvit_b1",
        "backbone.stages.0.op_list.0.main.inverted_conv.conv.weight",
        "stages.0.blocks.0.main.inverted_conv.conv.weight",
        (64, 16, 1, 1),
    ),
    (
        "efficientvit_b1",
        "backbone.stages.2.op_list.0.main.inverted_conv.conv.bias",
        "stages.2.blocks.0.main.inverted_conv.conv.bias",
        (256,),
    ),
    (
        "efficientvit_b1",
        "backbone.stages.2.op_list.1.context_module.main.qkv.conv.weight",
        "stages.2.blocks.1.context_module.main.qkv.conv.weight",
        (384, 128, 1, 1),
    ),
    (
        "efficientvit_b1",
        "backbone.stages.2.op_list.1.context_module.main.aggreg.0.0.weight",
        "stages.2.blocks.1.context_module.main.aggreg.0.0.weight",
        (384, 1, 5, 5),
    ),
    (
        "efficientvit_b1",
        "backbone.stages.2.op_list.1.context_module.main.aggreg.0.1.weight",
        "stages.2.blocks.1.context_module.main.aggreg.0.1.weight",
        (384, 16, 1, 1),
    ),
    (
        "efficientvit_b1",
        "backbone.stages.2.op_list.1.context_module.main.proj.norm.running_mean",
        "stages.2.blocks.1.context_module.main.proj.norm.running_mean",
        (128,),
    ),
    (
        "efficientvit_b1",
        "backbone.stages.2.op_list.1.local_module.main.point_conv.norm.weight",
        "stages.2.blocks.1.local_module.main.point_conv.norm.weight",
        (128,),
    ),
    ("efficientvit_b1", "head.op_list.0.conv.weight", "head.in_conv.conv.weight", (1536, 256, 1, 1)),
    ("efficientvit_b1", "head.op_list.0.norm.weight", "head.in_conv.norm.weight", (1536,)),
    ("efficientvit_b1", "head.op_list.2.linear.weight", "head.classifier.0.weight", (1600, 1536)),
    ("efficientvit_b1", "head.op_list.2.norm.weight", "head.classifier.1.weight", (1600,)),
    ("efficientvit_b1", "head.op_list.3.linear.bias", "head.classifier.4.bias", (1000,)),
    (
        "efficientvit_l1",
        "backbone.stages.0.op_list.0.conv.weight",
        "stem.in_conv.conv.weight",
        (32, 3, 3, 3),
    ),
    (
        "efficientvit_l1",
        "backbone.stages.0.op_list.1.main.conv2.conv.weight",
        "stem.res0.main.conv2.conv.weight",
        (32, 32, 3, 3),
    ),
    (
        "efficientvit_l1",
        "backbone.stages.1.op_list.0.main.spatial_conv.conv.weight",
        "stages.0.blocks.0.main.spatial_conv.conv.weight",
        (512, 32, 3, 3),
    ),
    (
        "efficientvit_l1",
        "backbone.stages.3.op_list.0.main.inverted_conv.conv.bias",
        "stages.2.blocks.0.main.inverted_conv.conv.bias",
        (2048,),
    ),
    (
        "efficientvit_l1",
        "backbone.stages.4.op_list.1.context_module.main.qkv.conv.weight",
        "stages.3.blocks.1.context_module.main.qkv.conv.weight",
        (1536, 512, 1, 1),
    ),
    ("efficientvit_l1", "head.op_list.2.linear.weight", "head.classifier.0.weight", (3200, 3072)),
]


@pytest.mark.parametrize(("model", "original", "timm", "shape"), PUBLIC)
def test_names_and_shapes_of_the_public_definitions(model, original, timm, shape):
    state, keymap = empty_state(model), keymap_for(model)
    in_original, in_timm = keymap.write(state, ORIGINAL), keymap.write(state, TIMM)
    assert in_original[original].shape == shape
    if timm is None:
        assert not any(key.endswith("idxs") for key in in_timm)
    else:
        assert in_timm[timm].shape == shape
        to_ours = [keymap.renames[naming][0](key) for naming, key in ((ORIGINAL, original), (TIMM, timm))]
        assert to_ours[0] == to_ours[1]
        assert to_ours[0] in state


# The rules from timm's names to those of the original releases, as their authors' code implies them.
RULES = {
    "efficientvit_m": [
        (r"^patch_embed\.conv(\d)", lambda m: f"patch_embed.{2 * int(m[1]) - 2}"),
        (r"^stages\.0\.blocks\.", r"blocks1."),
        (r"^stages\.(\d)\.downsample\.res1", lambda m: f"blocks{int(m[1]) + 1}.0"),
        (r"^stages\.(\d)\.downsample\.patchmerge", lambda m: f"blocks{int(m[1]) + 1}.1"),
        (r"^stages\.(\d)\.downsample\.res2", lambda m: f"blocks{int(m[1]) + 1}.2"),
        (r"^stages\.(\d)\.blocks\.(\d+)", lambda m: f"blocks{int(m[1]) + 1}.{int(m[2]) + 3}"),
        (r"\.conv\.(?=\w+$)", ".c."),
        (r"\.linear\.(?=\w+$)", ".l."),
    ],
    "shvit": [
        (r"^stages\.0\.blocks\.", r"blocks1."),
        (r"^stages\.(\d)\.downsample\.([01])", lambda m: f"blocks{int(m[1]) + 1}.0.{m[2]}"),
        (r"^stages\.(\d)\.downsample\.2", lambda m: f"blocks{int(m[1]) + 1}.1"),
        (r"^stages\.(\d)\.downsample\.([34])", lambda m: f"blocks{int(m[1]) + 1}.2.{int(m[2]) - 3}"),
        (r"^stages\.(\d)\.blocks\.(\d+)", lambda m: f"blocks{int(m[1]) + 1}.{int(m[2]) + 3}"),
    ],
    "efficientvit_b": [
        (r"^stem\.in_conv", "backbone.input_stem.op_list.0"),
        (r"^stem\.res(\d)", lambda m: f"backbone.input_stem.op_list.{int(m[1]) + 1}"),
        (r"^stages\.(\d)\.blocks\.", r"backbone.stages.\1.op_list."),
    ],
    "efficientvit_l": [
        (r"^stem\.in_conv", "backbone.stages.0.op_list.0"),
        (r"^stem\.res(\d)", lambda m: f"backbone.stages.0.op_list.{int(m[1]) + 1}"),
        (r"^stages\.(\d)\.blocks\.", lambda m: f"backbone.stages.{int(m[1]) + 1}.op_list."),
    ],
    "vit": [],
}
HEAD_OF_MIT = [
    (r"^head\.in_conv", "head.op_list.0"),
    (r"^head\.classifier\.0", "head.op_list.2.linear"),
    (r"^head\.classifier\.1", "head.op_list.2.norm"),
    (r"^head\.classifier\.4", "head.op_list.3.linear"),
]
RULES["efficientvit_b"] += HEAD_OF_MIT
RULES["efficientvit_l"] += HEAD_OF_MIT


def by_rules(name, key):
    """timm's key as the original release calls it."""
    for pattern, replacement in next(rules for series, rules in RULES.items() if name.startswith(series)):
        key = re.sub(pattern, replacement, key)
    return key


@pytest.mark.parametrize("name", [*ENTRIES, *DEIT])
def test_dictionaries_under_both_foreign_names_are_all_of_the_model(name, timm):
    with torch.device("meta"):
        theirs = timm.create_model(DEIT.get(name, name)).state_dict()
    ours, keymap = empty_state(name), keymap_for(name)
    for naming, foreign in (
        (TIMM, theirs),
        (ORIGINAL, {by_rules(name, key): t for key, t in theirs.items()}),
    ):
        found = {mine: tensor for mine, _, tensor in keymap.read(foreign, naming)}
        assert found.keys() == ours.keys()
        assert {key for key in ours if found[key].shape != ours[key].shape} == set()
        assert keymap.detect(foreign, ours) == (TIMM if name in DEIT else naming)
        back = keymap.write(ours, naming)
        assert [key for key in back if not key.endswith("attention_bias_idxs")] == list(foreign)
        assert {key for key in foreign if back[key].shape != foreign[key].shape} == set()


def test_names_of_the_distillation_head():
    state = build(ModelSpec(name="efficientvit_m0", distilled=True)).state_dict()
    keymap = keymap_for("efficientvit_m0")
    assert keymap.write(state, ORIGINAL)["head_dist.l.weight"].shape == (1000, 192)
    assert keymap.write(state, TIMM)["head_dist.linear.bias"].shape == (1000,)
    assert keymap.renames[ORIGINAL][0]("head_dist.l.weight") == "head.classifier_dist.linear.weight"


@pytest.mark.parametrize("side", [1, 4, 7])
def test_index_buffer_is_the_originals_first_seen_enumeration(side):
    points = [(row, column) for row in range(side) for column in range(side)]
    seen: dict[tuple[int, int], int] = {}
    expected = [
        [seen.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(seen)) for b in points] for a in points
    ]
    assert bias_index(side).dtype == torch.int64
    assert bias_index(side).tolist() == expected


def test_a_table_that_is_not_square_has_no_foreign_form():
    state = build(ModelSpec(name="efficientvit_m0", image_size=(192, 320))).state_dict()
    with pytest.raises(WeightsError, match="square tables only, this one is 3x5"):
        keymap_for("efficientvit_m0").write(state, TIMM)


def test_an_unknown_naming_lists_the_known():
    with pytest.raises(WeightsError, match="did you mean timm"):
        keymap_for("efficientvit_m0").write({}, "tim")


def test_a_model_outside_the_catalogue_has_our_names_only():
    keymap = keymap_for("something_else")
    assert isinstance(keymap, KeyMap)
    assert list(keymap.renames) == [OURS]


def test_the_timm_wrapper_takes_bare_names_as_they_are():
    keymap = keymap_for("timm:efficientvit_m0")
    table = torch.zeros(4, 49)
    key = "stages.0.blocks.0.mixer.m.attn.attention_biases"
    assert [(name, tensor.shape) for name, _, tensor in keymap.read({key: table}, TIMM)] == [
        (f"model.{key}", (4, 49))
    ]
    assert list(keymap.write({f"model.{key}": table}, TIMM)) == [key]
