"""Multiplexed ViTs: several images share one sequence of a plain ViT, which is taken apart again at its end.

* Image Multiplexer: the images' tokens are transformed by slot and averaged (superposition), as DataMUX does
  with sentences (Murahari et al., NeurIPS 2022, arXiv 2202.09318).
* ConcatPlexer: every image goes through the first blocks alone, a convolution reduces its tokens, and the
  images are concatenated along the token axis (Han et al., WANT workshop at NeurIPS 2023, arXiv 2308.11199).

From the paper: per-image transformer patchifier, then a convolution that reduces tokens, shared by images,
concatenation in image order, one class token, a ViT backbone, one DeMUX for each slot, 23.5 % fewer MACs than
ViT-B/16. Not in any source we could read, and so our design: how many images (N) and blocks, the kernel, both
embeddings after it, what a DeMUX is, and the initialisation. The presets have the paper's saving.

Any number of images is taken. The last group of a batch may be short: it is filled up, and what fills it is
hidden from attention and left out of means.

Shape suffixes: B images, C channels, H rows, W columns of patches, N tokens of an image, M images of a group
(slots), G groups, S tokens of a group, K classes.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.layers import resample_position_table
from vitesse.models.registry import register
from vitesse.models.transformer import NORM_EPS, SIZES, TokenBackbone, ViTConfig
from vitesse.spec import ModelSpec

HIDDEN = -1e4
"""Added to attention logits of tokens that must not be seen; within reach of half precision."""
KEYS_SEED = 0
SLOT_DEVIATION = 0.5
"""Of the initial slot embedding. Beside the tokens of a trained ViT the usual 0.02 is lost: told apart by it,
pooled images had 41 % top-1 where with 0.5 they had 48 % (CIFAR-100, N = 2, after 6000 images)."""


@dataclass(frozen=True, kw_only=True)
class ConcatPlexerConfig:
    """A plain ViT and how images share it.

    Attributes:
        vit: width, heads, blocks in all.
        mux_width: images that share a sequence; 1 is the control along dimension 0: the same network on
            each image by itself.
        stem_depth: blocks that every image goes through alone.
        kernel, stride: of the convolution that reduces an image's tokens.
        isolated: every image has a class token of its own and attends to itself alone.
        pooled: a DeMUX reads the mean of its image's own tokens, not the class token that all share.
    """

    vit: ViTConfig
    mux_width: int
    stem_depth: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    isolated: bool = False
    pooled: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageMultiplexerConfig:
    """A plain ViT, how many images are superposed in it, and by which fixed transform of each slot."""

    vit: ViTConfig
    mux_width: int
    transform: Literal["hadamard", "orthogonal"] = "hadamard"


class Multiplexer(TokenBackbone):
    """A plain ViT that several images share.

    The images of a batch form groups of `mux_width` in their order. Where they see each other, the logits of
    an image depend on the others of its group; see `docs/multiplex.md`.

    The feature map are the patches before images meet.
    """

    starts_from = ("vit_*",)
    fresh_prefixes = ("mux.", "demux.")
    stem_depth: int = 0

    def __init__(self, spec: ModelSpec, config: ConcatPlexerConfig | ImageMultiplexerConfig) -> None:
        super().__init__(spec, config.vit)
        self.mux_width = config.mux_width
        self.demux = nn.ModuleList(DeMUX(config.vit.width) for _ in range(config.mux_width))

    def forward_patches(self, x_BCHW: Tensor) -> Tensor:
        """Every image by itself: patches, positions, the first blocks (B, N, C)."""
        patches_BNC: Tensor = self.blocks[: self.stem_depth](self.embed(x_BCHW))
        return patches_BNC

    def forward_features(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        return self.as_maps(self.forward_patches(x_BCHW), x_BCHW)

    @abstractmethod
    def shared_pass(self, patches_BNC: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the shared blocks say of every slot's image: (G, M, C)."""

    def representations(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Of every image, what came out of its slot, and the mean of its own patches before: (B, C) each."""
        patches_BNC = self.forward_patches(x_BCHW)
        shared_GMC = self.shared_pass(patches_BNC, self.grid_of((x_BCHW.shape[2], x_BCHW.shape[3])))
        slots_GMC = torch.stack([demux(shared_GMC[:, i]) for i, demux in enumerate(self.demux)], dim=1)
        return slots_GMC.flatten(0, 1)[: x_BCHW.shape[0]], patches_BNC.mean(1)

    def forward(self, x_BCHW: Tensor, retrieve: bool = False) -> Any:
        """Logits (B, num_classes), of a distilled model the pair; with `retrieve`, `representations` too."""
        self.check_input(x_BCHW)
        found_BC, own_BC = self.representations(x_BCHW)
        heads = 2 if self.spec.distilled else 1
        output = self.head(found_BC[:, None].expand(-1, heads, -1))
        return (output, found_BC, own_BC) if retrieve else output

    def run_shared_blocks(self, x_GSC: Tensor, bias: Tensor | None) -> Tensor:
        """The blocks that images share, and the last normalisation."""
        for block in self.blocks[self.stem_depth :]:
            x_GSC = block(x_GSC, bias)
        normed_GSC: Tensor = self.norm(x_GSC)
        return normed_GSC

    def class_token(self) -> Tensor:
        """With its position: (1, 1, C)."""
        return self.cls_token + self.pos_embed[:, :1]


class DeMUX(nn.Module):
    """One slot's way out of the shared representation: (G, C) to the same shape, at first nearly as it is."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, NORM_EPS)

    def forward(self, x_GC: Tensor) -> Tensor:
        normed_GC: Tensor = self.norm(x_GC + F.gelu(self.linear(x_GC)))
        return normed_GC


class ConcatMultiplexer(nn.Module):
    """The C-Multiplexer: fewer tokens of every image, side by side; with position and slot embeddings.

    The convolution starts as the mean over its kernel.
    """

    resampled_on_load: ClassVar = {"pos_embed": (1,)}

    def __init__(self, config: ConcatPlexerConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        dim, width = config.vit.width, config.mux_width
        self.config = config
        self.grid = self.reduced(grid)
        padding = (config.kernel[0] // 2, config.kernel[1] // 2)
        self.conv = nn.Conv2d(dim, dim, config.kernel, config.stride, padding)
        self.pos_embed = nn.Parameter(torch.empty(width, self.grid[0] * self.grid[1], dim))
        self.slot_embed = nn.Parameter(torch.empty(width, 1, dim))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        nn.init.dirac_(self.conv.weight)
        kernel_mean = self.conv.weight.sum((2, 3), keepdim=True) / (config.kernel[0] * config.kernel[1])
        self.conv.weight.data.copy_(kernel_mean.expand_as(self.conv.weight))

    def reduced(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that are left of a grid."""
        rows, columns = (-(-side // step) for side, step in zip(grid, self.config.stride, strict=True))
        return rows, columns

    def resampled(self, table_MNC: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        """The position table of another size, that of square images where `image_size` (pixels) fits none."""
        grids = []
        if image_size is not None:
            patch = self.config.vit.patch_size
            grids = [self.reduced((image_size[0] // patch, image_size[1] // patch))]
        grids += [self.reduced((side, side)) for side in range(1, table_MNC.shape[1] + 1)]
        fitting = [(rows, columns) for rows, columns in grids if rows * columns == table_MNC.shape[1]]
        if not fitting:
            return table_MNC
        return resample_position_table(table_MNC, 0, fitting[0], self.grid)

    def forward(self, patches_BNC: Tensor, grid: tuple[int, int]) -> Tensor:
        """Every image's patches of a grid, reduced: (B, N', C), without embeddings."""
        reduced_BCHW = self.conv(torch.unflatten(patches_BNC.mT, 2, grid))
        tokens_BNC: Tensor = reduced_BCHW.flatten(2).mT
        return tokens_BNC

    def embedded(self, tokens_GMNC: Tensor, grid: tuple[int, int]) -> Tensor:
        """With positions, and what says which image a token is of."""
        table_MNC = resample_position_table(self.pos_embed, 0, self.grid, self.reduced(grid))
        return tokens_GMNC + table_MNC + self.slot_embed


class ConcatPlexer(Multiplexer):
    """Reduced tokens of several images side by side, one class token, one DeMUX a slot."""

    def __init__(self, spec: ModelSpec, config: ConcatPlexerConfig) -> None:
        super().__init__(spec, config)
        self.config, self.stem_depth = config, config.stem_depth
        self.mux = ConcatMultiplexer(config, self.grid)
        self.reset_parameters()
        nn.init.normal_(self.mux.slot_embed, std=SLOT_DEVIATION)

    def shared_pass(self, patches_BNC: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens_GMNC, present_GM = grouped(self.mux(patches_BNC, grid), self.mux_width)
        tokens_GMNC = self.mux.embedded(tokens_GMNC, grid)
        groups, slots, length = tokens_GMNC.shape[:3]
        if self.config.isolated:
            first_GM1C = (self.class_token() + self.mux.slot_embed).expand(groups, -1, -1, -1)
            x_GSC = torch.cat([first_GM1C, tokens_GMNC], dim=2).flatten(1, 2)
            out_GSC = self.run_shared_blocks(x_GSC, among_themselves(slots, length + 1, x_GSC))
            return torch.unflatten(out_GSC, 1, (slots, length + 1))[:, :, 0]
        first_G1C = self.class_token().expand(groups, -1, -1)
        x_GSC = torch.cat([first_G1C, tokens_GMNC.flatten(1, 2)], dim=1)
        hidden = None if present_GM is None else hiding(present_GM.repeat_interleave(length, 1), x_GSC)
        out_GSC = self.run_shared_blocks(x_GSC, hidden)
        if self.config.pooled:
            return torch.unflatten(out_GSC[:, 1:], 1, (slots, length)).mean(2)
        return out_GSC[:, :1].expand(-1, slots, -1)


class Superposition(nn.Module):
    """A fixed random transform of each slot, then the mean over the images of a group.

    DataMUX, section 3.1. `hadamard` multiplies every token by a slot's normally distributed vector, whose
    root mean square is 1; `orthogonal` by a slot's random orthogonal matrix, and sums over the square root of
    the number of images.
    """

    keys: Tensor

    def __init__(self, dim: int, config: ImageMultiplexerConfig) -> None:
        super().__init__()
        self.transform = config.transform
        generator = torch.Generator("cpu").manual_seed(KEYS_SEED)
        shape = (config.mux_width, dim) if self.transform == "hadamard" else (config.mux_width, dim, dim)
        keys = torch.randn(shape, generator=generator, device="cpu")
        if self.transform == "hadamard":
            keys = keys / keys.square().mean(1, keepdim=True).sqrt()
        else:
            keys = torch.linalg.qr(keys).Q
        self.register_buffer("keys", keys.to(torch.get_default_device()))

    def forward(self, tokens_GMNC: Tensor, present_GM: Tensor | None) -> Tensor:
        """(G, N, C); images that are not present have no part in it."""
        hadamard, keys = self.transform == "hadamard", self.keys.to(tokens_GMNC.dtype)
        bound_GMNC = tokens_GMNC * keys[:, None] if hadamard else tokens_GMNC @ keys
        if present_GM is None:
            present_GM = torch.ones_like(bound_GMNC[:, :, 0, 0])
        weights_GM11 = present_GM.to(bound_GMNC.dtype)[:, :, None, None]
        count_G11 = weights_GM11.sum(1)
        return (bound_GMNC * weights_GM11).sum(1) / (count_G11 if hadamard else count_G11.sqrt())


class ImageMultiplexer(Multiplexer):
    """Superposed tokens of several images, one class token, one DeMUX a slot: the paper's naive baseline.

    Its discrete VAE, whose weights are not ours to give, is replaced by the ViT's patch embedding.
    """

    def __init__(self, spec: ModelSpec, config: ImageMultiplexerConfig) -> None:
        super().__init__(spec, config)
        self.mux = Superposition(config.vit.width, config)
        self.reset_parameters()

    def shared_pass(self, patches_BNC: Tensor, grid: tuple[int, int]) -> Tensor:
        mixed_GNC = self.mux(*grouped(patches_BNC, self.mux_width))
        x_GSC = torch.cat([self.class_token().expand(mixed_GNC.shape[0], -1, -1), mixed_GNC], dim=1)
        return self.run_shared_blocks(x_GSC, None)[:, :1].expand(-1, self.mux_width, -1)


def grouped(tokens_BNC: Tensor, width: int) -> tuple[Tensor, Tensor | None]:
    """Images in groups of `width` (G, M, N, C), and which of them are real (G, M): None where all are.

    A short last group is filled up with its last image. While a graph is recorded for batches of any size,
    it is taken to be short.
    """
    if width == 1:
        return tokens_BNC[:, None], None
    count = tokens_BNC.shape[0]
    if not torch.compiler.is_exporting() and count % width == 0:
        return torch.unflatten(tokens_BNC, 0, (-1, width)), None
    index_B = torch.arange((count + width - 1) // width * width, device=tokens_BNC.device)
    filled_BNC = tokens_BNC[index_B.clamp(max=count - 1)]
    return torch.unflatten(filled_BNC, 0, (-1, width)), torch.unflatten(index_B < count, 0, (-1, width))


def hiding(seen_GS: Tensor, like: Tensor) -> Tensor:
    """What to add to attention logits (G, 1, 1, 1+S): the class token is seen, others where `seen_GS`."""
    hidden_GS = torch.where(seen_GS, 0.0, HIDDEN).to(like.dtype)
    return F.pad(hidden_GS, (1, 0))[:, None, None]


def among_themselves(slots: int, length: int, like: Tensor) -> Tensor:
    """What to add to attention logits (1, 1, S, S) so that every slot's tokens see no others."""
    slot_S = torch.arange(slots, device=like.device).repeat_interleave(length)
    return torch.where(slot_S[:, None] == slot_S, 0.0, HIDDEN).to(like.dtype)[None, None]


VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "_pool": {"pooled": True},
    "_block": {"isolated": True},
    "_dim0": {"mux_width": 1},
}
"""As the paper's drawing has it, our extension, and the two controls."""

SHARING: dict[int, dict[str, Any]] = {
    2: {"mux_width": 2, "stem_depth": 6, "kernel": (1, 5), "stride": (1, 2)},
    4: {"mux_width": 4, "stem_depth": 8, "kernel": (3, 3), "stride": (2, 2)},
}


def _configs() -> dict[str, ConcatPlexerConfig | ImageMultiplexerConfig]:
    """Every size and number of images in every variant, and the naive baseline with either transform."""
    plain = {size: ViTConfig(width=width, num_heads=heads) for size, (width, heads) in SIZES.items()}
    plain["tiny_patch4"] = replace(plain["tiny"], patch_size=4)
    configs: dict[str, ConcatPlexerConfig | ImageMultiplexerConfig] = {}
    for (size, vit), (count, sharing) in itertools.product(plain.items(), SHARING.items()):
        for variant, changes in VARIANTS.items():
            config = ConcatPlexerConfig(vit=vit, **sharing | changes)
            configs[f"concatplexer_{size}_n{count}{variant}"] = config
        superposed = ImageMultiplexerConfig(vit=vit, mux_width=count)
        configs[f"imagemux_{size}_n{count}"] = superposed
        configs[f"imagemux_{size}_n{count}_orthogonal"] = replace(superposed, transform="orthogonal")
    return configs


CONFIGS = _configs()


@register(*CONFIGS)
def build(spec: ModelSpec) -> Multiplexer:
    """The multiplexed ViT that `spec.name` names."""
    config = CONFIGS[spec.name]
    if isinstance(config, ConcatPlexerConfig):
        return ConcatPlexer(spec, config)
    return ImageMultiplexer(spec, config)
