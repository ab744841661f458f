"""From the embedding of an image and prompts, points or a box, to masks of an object and their quality.

Prompt encoder and mask decoder of Kirillov et al., ICCV 2023, arXiv 2304.02643, section 3 and appendix A.

Shape suffixes: N objects, P points of an object, C channels, H rows, W columns of the image embedding, S its
positions (H*W), T tokens, M masks, A attention heads, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.layers import LayerNorm2d, to_map, to_tokens, upcast, without_autocast
from vitesse.spec import PROMPT_FRAME, PromptKind


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Sizes of the decoder.

    Attributes:
        width: channels of the image embedding and of every token.
        grid: rows and columns of the image embedding.
        num_blocks, num_heads, mlp_width: of the transformer.
        num_alternatives: masks for prompts that may mean several things, beside the one for clear prompts.
        mask_width: channels of an earlier mask that is a prompt.
        norm_eps: of every normalisation; not part of a checkpoint, but its weights expect it.
    """

    width: int = 256
    grid: int = 64
    num_blocks: int = 2
    num_heads: int = 8
    mlp_width: int = 2048
    num_alternatives: int = 3
    mask_width: int = 16
    norm_eps: float = 1e-6


class PromptDecoder(nn.Module):
    """Prompts and the image's embedding to masks: what runs for every prompt."""

    def __init__(self, config: PromptConfig) -> None:
        super().__init__()
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)

    def forward(
        self, prompts_NP3: Tensor, embedding_NCHW: Tensor, masks_N1HW: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, M, 4H, 4W) of masks, and the IoU (N, M) that each is expected to have with the object.

        Of the M masks the first is for prompts that mean one thing, the others are alternatives.

        Args:
            prompts_NP3: x and y of points, in pixels of `PROMPT_FRAME`, and their `PromptKind`.
            embedding_NCHW: of each object's image, or one for all objects.
            masks_N1HW: logits of an earlier mask of each object, four times as wide and high.
        """
        tokens_NPC, dense_NCHW = self.prompt_encoder(prompts_NP3, masks_N1HW)
        positions_1CHW = self.prompt_encoder.grid_positions()
        masks, quality = self.mask_decoder(embedding_NCHW + dense_NCHW, positions_1CHW, tokens_NPC)
        return masks, quality


class FourierPositions(nn.Module):
    """Positions as sines and cosines of random frequencies, which stay as they were drawn."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, width // 2))

    def forward(self, xy: Tensor) -> Tensor:
        """(..., 2), x and y as shares of the frame, to (..., C), float32 at least."""
        with without_autocast(xy):
            angles = (2 * upcast(xy) - 1) @ (2 * math.pi * upcast(self.frequencies))
            return torch.cat((angles.sin(), angles.cos()), dim=-1)


class PromptEncoder(nn.Module):
    """Points and boxes as tokens, an earlier mask as a map."""

    def __init__(self, config: PromptConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.positions = FourierPositions(config.width)
        self.kinds = nn.ParameterList(torch.empty(1, config.width) for kind in PromptKind if kind >= 0)
        self.no_point = nn.Parameter(torch.empty(1, config.width))
        narrow, wide = config.mask_width // 4, config.mask_width
        self.mask_downscale = nn.Sequential(
            nn.Conv2d(1, narrow, 2, 2),
            LayerNorm2d(narrow, config.norm_eps),
            nn.GELU(),
            nn.Conv2d(narrow, wide, 2, 2),
            LayerNorm2d(wide, config.norm_eps),
            nn.GELU(),
            nn.Conv2d(wide, config.width, 1),
        )
        self.no_mask = nn.Parameter(torch.empty(1, config.width))
        for embedding in (*self.kinds, self.no_point, self.no_mask):
            nn.init.normal_(embedding)

    def forward(self, prompts_NP3: Tensor, masks_N1HW: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (N, P, C), and what is added to the image embedding: (N, C, H, W), or (1, C, 1, 1)."""
        xy_NP2, kinds_NP = prompts_NP3[..., :2], prompts_NP3[..., 2]
        centres_NP2 = (upcast(xy_NP2) + 0.5) / PROMPT_FRAME
        is_point_NP1 = (kinds_NP != PromptKind.NO_POINT).unsqueeze(2)
        table_KC = torch.cat((self.no_point, *self.kinds))
        embeds_NPC = F.embedding(kinds_NP.long() - PromptKind.NO_POINT, table_KC)
        tokens_NPC = self.positions(centres_NP2) * is_point_NP1 + embeds_NPC
        dense = self.no_mask[:, :, None, None] if masks_N1HW is None else self.mask_downscale(masks_N1HW)
        return tokens_NPC.to(table_KC.dtype), dense

    def grid_positions(self) -> Tensor:
        """The positions of the image embedding: (1, C, H, W)."""
        frequencies = self.positions.frequencies
        centres = (torch.arange(self.grid, device=frequencies.device, dtype=torch.float32) + 0.5) / self.grid
        xy_HW2 = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)
        positions_HWC: Tensor = self.positions(xy_HW2)
        return positions_HWC.permute(2, 0, 1).unsqueeze(0).to(self.no_mask.dtype)


class Attention(nn.Module):
    """Multi-head softmax attention of some tokens over others, in `dim` / `shrink` channels."""

    def __init__(self, dim: int, num_heads: int, shrink: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v = (nn.Linear(dim, dim // shrink) for _ in range(3))
        self.out = nn.Linear(dim // shrink, dim)

    def forward(self, q_NTC: Tensor, k_NSC: Tensor, v_NSC: Tensor) -> Tensor:
        """Queries (N, T, C) to the same shape."""
        out_NATD = F.scaled_dot_product_attention(
            self._heads(self.q(q_NTC)), self._heads(self.k(k_NSC)), self._heads(self.v(v_NSC))
        )
        out_NTC: Tensor = self.out(out_NATD.transpose(1, 2).flatten(2))
        return out_NTC

    def _heads(self, x_NTC: Tensor) -> Tensor:
        return torch.unflatten(x_NTC, 2, (self.num_heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """Linear layers of these widths with ReLU between."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class TwoWayBlock(nn.Module):
    """Tokens attend to each other and to the image, then the image to the tokens.

    The positions of both are added to whatever is compared. In the first block the tokens are their own
    positions, and attention among them has no skip.
    """

    def __init__(self, config: PromptConfig, *, first: bool) -> None:
        super().__init__()
        dim, heads, eps = config.width, config.num_heads, config.norm_eps
        self.first = first
        self.self_attention = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim, eps)
        self.to_image = Attention(dim, heads, shrink=2)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(dim, config.mlp_width), "fc2": nn.Linear(config.mlp_width, dim)}
        )
        self.norm3 = nn.LayerNorm(dim, eps)
        self.to_tokens = Attention(dim, heads, shrink=2)
        self.norm4 = nn.LayerNorm(dim, eps)

    def forward(
        self, x_NTC: Tensor, image_NSC: Tensor, token_positions_NTC: Tensor, positions_1SC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens and image positions to the same shapes."""
        if self.first:
            x_NTC = self.norm1(self.self_attention(x_NTC, x_NTC, x_NTC))
        else:
            placed_NTC = x_NTC + token_positions_NTC
            x_NTC = self.norm1(x_NTC + self.self_attention(placed_NTC, placed_NTC, x_NTC))
        keys_NSC = image_NSC + positions_1SC
        x_NTC = self.norm2(x_NTC + self.to_image(x_NTC + token_positions_NTC, keys_NSC, image_NSC))
        x_NTC = self.norm3(x_NTC + self.mlp["fc2"](F.relu(self.mlp["fc1"](x_NTC))))
        image_NSC = self.norm4(image_NSC + self.to_tokens(keys_NSC, x_NTC + token_positions_NTC, x_NTC))
        return x_NTC, image_NSC


class TwoWayTransformer(nn.Module):
    """Blocks of `TwoWayBlock`, and a last attention of the tokens to the image."""

    def __init__(self, config: PromptConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TwoWayBlock(config, first=i == 0) for i in range(config.num_blocks))
        self.final = Attention(config.width, config.num_heads, shrink=2)
        self.norm_final = nn.LayerNorm(config.width, config.norm_eps)

    def forward(self, tokens_NTC: Tensor, image_NSC: Tensor, positions_1SC: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and image positions to the same shapes."""
        x_NTC = tokens_NTC
        for block in self.blocks:
            x_NTC, image_NSC = block(x_NTC, image_NSC, tokens_NTC, positions_1SC)
        seen_NTC = self.final(x_NTC + tokens_NTC, image_NSC + positions_1SC, image_NSC)
        return self.norm_final(x_NTC + seen_NTC), image_NSC


class MaskDecoder(nn.Module):
    """A token for each mask and one for their quality look at the image together with the prompts' tokens.

    A small network of its own makes of each mask's token the weights by which it is read off the image.
    """

    def __init__(self, config: PromptConfig) -> None:
        super().__init__()
        dim, num_masks = config.width, 1 + config.num_alternatives
        self.iou_token = nn.Parameter(torch.empty(1, dim))
        self.mask_tokens = nn.Parameter(torch.empty(num_masks, dim))
        self.transformer = TwoWayTransformer(config)
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, 2),
            LayerNorm2d(dim // 4, config.norm_eps),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, 2),
            nn.GELU(),
        )
        self.hypernetworks = nn.ModuleList(MLP((dim, dim, dim, dim // 8)) for _ in range(num_masks))
        self.quality = MLP((dim, dim, dim, num_masks))
        for token in (self.iou_token, self.mask_tokens):
            nn.init.normal_(token)

    def forward(
        self, image_NCHW: Tensor, positions_1CHW: Tensor, prompts_NPC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `PromptDecoder`; the image embedding may be one for all N."""
        count, size = prompts_NPC.shape[0], (image_NCHW.shape[2], image_NCHW.shape[3])
        own_TC = torch.cat((self.iou_token, self.mask_tokens))
        tokens_NTC = torch.cat((own_TC.expand(count, -1, -1), prompts_NPC), dim=1)
        image_NSC = to_tokens(image_NCHW).expand(count, -1, -1)
        tokens_NTC, image_NSC = self.transformer(tokens_NTC, image_NSC, to_tokens(positions_1CHW))
        fine_NCHW = self.upscale(to_map(image_NSC, size))
        weights_NMC = torch.stack(
            [network(tokens_NTC[:, 1 + i]) for i, network in enumerate(self.hypernetworks)], dim=1
        )
        masks_NMHW = torch.unflatten(weights_NMC @ fine_NCHW.flatten(2), 2, fine_NCHW.shape[2:])
        return masks_NMHW, self.quality(tokens_NTC[:, 0])
