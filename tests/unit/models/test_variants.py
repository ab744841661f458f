"""Models that differ from a published architecture, by name or by file."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from vitesse.errors import ConfigError
from vitesse.export.fold import fold
from vitesse.layers import LayerNorm2d
from vitesse.models import create_model
from vitesse.models.create import build, spec_for
from vitesse.models.efficientvit_msra import ABLATIONS, CascadedGroupAttention
from vitesse.models.shvit import ABLATIONS as SHVIT_ABLATIONS
from vitesse.models.shvit import SingleHeadSelfAttention
from vitesse.models.variants import write_spec
from vitesse.spec import ModelSpec

NAMES = [f"efficientvit_m0+{change}" for change in ABLATIONS] + [
    f"shvit_s1+{change}" for change in SHVIT_ABLATIONS
]


def params(name: str) -> int:
    return sum(parameter.numel() for parameter in create_model(name).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_named_change_trains_and_folds_to_the_same(name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, image_size=64)
    x_BCHW = torch.randn(3, 3, 64, 64)
    model.train()(x_BCHW).square().sum().backward()
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing, "parts that nothing flows through"
    for module in model.modules():  # gains of 0 would hide what the branches compute
        if isinstance(module, (nn.BatchNorm2d, LayerNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    expected = model.eval()(x_BCHW)
    torch.testing.assert_close(fold(model)(x_BCHW), expected, rtol=1e-3, atol=1e-3)


def test_a_file_rebuilds_the_model(tmp_path):
    spec = spec_for("efficientvit_m0+no_cascade+wide_ffn", 96)
    write_spec(spec, tmp_path / "mine.json")
    assert spec_for(str(tmp_path / "mine.json")) == spec
    torch.manual_seed(0)
    one = build(spec).state_dict()
    torch.manual_seed(0)
    other = create_model(str(tmp_path / "mine.json")).state_dict()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_changes_change_what_they_say():
    m0, plain = params("efficientvit_m0"), create_model("efficientvit_m0")
    assert params("efficientvit_m0+wide_ffn") > 1.2 * m0
    assert params("efficientvit_m0+full_heads") > m0
    assert params("efficientvit_m0+no_cascade") == m0
    assert params("efficientvit_m0+no_local_mixing") < m0
    count = [
        sum(isinstance(module, CascadedGroupAttention) for module in model.modules())
        for model in (plain, create_model("efficientvit_m0+alternating"))
    ]
    assert count == [6, 12]
    layer_norm = create_model("efficientvit_m0+layer_norm")
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in layer_norm.modules())
    without = create_model("shvit_s1+no_attention")
    assert not any(isinstance(module, SingleHeadSelfAttention) for module in without.modules())
    stem4 = create_model("shvit_s1+stem4", features_only=True)
    assert [feature.stride for feature in stem4.feature_specs] == [4, 8, 16]


def test_a_split_head_sees_no_other_split():
    torch.manual_seed(0)
    x_BCHW = torch.randn(1, 16, 4, 4)
    changed = x_BCHW.clone()
    changed[:, :8] += 1  # what the first of two heads sees
    for feed, second_changes in (("split", False), ("cascaded", True), ("full", True)):
        attention = CascadedGroupAttention(16, 2, 4, (3, 3), (4, 4), feed).eval()
        attention.proj = nn.Identity()
        with torch.no_grad():
            differs = (attention(x_BCHW) != attention(changed)).any(-1).any(-1)[0]
        assert differs[:8].all()
        assert bool(differs[8:].any()) is second_changes, feed


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"depth": (1, 2, 3)}, "unknown key 'depth'; did you mean depths"),
        ({"depths": (1, 2)}, "depths: expected 3 whole numbers, one a stage"),
        ({"depths": "abc"}, "depths: expected 3 whole numbers"),
        ({"num_heads": (3, 4, 4)}, "num_heads: expected a divisor of the width 64, got 3"),
        ({"norm": "group"}, "norm: expected batch or layer, got 'group'"),
        ({"kernels": (3,)}, "kernels: expected one for each of 4 heads"),
        ({"kernels": (3, 4, 3, 3)}, "kernels: expected odd whole numbers, one a head, got"),
        ({"kernels": "5555"}, "kernels: expected odd whole numbers"),
        ({"key_dim": -1}, "key_dim: expected a whole number of 0 or more, got -1"),
        ({"key_dim": "16"}, "key_dim: expected a whole number of 0 or more, got '16'"),
        ({"window_size": 0}, "window_size: expected a whole number of 1 or more, got 0"),
        ({"ffn_ratio": 0}, r"ffn_ratio: expected a number of 0\.125 or more, got 0"),
        ({"local_mixing": "no"}, "local_mixing: expected True or False, got 'no'"),
    ],
)
def test_impossible_variants_are_refused_in_one_line(variant, message):
    with pytest.raises(ConfigError, match=message):
        build(ModelSpec(name="efficientvit_m0", variant=variant))


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"embed_dim": (0, 64, 96)}, "embed_dim: expected widths of 8 or more"),
        ({"embed_dim": (8, 64, 96), "stem_stride": 32}, "embed_dim: expected widths of 16 or more"),
        ({"key_dim": 0}, "key_dim: expected a whole number of 1 or more, got 0"),
        ({"partial_ratio": "half"}, "partial_ratio: expected a number of 0 or more, got 'half'"),
        ({"partial_ratio": 1.5}, "partial_ratio: expected a share, 0 to 1"),
        ({"stem_stride": 12}, "stem_stride: expected 2 or 4"),
    ],
)
def test_impossible_variants_of_shvit_are_refused(variant, message):
    with pytest.raises(ConfigError, match=message):
        build(ModelSpec(name="shvit_s1", variant=variant))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"image_size": "big"},
            "image size: expected positive whole numbers of pixels, one or two, got 'big'",
        ),
        (
            {"image_size": [64, "x"]},
            "image size: expected positive whole numbers of pixels, one or two, got 64xx",
        ),
        ({"image_size": [64]}, "image size: expected positive whole numbers of pixels, one or two, got 64"),
        ({"num_classes": True}, "num_classes: expected a whole number of at least 1, got True"),
        ({"image_size": 64.5}, "image size: expected positive whole numbers of pixels"),
        ({"num_classes": "ten"}, "num_classes: expected a whole number of at least 1, got 'ten'"),
        ({"num_classes": 0}, "num_classes: expected a whole number of at least 1, got 0"),
        ({"in_chans": 1.5}, "in_chans: expected a whole number"),
        ({"distilled": "no"}, "distilled: expected true or false, got 'no'"),
        ({"drop_path_rate": "low"}, "drop_path_rate: expected 0 <= rate < 1, got 'low'"),
        ({"name": 3}, "name: expected a text, got 3"),
        ({"nmae": "x"}, "unknown key 'nmae'; did you mean name"),
    ],
)
def test_impossible_files_are_refused_by_their_name(tmp_path, values, message):
    (tmp_path / "mine.json").write_text(json.dumps({"name": "efficientvit_m0", **values}))
    with pytest.raises(ConfigError, match=rf"^spec \S*mine\.json: .*{message}"):
        create_model(str(tmp_path / "mine.json"))


def test_all_of_a_file_counts(tmp_path):
    spec = ModelSpec(name="shvit_s1", image_size=(64, 64), in_chans=4, num_classes=7, drop_path_rate=0.1)
    write_spec(spec, tmp_path / "mine.json")
    assert create_model(str(tmp_path / "mine.json")).spec == spec
    assert create_model(str(tmp_path / "mine.json"), in_chans=1, drop_path_rate=0.0).spec.in_chans == 1
    (tmp_path / "mine.json").write_text('{"name": "shvit_s1", "image_size": 64}')
    assert create_model(str(tmp_path / "mine.json")).spec.image_size == (64, 64)


def test_what_cannot_vary_says_so(tmp_path):
    with pytest.raises(ConfigError, match="no variant is named 'no_casacde'; did you mean no_cascade"):
        create_model("efficientvit_m0+no_casacde")
    with pytest.raises(ConfigError, match="it has none with a name"):
        create_model("efficientvit_b0+wide")
    with pytest.raises(ConfigError, match=r"variant: expected one of efficientvit_m0.*got efficientvit_b0"):
        build(ModelSpec(name="efficientvit_b0", variant={"depth": 3}))
    with pytest.raises(ConfigError, match=r"none\.json: No such file"):
        create_model(str(tmp_path / "none.json"))
    for text, message in (("{", "expected JSON"), ("[]", "expected an object"), ("{}", "missing name")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            create_model(str(tmp_path / "bad.json"))
    (tmp_path / "bad.json").write_text(json.dumps({"name": "efficientvit_m0", "variant": [1]}))
    with pytest.raises(ConfigError, match="variant: expected keys with values"):
        create_model(str(tmp_path / "bad.json"))
