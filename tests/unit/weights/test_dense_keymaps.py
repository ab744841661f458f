"""Names of models that stand on a backbone: the original release's, and those of the backbone alone."""

from __future__ import annotations

import pytest
import torch

from vitesse.catalogue import facts
from vitesse.errors import WeightsError
from vitesse.models import build, registered_models
from vitesse.spec import ModelSpec
from vitesse.weights.keymaps import ORIGINAL, OURS, TIMM, keymap_for, on_backbone

ENTRIES = {  # of the state dict, counted on the original definitions: Cityscapes, ADE20K
    "b0": (230, None),
    "b1": (341, 335),
    "b2": (434, 428),
    "b3": (583, 577),
    "l1": (316, 322),
    "l2": (422, 404),
}
# Names and shapes of the public definitions.
PUBLIC = [
    ("b1_cityscapes", "backbone.input_stem.op_list.0.conv.weight", (16, 3, 3, 3)),
    ("b1_cityscapes", "backbone.stages.2.op_list.1.context_module.main.proj.norm.weight", (128,)),
    ("b1_cityscapes", "head.input_ops.0.op_list.0.conv.weight", (64, 256, 1, 1)),
    ("b1_cityscapes", "head.input_ops.1.op_list.0.norm.running_var", (64,)),
    ("b1_cityscapes", "head.input_ops.2.conv.weight", (64, 64, 1, 1)),
    ("b1_cityscapes", "head.middle.op_list.2.main.inverted_conv.conv.weight", (256, 64, 1, 1)),
    ("b1_cityscapes", "head.middle.op_list.0.main.depth_conv.norm.weight", (256,)),
    ("b1_cityscapes", "head.output_ops.0.op_list.0.norm.bias", (256,)),
    ("b1_cityscapes", "head.output_ops.0.op_list.1.conv.weight", (19, 256, 1, 1)),
    ("b1_ade20k", "head.output_ops.0.op_list.0.conv.bias", (150,)),
    ("l1_cityscapes", "backbone.stages.0.op_list.0.conv.weight", (32, 3, 3, 3)),
    ("l1_cityscapes", "head.middle.op_list.2.main.spatial_conv.conv.weight", (256, 256, 3, 3)),
    ("l1_cityscapes", "head.output_ops.0.op_list.0.conv.weight", (19, 256, 1, 1)),
    ("l2_ade20k", "head.middle.op_list.0.main.point_conv.conv.weight", (128, 512, 1, 1)),
    ("l2_ade20k", "head.output_ops.0.op_list.0.conv.weight", (1024, 128, 1, 1)),
    ("l2_ade20k", "head.output_ops.0.op_list.1.conv.bias", (150,)),
]


def empty_state(name):
    """The state of a model without values."""
    with torch.device("meta"):
        return build(ModelSpec(name=name, num_classes=facts(name).num_classes)).state_dict()


@pytest.mark.parametrize("name", registered_models("segment"))
def test_as_many_entries_as_the_public_definitions_have_and_all_come_back(name):
    state, keymap = empty_state(name), keymap_for(name)
    foreign = keymap.write(state, ORIGINAL)
    size, dataset = name.split("_")[2:]
    assert len(foreign) == ENTRIES[size][dataset == "ade20k"]
    assert keymap.detect(foreign, state) == ORIGINAL
    back = {ours: tensor for ours, _, tensor in keymap.read(foreign, ORIGINAL)}
    assert list(back) == list(state)
    assert all(back[key] is state[key] for key in state)


@pytest.mark.parametrize(("model", "name", "shape"), PUBLIC)
def test_names_and_shapes_of_the_public_definitions(model, name, shape):
    model = f"efficientvit_seg_{model}"
    assert keymap_for(model).write(empty_state(model), ORIGINAL)[name].shape == shape


@pytest.mark.parametrize("size", ["b0", "l1"])
@pytest.mark.parametrize("naming", [OURS, TIMM, ORIGINAL])
def test_a_classifier_s_weights_are_those_of_the_backbone_and_its_head_is_nobody_s(size, naming):
    ours, keymap = (
        empty_state(f"efficientvit_seg_{size}_cityscapes"),
        keymap_for(f"efficientvit_seg_{size}_cityscapes"),
    )
    classifier = empty_state(f"efficientvit_{size}")
    foreign = keymap_for(f"efficientvit_{size}").write(classifier, naming)
    found = keymap.detect(foreign, ours)
    names = [name for name, _, _ in keymap.read(foreign, found)]
    body = [f"backbone.{name}" for name in classifier if not name.startswith("head.")]
    assert [name for name in names if name in ours] == body == [n for n in ours if n.startswith("backbone.")]
    assert found == f"{naming} backbone" or naming == ORIGINAL  # its own release calls the backbone the same


def test_a_backbone_with_tables_and_index_buffers():
    keymap = on_backbone(keymap_for("efficientvit_m0"))
    state = build(ModelSpec(name="efficientvit_m0")).state_dict()
    for naming in (OURS, TIMM, ORIGINAL):
        foreign = keymap_for("efficientvit_m0").write(state, naming)
        ours = {f"backbone.{name}": tensor for name, tensor in state.items()}
        assert keymap.detect(foreign, ours) == f"{naming} backbone"
        back = {name: tensor for name, _, tensor in keymap.read(foreign, f"{naming} backbone")}
        assert back.keys() == ours.keys()
        assert all(torch.equal(back[name], ours[name]) for name in ours)
    assert keymap.detect(ours, ours) == OURS


def test_namings_of_the_backbone_alone_are_not_written():
    with pytest.raises(WeightsError, match="no naming 'timm' for these weights"):
        keymap_for("efficientvit_seg_b0_cityscapes").write({}, TIMM)
