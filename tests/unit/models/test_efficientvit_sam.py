"""EfficientViT-SAM and EfficientSAM: sizes and names as published, and what each does not take."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from vitesse.catalogue import facts
from vitesse.errors import ConfigError, WeightsError
from vitesse.models import build, create_model, efficientvit_mit
from vitesse.models.checkpoint import convert
from vitesse.models.loading import load_torch
from vitesse.spec import ModelSpec, PreprocessSpec
from vitesse.weights import load_weights
from vitesse.weights.keymaps import ORIGINAL, OURS, keymap_for

PUBLISHED = {  # parameters of encoder and neck, M in all, G MACs, entries of the encoder's state, image size
    "efficientvit_sam_l0": (30_728_224, 2_922_240, 34.8, 35, 272, 512),
    "efficientvit_sam_l1": (43_585_568, 5_547_776, 47.7, 49, 378, 512),
    "efficientvit_sam_l2": (57_264_032, 8_173_312, 61.3, 69, 508, 512),
    "efficientvit_sam_xl0": (112_893_344, 16_270_080, 117.0, 185, 318, 1024),
    "efficientvit_sam_xl1": (199_281_568, 32_014_080, 203.3, 322, 564, 1024),
}
BACKBONES = {"efficientvit_xl0": 96_622_752, "efficientvit_xl1": 167_266_976, "efficientvit_l0": 27_805_472}
NAMES = (*PUBLISHED, "efficientsam_ti", "efficientsam_s")


def empty(name: str) -> torch.nn.Module:
    """A model without values."""
    with torch.device("meta"):
        return build(ModelSpec(name=name, image_size=facts(name).image_size)).eval()


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_macs_and_entries_as_published(name):
    encoder, neck, total, macs, entries, size = PUBLISHED[name]
    model = empty(name)
    assert count(model.neck) - count(model.neck.norm) == neck
    assert count(model.backbone) + count(model.neck) == encoder
    assert round(count(model) / 1e6, 1) == total
    assert round(facts(name).macs / 1e9) == macs  # `test_catalogue` counts them
    assert model.spec.image_size == (size, size)
    state = keymap_for(name).write(model.state_dict(), ORIGINAL)
    assert sum(key.startswith("image_encoder.") for key in state) == entries
    assert all(module.eps == 1e-6 for module in model.modules() if hasattr(module, "eps"))


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_as_published(name):
    config = dataclasses.replace(efficientvit_mit.CONFIGS[name], head_widths=None)
    with torch.device("meta"):
        backbone = efficientvit_mit.EfficientViT(ModelSpec(name=name), config)
    assert count(backbone) == BACKBONES[name]


@pytest.mark.parametrize(("name", "millions"), [("efficientsam_ti", 10.2), ("efficientsam_s", 26.4)])
def test_efficientsam_is_as_large_as_its_paper_says(name, millions):
    assert round(count(empty(name)) / 1e6, 1) == millions


@pytest.mark.parametrize("name", ["efficientvit_sam_l0", "efficientvit_sam_xl0", "efficientsam_ti"])
def test_an_image_becomes_an_embedding_of_sams_size(name):
    model = empty(name)
    size = model.spec.image_size
    assert model(torch.zeros(2, 3, *size, device="meta")).shape == (2, 256, 64, 64)


@pytest.mark.parametrize("naming", [OURS, ORIGINAL])
@pytest.mark.parametrize("name", NAMES)
def test_round_trip_of_names_loses_and_adds_nothing(name, naming):
    state, keymap = empty(name).state_dict(), keymap_for(name)
    foreign = keymap.write(state, naming)
    assert list({ours: tensor for ours, _, tensor in keymap.read(foreign, naming)}) == list(state)
    assert keymap.detect(foreign, state) == naming


# Names and shapes found in the public definitions.
PUBLIC = [
    ("l0", "image_encoder.backbone.stages.0.op_list.0.conv.weight", (32, 3, 3, 3)),
    ("l0", "image_encoder.backbone.stages.0.op_list.1.main.conv2.norm.running_var", (32,)),
    ("l0", "image_encoder.backbone.stages.3.op_list.0.main.inverted_conv.conv.bias", (2048,)),
    (
        "l0",
        "image_encoder.backbone.stages.4.op_list.4.context_module.main.qkv.conv.weight",
        (1536, 512, 1, 1),
    ),
    (
        "l0",
        "image_encoder.backbone.stages.4.op_list.1.context_module.main.aggreg.0.0.weight",
        (1536, 1, 5, 5),
    ),
    (
        "xl0",
        "image_encoder.backbone.stages.4.op_list.1.context_module.main.aggreg.0.0.weight",
        (1536, 1, 3, 3),
    ),
    ("xl0", "image_encoder.backbone.stages.5.op_list.0.main.inverted_conv.conv.weight", (12288, 512, 1, 1)),
    ("xl0", "image_encoder.backbone.stages.5.op_list.3.local_module.main.depth_conv.conv.bias", (6144,)),
    ("xl0", "image_encoder.backbone.stages.3.op_list.2.main.spatial_conv.conv.weight", (1024, 256, 3, 3)),
    ("xl0", "image_encoder.neck.input_ops.0.op_list.0.conv.weight", (256, 1024, 1, 1)),
    ("l0", "image_encoder.neck.input_ops.0.op_list.0.conv.weight", (256, 512, 1, 1)),
    ("l0", "image_encoder.neck.input_ops.2.op_list.0.norm.bias", (256,)),
    ("l0", "image_encoder.neck.middle.op_list.3.main.spatial_conv.conv.weight", (256, 256, 3, 3)),
    ("xl0", "image_encoder.neck.middle.op_list.5.main.point_conv.conv.weight", (256, 1024, 1, 1)),
    ("l0", "image_encoder.neck.middle.op_list.0.main.point_conv.norm.weight", (256,)),
    ("l0", "image_encoder.neck.output_ops.0.op_list.0.conv.bias", (256,)),
    ("l0", "image_encoder.norm.weight", (256,)),
    ("l0", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", (2, 128)),
    ("l0", "prompt_encoder.point_embeddings.3.weight", (1, 256)),
    ("l0", "prompt_encoder.not_a_point_embed.weight", (1, 256)),
    ("l0", "prompt_encoder.mask_downscaling.3.weight", (16, 4, 2, 2)),
    ("l0", "prompt_encoder.mask_downscaling.4.bias", (16,)),
    ("l0", "prompt_encoder.no_mask_embed.weight", (1, 256)),
    ("l0", "mask_decoder.transformer.layers.1.self_attn.q_proj.weight", (256, 256)),
    ("l0", "mask_decoder.transformer.layers.0.cross_attn_token_to_image.out_proj.weight", (256, 128)),
    ("l0", "mask_decoder.transformer.layers.0.cross_attn_image_to_token.v_proj.bias", (128,)),
    ("l0", "mask_decoder.transformer.layers.0.mlp.lin1.weight", (2048, 256)),
    ("l0", "mask_decoder.transformer.layers.1.norm4.weight", (256,)),
    ("l0", "mask_decoder.transformer.final_attn_token_to_image.k_proj.weight", (128, 256)),
    ("l0", "mask_decoder.transformer.norm_final_attn.bias", (256,)),
    ("l0", "mask_decoder.iou_token.weight", (1, 256)),
    ("l0", "mask_decoder.mask_tokens.weight", (4, 256)),
    ("l0", "mask_decoder.output_upscaling.0.weight", (256, 64, 2, 2)),
    ("l0", "mask_decoder.output_upscaling.1.weight", (64,)),
    ("l0", "mask_decoder.output_upscaling.3.bias", (32,)),
    ("l0", "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight", (32, 256)),
    ("l0", "mask_decoder.iou_prediction_head.layers.2.bias", (4,)),
]


@pytest.mark.parametrize("size", ["l0", "xl0"])
def test_public_names_have_their_shapes(size):
    name = f"efficientvit_sam_{size}"
    state = keymap_for(name).write(empty(name).state_dict(), ORIGINAL)
    for _, key, shape in (row for row in PUBLIC if row[0] == size):
        assert tuple(state[key].shape) == shape, key


def test_public_names_of_efficientsams_encoder():
    state = keymap_for("efficientsam_ti").write(empty("efficientsam_ti").state_dict(), ORIGINAL)
    for key, shape in {
        "patch_embed.proj.weight": (192, 3, 16, 16),
        "pos_embed": (1, 197, 192),
        "blocks.11.norm1.bias": (192,),
        "blocks.0.attn.qkv.weight": (576, 192),
        "blocks.0.attn.proj.bias": (192,),
        "blocks.3.mlp.fc2.weight": (192, 768),
        "neck.0.weight": (256, 192, 1, 1),
        "neck.3.bias": (256,),
    }.items():
        assert tuple(state[f"image_encoder.{key}"].shape) == shape, key


@pytest.fixture
def tiny(monkeypatch, narrow_sam):
    return narrow_sam(monkeypatch, num_classes=7, distilled=True)


@torch.no_grad()
def test_the_neck_is_a_sum_of_three_maps_resized_in_float32(tiny):
    """Written out from the paper, one map at a time."""
    x_BCHW = torch.randn(1, 3, 128, 128)
    maps = tiny.forward_features(x_BCHW)
    assert [tuple(maps[f"stage{i}"].shape[2:]) for i in (4, 3, 2)] == [(4, 4), (8, 8), (16, 16)]
    summed = sum(
        F.interpolate(conv(maps[f"stage{i}"]), (16, 16), mode="bicubic", align_corners=False)
        for i, conv in zip((4, 3, 2), tiny.neck.inputs, strict=True)
    )
    block = tiny.neck.blocks[0].branch
    refined = tiny.neck.project(summed + block.project(F.gelu(block.spatial(summed), approximate="tanh")))
    mean, var = refined.mean(1, keepdim=True), refined.var(1, unbiased=False, keepdim=True)
    expected = (refined - mean) / (var + 1e-6).sqrt()
    torch.testing.assert_close(tiny(x_BCHW), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_keeps_the_embedding(tiny, dtype):
    """With attention whose sums pass the 65504 that half precision ends at."""
    for module in tiny.modules():
        if isinstance(module, efficientvit_mit.MultiScaleLinearAttention):  # these factors cancel out
            module.qkv.weight.data *= 1000
            module.proj.conv.weight.data /= 1000
    x_BCHW = torch.randn(1, 3, 128, 128)
    expected = tiny(x_BCHW)
    with torch.autocast("cpu", dtype=dtype):
        found = tiny(x_BCHW).float()
    assert torch.isfinite(found).all()
    assert F.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.999


def test_the_spec_is_of_one_class_and_gradients_reach_the_encoder(tiny):
    assert (tiny.spec.num_classes, tiny.spec.distilled, tiny.task) == (1, False, "promptable")
    tiny(torch.randn(2, 3, 128, 128)).square().sum().backward()
    unused = [name for name, p in tiny.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all(name.startswith("decoder.") for name in unused)


@pytest.mark.parametrize("shape", [(1, 3, 128, 96), (1, 3, 16, 16), (1, 1, 128, 128), (3, 128, 128)])
def test_other_images_than_squares_are_refused(tiny, shape):
    with pytest.raises(ConfigError, match="squares of height and width at least 32, got"):
        tiny(torch.zeros(shape))


def test_an_image_size_that_does_not_fit_is_refused():
    with pytest.raises(
        ConfigError, match="efficientsam_ti: expected height and width 1024, got image_size 512x512"
    ):
        create_model("efficientsam_ti", image_size=512)
    with torch.device("meta"), pytest.raises(ConfigError, match="squares of height and width at least 64"):
        create_model("efficientvit_sam_xl0", image_size=32)


def test_a_published_file_is_converted_and_loads_by_name(tiny, tmp_path, hub, monkeypatch):
    """Under the original names, in a `.pt` as the release has it."""
    released = tmp_path / "efficientvit_sam_l0.pt"
    state = keymap_for("efficientvit_sam_l0").write(tiny.state_dict(), ORIGINAL)
    torch.save(state, released)
    report = convert(
        released, name="efficientvit_sam_l0", out=tmp_path / "sam.safetensors", image_size=(128, 128)
    )
    assert (report.naming, report.missing, report.unexpected) == (ORIGINAL, (), ())
    module, manifest = load_torch(tmp_path / "sam.safetensors")
    assert (manifest.task, manifest.class_names) == ("promptable", ("object",))
    assert manifest.preprocess == PreprocessSpec(
        image_size=(128, 128), resize="fit", interpolation="bilinear"
    )
    weights = facts("efficientvit_sam_l0").weights[0]
    hub.add(weights.hub_id, weights.file, released.read_bytes())
    named, published = load_torch("efficientvit_sam_l0")
    assert (published.trained_on, published.licence) == ("SA-1B", "Apache-2.0")
    assert (published.task, published.preprocess.image_size) == ("promptable", (512, 512))
    for key, tensor in tiny.state_dict().items():
        assert torch.equal(module.state_dict()[key], tensor), key
        assert torch.equal(named.state_dict()[key], tensor), key


def test_released_efficientsam_weights_are_not_taken_for_ours(monkeypatch):
    """Their decoder has other layers; a file of them is refused whole, by the names that are missing."""
    state = {
        "image_encoder.pos_embed": torch.zeros(1, 197, 192),
        "mask_decoder.iou_token.weight": torch.zeros(1, 256),
    }
    with pytest.raises(WeightsError, match="missing"):
        load_weights(create_model("efficientsam_ti"), state)


@pytest.mark.parametrize(("key", "value"), [("num_classes", 7), ("distilled", True)])
def test_what_masks_of_any_object_have_not_is_refused(key, value):
    with pytest.raises(
        ConfigError, match=rf"^{key}: efficientsam_ti has .* and no other, got {value}; leave it"
    ):
        create_model("efficientsam_ti", **{key: value})
    assert create_model("efficientsam_ti", num_classes=1).spec.num_classes == 1
