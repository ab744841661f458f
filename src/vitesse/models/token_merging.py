"""Token merging: in every block of a plain ViT the most similar tokens become one.

ToMe, Bolya et al., ICLR 2023, arXiv 2210.09461. It needs no training and adds no parameters; here it is what
the multiplexed models are compared with at equal cost.

Shape suffixes: B images, C channels, N tokens, A attention heads, D head width, S sources, T targets,
R merged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.models.transformer import Block, NormedAttention


class MergingBlocks(nn.Sequential):
    """Transformer blocks that merge tokens between attention and feed-forward: (B, N, C) to (B, N', C).

    Attention counts a token as often as patches went into it (section 3, proportional attention).

    Args:
        blocks: of a plain ViT.
        merged: how many tokens each block merges away, at most half of those that may be merged.
        protected: so many tokens at the beginning, 1 or 2, are never merged.
    """

    def __init__(self, blocks: Iterable[nn.Module], merged: Sequence[int], protected: int) -> None:
        super().__init__(*blocks)
        self.merged, self.protected = tuple(merged), protected

    def forward(self, x_BNC: Tensor) -> Tensor:
        sizes_BN1 = torch.ones_like(x_BNC[..., :1])
        for block, merged in zip(self, self.merged, strict=True):
            x_BNC, sizes_BN1 = self._step(cast(Block, block), x_BNC, sizes_BN1, merged)
        return x_BNC

    def _step(self, block: Block, x_BNC: Tensor, sizes_BN1: Tensor, merged: int) -> tuple[Tensor, Tensor]:
        normed = cast(NormedAttention, block.attention.branch)
        attention = normed.attention
        q_BAND, k_BAND, v_BAND = attention.heads(normed.norm(x_BNC))
        counts_B11N = sizes_BN1.detach().log().mT.unsqueeze(1)
        out_BAND = F.scaled_dot_product_attention(q_BAND, k_BAND, v_BAND, counts_B11N)
        x_BNC = block.attention.add(x_BNC, attention.merged(out_BAND))
        x_BNC, sizes_BN1 = merge(x_BNC, sizes_BN1, k_BAND.mean(1), merged, self.protected)
        return block.ffn(x_BNC), sizes_BN1


def merge(
    x_BNC: Tensor, sizes_BN1: Tensor, keys_BND: Tensor, count: int, protected: int
) -> tuple[Tensor, Tensor]:
    """Tokens and their sizes, `count` fewer: bipartite soft matching (section 3).

    Every second token is a source, the others are targets. The sources nearest to a target, by the cosine of
    their keys, are averaged into it, weighted by size. The first `protected` tokens stay first.
    """
    count = min(count, (x_BNC.shape[1] - protected) // 2)
    if count <= 0:
        return x_BNC, sizes_BN1
    likeness_BST = _likeness(keys_BND, protected)
    best_BS, target_BS = likeness_BST.max(-1)
    order_BS = best_BS.argsort(dim=-1, descending=True)
    merged_BR, kept_BS = order_BS[:, :count], order_BS[:, count:].sort(-1).values
    into_BRT = F.one_hot(target_BS.gather(1, merged_BR), likeness_BST.shape[2]).to(x_BNC.dtype)
    weighted_BNC = torch.cat((x_BNC * sizes_BN1, sizes_BN1), dim=2)  # sizes ride along as one more channel
    sources_BSC, targets_BTC = weighted_BNC[:, ::2], weighted_BNC[:, 1::2]
    targets_BTC = targets_BTC + into_BRT.mT @ _rows(sources_BSC, merged_BR)
    parts = (_rows(sources_BSC, kept_BS), targets_BTC)
    firsts = [part[:, :1] for part in parts[:protected]]
    rests = [part[:, 1:] for part in parts[:protected]] + list(parts[protected:])
    weighted_BNC = torch.cat((*firsts, *rests), dim=1)
    sizes_BN1 = weighted_BNC[..., -1:]
    return weighted_BNC[..., :-1] / sizes_BN1, sizes_BN1


def _likeness(keys_BND: Tensor, protected: int) -> Tensor:
    """Cosine of every source's key with every target's; of protected tokens minus infinity."""
    unit_BND = F.normalize(keys_BND, dim=-1)
    likeness_BST = unit_BND[:, ::2] @ unit_BND[:, 1::2].mT
    index_N = torch.arange(keys_BND.shape[1], device=keys_BND.device)
    barred_ST = (index_N[::2, None] < protected) | (index_N[None, 1::2] < protected)
    return likeness_BST.masked_fill(barred_ST, -math.inf)


def _rows(x_BNC: Tensor, index_BR: Tensor) -> Tensor:
    return x_BNC.gather(1, index_BR[..., None].expand(-1, -1, x_BNC.shape[2]))
