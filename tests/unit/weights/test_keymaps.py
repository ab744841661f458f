"""Names of M0-M5: ours, timm's, the original release's."""

from __future__ import annotations

import pytest
import torch

from vitesse.errors import WeightsError
from vitesse.models import build
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
}
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


@pytest.mark.parametrize("naming", [OURS, TIMM, ORIGINAL])
@pytest.mark.parametrize("name", ENTRIES)
def test_round_trip_loses_and_adds_nothing(name, naming):
    state = build(ModelSpec(name=name)).state_dict()
    keymap = keymap_for(name)
    foreign = keymap.write(state, naming)
    assert len(foreign) == {ORIGINAL: ENTRIES[name][0], TIMM: ENTRIES[name][1], OURS: len(state)}[naming]
    assert keymap.detect(foreign, state) == naming
    back = {ours: tensor for ours, _, tensor in keymap.read(foreign, naming)}
    assert list(back) == list(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(("original", "timm", "shape"), M5)
def test_names_and_shapes_of_the_public_m5(original, timm, shape):
    state = build(ModelSpec(name="efficientvit_m5")).state_dict()
    keymap = keymap_for("efficientvit_m5")
    in_original, in_timm = keymap.write(state, ORIGINAL), keymap.write(state, TIMM)
    assert in_original[original].shape == shape
    if timm is None:
        assert not any(key.endswith("idxs") for key in in_timm)
    else:
        assert in_timm[timm].shape == shape
        to_ours = [keymap.renames[naming][0](key) for naming, key in ((ORIGINAL, original), (TIMM, timm))]
        assert to_ours[0] == to_ours[1]
        assert to_ours[0] in state


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
