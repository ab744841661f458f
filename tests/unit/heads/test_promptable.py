"""SAM's prompt encoder and mask decoder against those of transformers, with the same random weights."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vitesse.heads.promptable import PromptConfig, PromptDecoder
from vitesse.layers import LayerNorm2d
from vitesse.spec import PROMPT_FRAME, PromptKind
from vitesse.weights.keymaps import ORIGINAL, keymap_for

SMALL = PromptConfig(width=32, grid=8, num_heads=4, mlp_width=48)
TO_TRANSFORMERS = (
    (
        r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix",
        "shared_embedding.positional_embedding",
    ),
    (r"prompt_encoder\.point_embeddings", "point_embed"),
    (r"prompt_encoder\.mask_downscaling\.([036])", lambda m: f"mask_embed.conv{int(m[1]) // 3 + 1}"),
    (r"prompt_encoder\.mask_downscaling\.([14])", lambda m: f"mask_embed.layer_norm{int(m[1]) // 3 + 1}"),
    (r"prompt_encoder\.", ""),
    (r"mask_decoder\.output_upscaling\.([03])", lambda m: f"upscale_conv{int(m[1]) // 3 + 1}"),
    (r"mask_decoder\.output_upscaling\.1", "upscale_layer_norm"),
    (r"mask_decoder\.", ""),
    (r"(_mlps\.\d|prediction_head)\.layers\.0", r"\1.proj_in"),
    (r"(_mlps\.\d|prediction_head)\.layers\.2", r"\1.proj_out"),
    (r"(_mlps\.\d|prediction_head)\.layers\.1", r"\1.layers.0"),
    (r"norm_final_attn", "layer_norm_final_attn"),
    (r"\.norm(\d)", r".layer_norm\1"),
)
"""What segment-anything's names are called in transformers."""


def renamed(key: str) -> str:
    for pattern, replacement in TO_TRANSFORMERS:
        key = re.sub(pattern, replacement, key)
    return key


class Oracle:
    """transformers' two parts with a decoder's weights, which go through segment-anything's names."""

    def __init__(self, decoder: PromptDecoder, config: PromptConfig) -> None:
        sam = pytest.importorskip("transformers.models.sam.modeling_sam")
        from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

        prompts = SamPromptEncoderConfig(
            hidden_size=config.width,
            image_size=PROMPT_FRAME,
            patch_size=PROMPT_FRAME // config.grid,
            mask_input_channels=config.mask_width,
            layer_norm_eps=config.norm_eps,
        )
        masks = SamMaskDecoderConfig(
            hidden_size=config.width,
            mlp_dim=config.mlp_width,
            num_hidden_layers=config.num_blocks,
            num_attention_heads=config.num_heads,
            num_multimask_outputs=config.num_alternatives,
            iou_head_hidden_dim=config.width,
            layer_norm_eps=config.norm_eps,
        )
        vision = SamVisionConfig(num_pos_feats=config.width // 2)
        whole = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks)
        whole.mask_decoder_config._attn_implementation = "eager"
        self.prompt_encoder = sam.SamPromptEncoder(whole).eval()
        self.mask_decoder = sam.SamMaskDecoder(whole.mask_decoder_config).eval()
        ours = {f"decoder.{key}": tensor for key, tensor in decoder.state_dict().items()}
        state = keymap_for("efficientvit_sam_l0").write(ours, ORIGINAL)
        for prefix, module in vars(self).items():
            own = {renamed(key): value for key, value in state.items() if key.startswith(prefix)}
            module.load_state_dict(own)

    def __call__(
        self, embedding, *, points=None, labels=None, boxes=None, masks=None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All masks and qualities, the one for clear prompts first, of prompts with a batch of one image."""
        sparse, dense = self.prompt_encoder(points, labels, boxes, masks)
        grid = dense.shape[-1]
        centres = (torch.arange(grid) + 0.5) / grid
        xy = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1)
        positions = self.prompt_encoder.shared_embedding(xy).permute(2, 0, 1)[None]
        found = [
            self.mask_decoder(embedding, positions, sparse, dense, multimask_output=several)
            for several in (False, True)
        ]
        return torch.cat([f[0][0] for f in found], 1), torch.cat([f[1][0] for f in found], 1)


@pytest.fixture(scope="module")
def parts() -> SimpleNamespace:
    torch.manual_seed(0)
    decoder = PromptDecoder(SMALL).eval()
    for module in decoder.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    embedding = torch.randn(1, SMALL.width, SMALL.grid, SMALL.grid)
    return SimpleNamespace(decoder=decoder, embedding=embedding)


@pytest.fixture(scope="module")
def oracle(parts) -> Oracle:
    return Oracle(parts.decoder, SMALL)


POINTS = torch.tensor([[[100.0, 20.5, 1], [900, 1000, 0]], [[0, 0, 1], [512, 700, 1]]])
BOXES = torch.tensor([[[10.0, 20, 300, 400], [0, 0, 1024, 768]]])
CORNERS = torch.cat((BOXES.view(2, 2, 2), torch.tensor([2.0, 3]).expand(2, 2)[..., None]), -1)
NOTHING = torch.tensor([0.0, 0, PromptKind.NO_POINT]).expand(2, 1, 3)
MASK = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
AS_POINTS = {"points": POINTS[None, ..., :2], "labels": POINTS[None, ..., 2]}
PROMPTS = {
    "points": (torch.cat((POINTS, NOTHING), 1), AS_POINTS),
    "boxes": (CORNERS, {"boxes": BOXES}),
    "points and boxes": (torch.cat((POINTS, CORNERS), 1), AS_POINTS | {"boxes": BOXES}),
    "box and mask": (CORNERS[:1], {"boxes": BOXES[:, :1], "masks": MASK}),
}


@pytest.mark.parametrize("kind", PROMPTS)
@torch.no_grad()
def test_masks_and_quality_equal_those_of_transformers(parts, oracle, kind):
    prompts_NP3, given = PROMPTS[kind]
    masks, quality = parts.decoder(prompts_NP3, parts.embedding, given.get("masks"))
    expected_masks, expected_quality = oracle(parts.embedding, **given)
    assert masks.shape == (len(prompts_NP3), 4, 32, 32)
    torch.testing.assert_close(masks, expected_masks, rtol=0, atol=1e-5)
    torch.testing.assert_close(quality, expected_quality, rtol=0, atol=1e-5)


@torch.no_grad()
def test_objects_do_not_see_each_other(parts):
    together = parts.decoder(CORNERS, parts.embedding)
    for index in range(len(CORNERS)):
        alone = parts.decoder(CORNERS[index : index + 1], parts.embedding)
        for found, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(found[index], expected[0], rtol=1e-4, atol=1e-5)
    with_its_own = parts.decoder(CORNERS, parts.embedding.expand(2, -1, -1, -1))
    assert torch.equal(with_its_own[0], together[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_positions_and_norms_stay_float32_in_half_precision(parts, dtype):
    """A coordinate of 1023 among 1024 has ten bits, bfloat16 eight; squares of a thousand pass float16."""
    prompts_NP3 = torch.tensor([[[1023.0, 1021, PromptKind.FOREGROUND]]])
    expected, _ = parts.decoder.prompt_encoder(prompts_NP3)
    with torch.autocast("cpu", dtype=dtype):
        tokens, _ = parts.decoder.prompt_encoder(prompts_NP3)
    torch.testing.assert_close(tokens, expected)
    norm, loud = LayerNorm2d(4), (1000 * torch.randn(1, 4, 2, 2)).to(dtype)
    normed = copy.deepcopy(norm).to(dtype)(loud)
    assert normed.dtype == dtype
    torch.testing.assert_close(normed.float(), norm(loud.float()), rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_every_size_of_sam_is_as_published():
    with torch.device("meta"):
        decoder = PromptDecoder(PromptConfig())
        masks, quality = decoder(torch.zeros(3, 2, 3), torch.zeros(1, 256, 64, 64))
    assert masks.shape == (3, 4, 256, 256)
    assert quality.shape == (3, 4)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 4_058_340 + 6_220


def test_every_parameter_learns(parts):
    masks, quality = parts.decoder(CORNERS[:1], parts.embedding, MASK)
    (masks.square().sum() + quality.square().sum()).backward()
    grads = {name: p.grad for name, p in parts.decoder.named_parameters()}
    unused = {name for name, grad in grads.items() if grad is None or not grad.abs().sum() > 0}
    kinds = {f"prompt_encoder.{name}" for name in ("kinds.0", "kinds.1", "no_point", "no_mask")}
    assert unused == kinds, "a box with a mask has no points and is not without a mask"
