"""The plain ViT beside timm's DeiT: both heads, other image sizes, position tables."""

from __future__ import annotations

import pytest
import torch

from vitesse.errors import ConfigError, WeightsError
from vitesse.layers import fit_position_table, resample_position_table
from vitesse.models import build, create_model, load_checkpoint
from vitesse.models.transformer import resample_patch_embedding
from vitesse.spec import ModelSpec
from vitesse.weights import load_weights, save_weights
from vitesse.weights.load import start_from


def images(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_of_a_distilled_model_equal_timms_in_both_modes(timm):
    theirs = timm.create_model("deit_tiny_distilled_patch16_224").eval()
    for head in (theirs.head, theirs.head_dist):  # timm starts both at zero
        torch.nn.init.normal_(head.weight)
    ours = build(ModelSpec(name="vit_tiny_patch16", distilled=True)).eval()
    report = load_weights(ours, theirs.state_dict())
    assert (report.missing, report.unexpected, report.resampled) == ((), (), ())
    x_BCHW = images(224, 224)
    torch.testing.assert_close(ours(x_BCHW), theirs(x_BCHW), rtol=0, atol=1e-4)
    theirs.set_distilled_training(True)
    for our_logits, their_logits in zip(ours.train()(x_BCHW), theirs.train()(x_BCHW), strict=True):
        torch.testing.assert_close(our_logits, their_logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("image_size", [(160, 160), (192, 320), (384, 384)])
@torch.no_grad()
def test_logits_at_another_size_equal_timms(image_size, timm):
    weights = timm.create_model("deit_tiny_patch16_224").state_dict()
    theirs = timm.create_model("deit_tiny_patch16_224", img_size=224, dynamic_img_size=True).eval()
    theirs.load_state_dict(weights)
    built_for_it = build(ModelSpec(name="vit_tiny_patch16", image_size=image_size)).eval()
    assert load_weights(built_for_it, weights).resampled == ("pos_embed",)
    given_it = build(ModelSpec(name="vit_tiny_patch16")).eval()
    assert load_weights(given_it, weights).resampled == ()
    expected = theirs(images(*image_size))
    for ours in (built_for_it, given_it):
        torch.testing.assert_close(ours(images(*image_size)), expected, rtol=0, atol=1e-4)


def test_image_sides_that_patches_do_not_fill_are_refused():
    with pytest.raises(ConfigError, match="multiples of 16, got image_size 224x230"):
        build(ModelSpec(name="vit_tiny_patch16", image_size=(224, 230)))
    model = build(ModelSpec(name="vit_tiny_patch16"))
    with pytest.raises(ConfigError, match="multiples of 16, got"):
        model(torch.zeros(1, 3, 224, 230))


def test_a_table_of_the_same_grid_is_the_same_object():
    table = torch.randn(1, 1 + 12, 8)
    assert resample_position_table(table, 1, (3, 4), (3, 4)) is table
    assert fit_position_table(table, 1, (3, 4), (3, 4)) is table
    assert fit_position_table(table, 1, (3, 4), None) is table, "12 is no square, so nothing is known"
    assert fit_position_table(table[:, :1], 1, (3, 4), None).shape == (1, 1, 8), "there is nothing to fit"


def test_the_sides_of_a_table_are_those_it_was_made_for(tmp_path):
    """14 x 14 patches are as many as 7 x 28, and 10 x 20 as 20 x 10."""
    square, wide, high = (
        build(ModelSpec(name="vit_tiny_patch16", image_size=size))
        for size in ((224, 224), (112, 448), (448, 112))
    )
    assert load_weights(wide, square.state_dict()).resampled == ("pos_embed",)
    expected = resample_position_table(square.pos_embed, 1, (14, 14), (7, 28))
    torch.testing.assert_close(wide.pos_embed, expected)

    save_weights(tmp_path / "wide.safetensors", wide)
    assert load_weights(high, tmp_path / "wide.safetensors").resampled == ("pos_embed",)
    torch.testing.assert_close(high.pos_embed, resample_position_table(wide.pos_embed, 1, (7, 28), (28, 7)))
    again, _ = load_checkpoint(tmp_path / "wide.safetensors")
    assert torch.equal(again.pos_embed, wide.pos_embed)


def test_resampling_keeps_the_prefix_and_a_constant_table():
    table = torch.cat([torch.full((1, 2, 8), 5.0), torch.full((1, 16, 8), 2.0)], 1)
    fitted = fit_position_table(table.half(), 2, (7, 3), None)
    assert fitted.dtype == torch.float16
    assert fitted.shape == (1, 2 + 21, 8)
    assert (fitted[:, :2] == 5).all()
    torch.testing.assert_close(fitted[:, 2:].float(), torch.full((1, 21, 8), 2.0), rtol=1e-3, atol=1e-3)


def test_rows_and_columns_are_not_mixed_up():
    """A table that rises along the rows only rises along the rows only afterwards."""
    rows = torch.arange(4.0)[:, None].expand(4, 4).reshape(1, 16, 1)
    table = torch.cat([torch.zeros(1, 1, 1), rows], 1)
    patches = resample_position_table(table, 1, (4, 4), (8, 2))[0, 1:, 0].reshape(8, 2)
    torch.testing.assert_close(patches[:, 0], patches[:, 1])
    assert (patches[:, 0].diff() > 0).all()


@torch.no_grad()
def test_the_feature_map_holds_the_patches_in_their_places():
    model = build(ModelSpec(name="vit_tiny_patch16", distilled=True)).eval()
    x_BCHW = images(64, 96)
    features_BCHW = model.forward_features(x_BCHW)["patches"]
    tokens_BNC = model.forward_tokens(x_BCHW)
    assert features_BCHW.shape == (2, 192, 4, 6)
    assert torch.equal(features_BCHW[:, :, 2, 3], tokens_BNC[:, 2 + 2 * 6 + 3])


@torch.no_grad()
def test_small_patches_give_what_large_ones_give_for_the_enlarged_patch():
    weight_OIHW = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    patch_BCHW = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    enlarged_BCHW = torch.nn.functional.interpolate(patch_BCHW, size=(16, 16), mode="bilinear")
    expected = torch.nn.functional.conv2d(enlarged_BCHW, weight_OIHW)
    found = torch.nn.functional.conv2d(patch_BCHW, resample_patch_embedding(weight_OIHW, 4))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert resample_patch_embedding(weight_OIHW, 16) is weight_OIHW


def test_a_vit_of_smaller_patches_or_fewer_blocks_starts_from_the_plain_one(tmp_path):
    plain = build(ModelSpec(name="vit_tiny_patch16", num_classes=3))
    path = tmp_path / "plain.safetensors"
    save_weights(path, plain, {})
    small = build(ModelSpec(name="vit_tiny_patch4", image_size=(32, 32), num_classes=3))
    assert start_from(small, path).resampled == ("pos_embed", "patch_embed.weight")
    shallow = build(ModelSpec(name="vit_tiny_patch16_d9", num_classes=3))
    report = start_from(shallow, path)
    assert report.missing == report.unexpected == ()
    assert {name.split(".")[1] for name in report.skipped} == {"9", "10", "11"}
    assert torch.equal(shallow.blocks[8].ffn.branch.fc2.weight, plain.blocks[8].ffn.branch.fc2.weight)


def test_a_trained_plain_vit_runs_as_the_merging_one(tmp_path):
    plain = build(ModelSpec(name="vit_tiny_patch4", image_size=(32, 32), num_classes=3))
    path = tmp_path / "plain.safetensors"
    save_weights(path, plain, {"class_names": ["a", "b", "c"]})
    model, metadata = load_checkpoint(path, "vit_tiny_patch4_tome")
    assert model.spec.name == "vit_tiny_patch4_tome"
    assert metadata["class_names"] == ["a", "b", "c"]
    assert torch.equal(model.pos_embed, plain.pos_embed)
    for other in ("vit_tiny_patch4_d9", "vit_tiny_patch16", "vit_tiny_patch16_tome", "shvit_s1"):
        with pytest.raises(
            WeightsError, match=f"expected weights of {other}, the file holds vit_tiny_patch4"
        ):
            load_checkpoint(path, other)


def test_merged_tokens_make_no_map():
    with pytest.raises(ConfigError, match="vit_tiny_patch4_tome: merges its patches"):
        create_model("vit_tiny_patch4_tome", features_only=True)(torch.zeros(1, 3, 32, 32))
