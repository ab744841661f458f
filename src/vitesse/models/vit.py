"""Plain vision transformer in DeiT's layout: tiny, small and base, with patches of 16 pixels or of 4.

Dosovitskiy et al., ICLR 2021, arXiv 2010.11929; Touvron et al., ICML 2021, arXiv 2012.12877. `_d9` has the
first 9 of the 12 blocks; `_tome` merges similar tokens in every block (`token_merging`): two ways to spend
about a quarter less.

Shape suffixes: B images, C channels, H rows, W columns of patches, P prefix tokens, N tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor, nn

from vitesse.errors import ConfigError
from vitesse.models.registry import configured, register
from vitesse.models.token_merging import MergingBlocks
from vitesse.models.transformer import SIZES, TokenBackbone, ViTConfig
from vitesse.spec import ModelSpec

SHALLOW, MERGING = "_d9", "_tome"
SHALLOW_DEPTH = 9
TOKENS_MERGED = {16: (7, 8), 4: (3, 2)}
"""Per block, in turn, by patch side: a quarter of the MACs less at 224 and at 32 pixels."""


def _configs() -> dict[str, ViTConfig]:
    plain = {
        f"vit_{size}_patch16": ViTConfig(width=width, num_heads=heads)
        for size, (width, heads) in SIZES.items()
    }
    plain["vit_tiny_patch4"] = replace(plain["vit_tiny_patch16"], patch_size=4)
    shallow = {name + SHALLOW: replace(config, depth=SHALLOW_DEPTH) for name, config in plain.items()}
    merging = {name + MERGING: config for name, config in plain.items()}
    return plain | shallow | merging


CONFIGS = _configs()


class VisionTransformer(TokenBackbone):
    """Patches and one or two learned tokens through transformer blocks, a linear head on those tokens."""

    starts_from = ("vit_*",)

    def __init__(self, spec: ModelSpec, config: ViTConfig) -> None:
        super().__init__(spec, config, num_prefix_tokens=2 if spec.distilled else 1)
        self.dist_token = nn.Parameter(torch.empty(1, 1, config.width)) if spec.distilled else None
        if spec.name.endswith(MERGING):
            merged = itertools.islice(itertools.cycle(TOKENS_MERGED[config.patch_size]), config.depth)
            self.same_weights = spec.name.removesuffix(MERGING)
            self.blocks = MergingBlocks(self.blocks, tuple(merged), self.num_prefix_tokens)
        self.reset_parameters()

    def forward_tokens(self, x_BCHW: Tensor) -> Tensor:
        """All tokens after the last block, normalised: (B, P+N, C), the class token first.

        N is the number of patches, less where the blocks merge them.
        """
        tokens: list[Tensor] = [token for token in (self.cls_token, self.dist_token) if token is not None]
        prefix_1PC = torch.cat(tokens, dim=1) + self.pos_embed[:, : self.num_prefix_tokens]
        x_BNC = torch.cat([prefix_1PC.expand(x_BCHW.shape[0], -1, -1), self.embed(x_BCHW)], dim=1)
        normed_BNC: Tensor = self.norm(self.blocks(x_BNC))
        return normed_BNC

    def forward_features(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """The patches as a map.

        Raises:
            ConfigError: the blocks merge patches, so that there is none.
        """
        if isinstance(self.blocks, MergingBlocks):
            raise ConfigError(f"{self.spec.name}: merges its patches, so that it has no feature map")
        return self.as_maps(self.forward_tokens(x_BCHW)[:, self.num_prefix_tokens :], x_BCHW)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.check_input(x_BCHW)
        prefix_BPC = self.forward_tokens(x_BCHW)[:, : self.num_prefix_tokens]
        logits_BK: Tensor = self.head(prefix_BPC)
        return logits_BK


@register(*(name for name in CONFIGS if not name.endswith(MERGING)), changes={})
@register(*(name for name in CONFIGS if name.endswith(MERGING)))
def build(spec: ModelSpec) -> VisionTransformer:
    """The vision transformer that `spec` describes."""
    return VisionTransformer(spec, configured(CONFIGS, spec))
