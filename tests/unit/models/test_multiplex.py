"""Multiplexed ViTs: MACs, groups of any size, what images know of each other, what can start them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vitesse.catalogue import facts
from vitesse.errors import ConfigError, UnknownModelError, WeightsError
from vitesse.models import build, create_model
from vitesse.models.multiplex import (
    CONFIGS,
    ConcatPlexer,
    ConcatPlexerConfig,
    ImageMultiplexer,
    ImageMultiplexerConfig,
    grouped,
)
from vitesse.models.transformer import ViTConfig
from vitesse.spec import ModelSpec
from vitesse.weights import save_weights
from vitesse.weights.load import start_from

TINY = ViTConfig(width=24, num_heads=2, depth=4, patch_size=4)
SPEC = ModelSpec(name="concatplexer_tiny_patch4_n2", image_size=(16, 16), num_classes=5)
SHARING = {
    2: {"mux_width": 2, "stem_depth": 2, "kernel": (1, 5), "stride": (1, 2)},
    4: {"mux_width": 4, "stem_depth": 2, "kernel": (3, 3), "stride": (2, 2)},
}


def settled(model):
    """In eval mode, every embedding, bias and gain at work."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or "embed" in name or "token" in name:
            torch.nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.3)
        else:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def concat(count, **changes):
    return settled(ConcatPlexer(SPEC, ConcatPlexerConfig(vit=TINY, **{**SHARING[count], **changes})))


def superposed(count, transform="hadamard"):
    return settled(
        ImageMultiplexer(SPEC, ImageMultiplexerConfig(vit=TINY, mux_width=count, transform=transform))
    )


SEEING_EACH_OTHER = [
    pytest.param(lambda: concat(2), id="concat2"),
    pytest.param(lambda: concat(4), id="concat4"),
    pytest.param(lambda: concat(4, pooled=True), id="pool4"),
    pytest.param(lambda: superposed(2), id="hadamard2"),
    pytest.param(lambda: superposed(4), id="hadamard4"),
    pytest.param(lambda: superposed(4, "orthogonal"), id="orthogonal4"),
]
ISOLATED = [
    pytest.param(lambda: concat(2, isolated=True), id="block2"),
    pytest.param(lambda: concat(4, isolated=True), id="block4"),
]
EVERY_KIND = SEEING_EACH_OTHER + ISOLATED


def images(count, seed=0):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "giga", "saving"),
    [
        ("concatplexer_base_n4", 13.40, 0.237),  # reference/concatplexer.md, sections 3 and 5.2
        ("concatplexer_base_n2", 13.45, 0.2345),
        ("concatplexer_small_n4", 3.51, 0.236),
        ("concatplexer_base_n4_dim0", 13.38, 0.238),
        ("imagemux_base_n2", 8.84, 0.497),
        ("imagemux_base_n4", 4.48, 0.745),
    ],
)
def test_macs_are_those_of_the_reference_arithmetic(name, giga, saving):
    size = name.split("_")[1]
    assert facts(name).macs / 1e9 == pytest.approx(giga, abs=0.01)
    assert 1 - facts(name).macs / facts(f"vit_{size}_patch16").macs == pytest.approx(saving, abs=1e-3)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("count", [2, 4])
def test_presets_save_what_the_paper_saves(size, count):
    saving = 1 - facts(f"concatplexer_{size}_n{count}").macs / facts(f"vit_{size}_patch16").macs
    assert 0.2325 <= saving <= 0.2375  # 23.3 to 23.7 %
    for control in ("d9", "tome"):
        control_saving = 1 - facts(f"vit_{size}_patch16_{control}").macs / facts(f"vit_{size}_patch16").macs
        assert control_saving == pytest.approx(saving, abs=0.02)


def test_macs_of_one_group_by_a_formula():
    """Of every linear layer and attention product, counted by hand (reference section 3)."""
    dim, tokens, kept, stem, shared, slots = 192, 64, 16, 8, 4, 4

    def block(count):
        return 12 * dim * dim * count + 2 * count * count * dim

    sequence = slots * kept + 1
    total = slots * (48 * dim * tokens + stem * block(tokens) + 9 * dim * dim * kept)
    total += shared * block(sequence) + slots * (dim * dim + dim * 1000)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build(ModelSpec(name="concatplexer_tiny_patch4_n4", image_size=(32, 32))).eval()(
            torch.zeros(slots, 3, 32, 32)
        )
    assert counter.get_total_flops() == 2 * total


@pytest.mark.parametrize("make", EVERY_KIND)
@settings(max_examples=12, deadline=None)
@given(count=st.integers(1, 11))
@torch.no_grad()
def test_any_number_of_images_gives_as_many_rows_in_their_order(make, count):
    model = make()
    x_BCHW, width = images(count), model.mux_width
    logits_BK = model(x_BCHW)
    assert logits_BK.shape == (count, 5)
    by_group = torch.cat([model(group) for group in x_BCHW.split(width)])
    close(logits_BK, by_group)


@pytest.mark.parametrize("make", EVERY_KIND)
@torch.no_grad()
def test_what_fills_a_short_group_does_not_matter(make, monkeypatch):
    model = make()
    x_BCHW = images(model.mux_width + 1)
    expected = model(x_BCHW)
    clamp = torch.Tensor.clamp
    monkeypatch.setattr(torch.Tensor, "clamp", lambda index, max: clamp(index, max=max) * (index <= max))
    first_instead = grouped(torch.arange(3.0).view(3, 1, 1), 2)[0]
    assert first_instead.flatten().tolist() == [0, 1, 2, 0]  # the first image fills, no more the last
    close(model(x_BCHW), expected, atol=1e-6)


@torch.no_grad()
def test_a_short_group_is_a_shorter_sequence():
    """Independent of masks: the same blocks on the class token and the tokens of the images there are."""
    model, x_BCHW = concat(4), images(3)
    grid = (4, 4)
    tokens_BNC = model.mux(model.forward_patches(x_BCHW), grid)
    placed_BNC = tokens_BNC + model.mux.pos_embed[:3] + model.mux.slot_embed[:3]
    x_1SC = torch.cat([model.class_token(), placed_BNC.reshape(1, -1, 24)], dim=1)
    for block in model.blocks[2:]:
        x_1SC = block(x_1SC)
    shared_1C = model.norm(x_1SC)[:, 0]
    expected = torch.cat([model.head.classifier(model.demux[slot](shared_1C)) for slot in range(3)])
    close(model(x_BCHW), expected)


@torch.no_grad()
def test_superposition_is_the_mean_of_images_times_their_keys():
    mux = superposed(4).mux
    tokens_GMNC = torch.randn(2, 4, 3, 24)
    expected = sum(tokens_GMNC[:, slot] * mux.keys[slot] for slot in range(4)) / 4
    close(mux(tokens_GMNC, None), expected, atol=1e-6)
    close(mux.keys.square().mean(1), torch.ones(4), atol=1e-5)
    present = torch.tensor([[True] * 4, [True, True, False, False]])
    close(mux(tokens_GMNC, present)[1], (tokens_GMNC[1, :2] * mux.keys[:2, None]).sum(0) / 2, atol=1e-6)


@torch.no_grad()
def test_orthogonal_keys_are_orthogonal_and_keep_the_size():
    mux = superposed(4, "orthogonal").mux
    for key_CC in mux.keys:
        close(key_CC @ key_CC.T, torch.eye(24), atol=1e-5)
    tokens_GMNC = torch.randn(1, 4, 3, 24)
    expected = sum(tokens_GMNC[:, slot] @ mux.keys[slot] for slot in range(4)) / 2  # the root of 4
    close(mux(tokens_GMNC, None), expected, atol=1e-5)


def test_keys_are_the_same_in_every_model_and_travel_with_the_weights():
    torch.manual_seed(5)
    assert torch.equal(superposed(2).mux.keys, superposed(2).mux.keys)
    assert "mux.keys" in superposed(2).state_dict()


@pytest.mark.parametrize("make", SEEING_EACH_OTHER)
@torch.no_grad()
def test_images_that_see_each_other_depend_on_their_group_and_on_no_other(make):
    model = make()
    width = model.mux_width
    x_BCHW, other = images(2 * width), images(2 * width, seed=9)
    changed = x_BCHW.clone()
    changed[width - 1] = other[width - 1]  # the last of the first group
    before, after = model(x_BCHW), model(changed)
    assert ((before - after)[: width - 1].abs().amax(1) > 1e-4).all()
    close(after[width:], before[width:])


@pytest.mark.parametrize("make", ISOLATED)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(1, 1000))
@torch.no_grad()
def test_nothing_leaks_through_the_block_mask(make, seed):
    model = make()
    width = model.mux_width
    x_BCHW, others = images(width), images(width, seed)
    slot = seed % width
    others[slot] = x_BCHW[slot]
    close(model(others)[slot], model(x_BCHW)[slot], atol=1e-5)


@pytest.mark.parametrize("make", ISOLATED)
def test_no_gradient_leaks_through_the_block_mask(make):
    model = make()
    x_BCHW = images(model.mux_width).requires_grad_()
    model(x_BCHW)[0].sum().backward()
    assert x_BCHW.grad[0].abs().sum() > 0
    assert x_BCHW.grad[1:].abs().max() == 0


@pytest.mark.parametrize("count", [2, 4])
@torch.no_grad()
def test_isolated_images_with_equal_slots_are_the_dim0_control(count):
    """The block mask makes one long row of what the control computes in rows of their own."""
    blocked, alone = concat(count, isolated=True), concat(count, mux_width=1)
    weights = blocked.state_dict()
    for slot in range(1, count):
        for part in ("mux.pos_embed", "mux.slot_embed"):
            weights[part][slot] = weights[part][0]
        for part in ("linear.weight", "linear.bias", "norm.weight", "norm.bias"):
            weights[f"demux.{slot}.{part}"] = weights[f"demux.0.{part}"].clone()
    blocked.load_state_dict(weights)
    weights = {
        key: value for key, value in weights.items() if not key.startswith(("demux.1", "demux.2", "demux.3"))
    }
    # The control's slot embedding reaches its class token through the position table alone.
    weights |= {f"mux.{part}": weights[f"mux.{part}"][:1] for part in ("pos_embed", "slot_embed")}
    weights["mux.pos_embed"] = weights["mux.pos_embed"] + weights["mux.slot_embed"]
    weights["cls_token"] = weights["cls_token"] + weights["mux.slot_embed"]
    weights["mux.slot_embed"] = torch.zeros_like(weights["mux.slot_embed"])
    alone.load_state_dict(weights)
    x_BCHW = images(2 * count + 1)
    close(blocked(x_BCHW), alone(x_BCHW))


@torch.no_grad()
def test_swapping_images_swaps_logits_only_where_slots_are_equal():
    """Under full attention too: positions and DeMUX are all that tells slots apart."""
    model, x_BCHW = concat(2), images(2)
    assert not torch.allclose(model(x_BCHW.flip(0)), model(x_BCHW).flip(0), atol=1e-3)
    weights = model.state_dict()
    for key in ("mux.pos_embed", "mux.slot_embed"):
        weights[key][1] = weights[key][0]
    for part in ("linear.weight", "linear.bias", "norm.weight", "norm.bias"):
        weights[f"demux.1.{part}"] = weights[f"demux.0.{part}"]
    model.load_state_dict(weights)
    close(model(x_BCHW.flip(0)), model(x_BCHW).flip(0))


@torch.no_grad()
def test_one_image_a_pass_is_patchifier_convolution_and_backbone():
    model, x_BCHW = concat(4, mux_width=1), images(3)
    patches_BCHW = model.forward_patches(x_BCHW).mT.unflatten(2, (4, 4))
    tokens_BNC = F.conv2d(patches_BCHW, model.mux.conv.weight, model.mux.conv.bias, 2, 1).flatten(2).mT
    tokens_BNC = tokens_BNC + model.mux.pos_embed + model.mux.slot_embed
    x_BNC = torch.cat([model.class_token().expand(3, -1, -1), tokens_BNC], dim=1)
    for block in model.blocks[2:]:
        x_BNC = block(x_BNC)
    close(model(x_BCHW), model.head.classifier(model.demux[0](model.norm(x_BNC)[:, 0])))


@pytest.mark.parametrize("make", EVERY_KIND)
def test_the_gradient_of_every_slot_reaches_its_own_way_out_and_its_image(make):
    model = make()
    x_BCHW = images(model.mux_width).requires_grad_()
    logits_BK = model(x_BCHW)
    for slot in range(model.mux_width):
        model.zero_grad()
        x_BCHW.grad = None
        logits_BK[slot].square().sum().backward(retain_graph=True)
        reached = [
            i
            for i, demux in enumerate(model.demux)
            if demux.linear.weight.grad is not None and demux.linear.weight.grad.abs().sum() > 0
        ]
        assert reached == [slot]
        assert x_BCHW.grad[slot].abs().sum() > 0


def test_the_reducing_convolution_starts_as_a_mean():
    model = ConcatPlexer(SPEC, ConcatPlexerConfig(vit=TINY, **SHARING[4]))
    constant_BNC = torch.randn(1, 1, 24).expand(-1, 64, -1)
    reduced_BNC = model.mux(constant_BNC, (8, 8))
    inner = reduced_BNC.unflatten(1, (4, 4))[:, 1:, 1:]
    close(inner, constant_BNC[:, :1, None].expand_as(inner), atol=1e-5)


@torch.no_grad()
def test_images_of_other_sizes_are_taken():
    for model in (concat(2), concat(4), superposed(2)):
        assert model(torch.randn(3, 3, 24, 20)).shape == (3, 5)
    with pytest.raises(ConfigError, match="multiples of 4, got"):
        concat(2)(torch.zeros(2, 3, 18, 16))


@pytest.mark.parametrize("name", ["concatplexer_tiny_n2", "concatplexer_tiny_n4", "imagemux_tiny_n2"])
@torch.no_grad()
def test_a_plain_vit_starts_them(name, tmp_path):
    plain = create_model("vit_tiny_patch16", num_classes=5)
    path = tmp_path / "plain.safetensors"
    save_weights(path, plain, {})
    model = create_model(name, num_classes=5)
    report = start_from(model, path)
    assert (report.missing, report.unexpected, report.skipped) == ((), (), ())
    assert all(key.startswith(("mux.", "demux.")) for key in report.fresh)
    for key in ("blocks.11.ffn.branch.fc2.weight", "head.classifier.weight", "patch_embed.weight"):
        assert torch.equal(model.state_dict()[key], plain.state_dict()[key])
    other = create_model(name, num_classes=7)
    assert {"head.classifier.weight", "head.classifier.bias"} <= set(start_from(other, path).fresh)


def test_weights_of_another_number_of_images_are_refused(tmp_path):
    path = tmp_path / "n4.safetensors"
    save_weights(path, create_model("concatplexer_tiny_n4", num_classes=5), {})
    with pytest.raises(
        WeightsError,
        match=r"expected weights of concatplexer_tiny_n2 or vit_\*, the file holds concatplexer_tiny_n4",
    ):
        start_from(create_model("concatplexer_tiny_n2", num_classes=5), path)


def test_one_image_a_group_is_no_model_and_the_message_helps():
    with pytest.raises(UnknownModelError, match="concatplexer_tiny_n2"):
        create_model("concatplexer_tiny_n1")


def test_every_preset_is_named_after_what_it_is():
    for name, config in CONFIGS.items():
        count = int(name.split("_n")[1][0])
        alone = name.endswith("_dim0")
        assert config.mux_width == (1 if alone else count)
        if isinstance(config, ConcatPlexerConfig):
            assert config.isolated == name.endswith("_block")
            assert config.pooled == name.endswith("_pool")
            assert math.prod(config.stride) == count


@torch.no_grad()
def test_position_tables_are_resampled_slot_by_slot():
    small = ConcatPlexer(SPEC, ConcatPlexerConfig(vit=TINY, **SHARING[2]))
    large = ConcatPlexer(ModelSpec(name=SPEC.name, image_size=(32, 24), num_classes=5), small.config)
    for known_size in ((16, 16), None):
        fitted = large.mux.resampled(small.mux.pos_embed, known_size)
        assert fitted.shape == large.mux.pos_embed.shape == (2, 8 * 3, 24)
        alone = large.mux.resampled(small.mux.pos_embed[1:], known_size)
        close(fitted[1:], alone)
    assert small.mux.resampled(small.mux.pos_embed, (16, 16)) is small.mux.pos_embed
