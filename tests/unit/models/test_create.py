"""`create_model`: names, options, and pretrained weights from a file that stands in for the hub's."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from vitesse.errors import ConfigError, UnknownModelError, WeightsError
from vitesse.models import Backbone, FeatureExtractor, build, create_model, list_models
from vitesse.spec import ModelSpec
from vitesse.weights.keymaps import keymap_for

NAME = "efficientvit_m0"
HEAD = "head.classifier.linear.weight"


@pytest.fixture
def published(tmp_path, monkeypatch, randomise):
    """The state of published weights, which `pretrained=True` finds under timm's names."""
    state = randomise(build(ModelSpec(name=NAME))).state_dict()
    path = tmp_path / "model.safetensors"
    save_file(keymap_for(NAME).write(state, "timm"), path)
    monkeypatch.setattr(
        "vitesse.weights.hub.fetch", lambda hub_id, _: {f"timm/{NAME}.r224_in1k": path}[hub_id]
    )
    return state


def test_every_option_reaches_the_spec():
    model = create_model(
        NAME, num_classes=7, in_chans=1, image_size=(192, 320), distilled=True, drop_path_rate=0.1
    )
    assert isinstance(model, Backbone)
    assert model.spec == ModelSpec(
        name=NAME, num_classes=7, in_chans=1, image_size=(192, 320), distilled=True, drop_path_rate=0.1
    )
    assert create_model(NAME).spec == ModelSpec(name=NAME)
    assert create_model(NAME, image_size=256).spec.image_size == (256, 256)


def test_a_tag_without_pretrained_names_the_architecture():
    assert create_model(f"{NAME}.r224_in1k").spec.name == NAME


def test_pretrained_weights_arrive(published):
    state = create_model(NAME, pretrained=True).state_dict()
    assert all(torch.equal(state[key], published[key]) for key in published)


def test_pretrained_with_other_classes_starts_a_fresh_head(published):
    state = create_model(NAME, pretrained=True, num_classes=10).state_dict()
    assert state[HEAD].shape == (10, 192)
    assert all(torch.equal(state[key], published[key]) for key in published if not key.startswith("head."))


def test_pretrained_with_a_distillation_head_starts_both_heads_fresh(published):
    state = create_model(NAME, pretrained=True, distilled=True).state_dict()
    assert not torch.equal(state[HEAD], published[HEAD])
    assert torch.equal(state["stem.0.conv.weight"], published["stem.0.conv.weight"])


def test_pretrained_for_other_channels_and_sizes_and_as_features(published):
    model = create_model(NAME, pretrained=True, in_chans=1, image_size=384, features_only=True)
    assert isinstance(model, FeatureExtractor)
    weight = model.backbone.state_dict()["stem.0.conv.weight"]
    torch.testing.assert_close(weight, published["stem.0.conv.weight"].sum(1, keepdim=True))


def test_pretrained_fails_whole_when_the_weights_cannot_be_had(monkeypatch):
    def fetch(hub_id, file_name):
        raise WeightsError(f"{hub_id}: not in the cache")

    monkeypatch.setattr("vitesse.weights.hub.fetch", fetch)
    with pytest.raises(WeightsError, match=r"timm/efficientvit_m0\.r224_in1k: not in the cache"):
        create_model(NAME, pretrained=True)


@pytest.mark.parametrize(
    ("name", "nearest"), [("efficientvit_m9", "efficientvit_m"), ("efficientvit_m0.in22k", "r224_in1k")]
)
def test_an_unknown_name_lists_the_nearest(name, nearest):
    with pytest.raises(UnknownModelError, match=nearest):
        create_model(name)
    with pytest.raises(UnknownModelError):
        build(ModelSpec(name=name))


@pytest.mark.parametrize(
    "options",
    [{"num_classes": 0}, {"in_chans": 0}, {"image_size": 0}, {"image_size": (0, 5)}, {"drop_path_rate": 1.0}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError):
        create_model(NAME, **options)


def test_timm_models_have_neither_feature_maps_nor_a_second_head_to_offer():
    with pytest.raises(ConfigError, match="features_only"):
        create_model("timm:resnet18", features_only=True)
    with pytest.raises(ConfigError, match="distilled"):
        create_model("timm:resnet18", distilled=True)


def test_names_by_pattern():
    assert list_models("efficientvit_m*") == tuple(f"efficientvit_m{i}" for i in range(6))
    assert list_models("*_m[45]") == ("efficientvit_m4", "efficientvit_m5")
    assert list_models("resnet*") == ()


def test_building_ours_leaves_timm_alone():
    code = f"import sys, vitesse.models as m; m.create_model({NAME!r}); print('timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False"]


def test_timm_models_by_prefix(timm, tmp_path, monkeypatch):
    model = create_model("timm:resnet18", num_classes=4)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 4)
    with pytest.raises(UnknownModelError, match="resnet18"):
        create_model("timm:resnet1")

    source = timm.create_model("resnet18")
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("vitesse.models.create.fetch", lambda hub_id: tmp_path / "model.safetensors")
    wrapped = create_model("timm:resnet18", pretrained=True, num_classes=4)
    assert torch.equal(wrapped.model.conv1.weight, source.conv1.weight)
    assert wrapped.model.fc.out_features == 4
