"""How much the attention heads of a block repeat each other.

EfficientViT, arXiv 2305.07027, section 2.2 and figure 3: a head whose attention map is like another head's
computes what is known already.

Shape suffixes: B pictures, or windows of them, A heads, Q queries, K keys, M map entries (Q*K).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import ConfigError, WeightsError

Array = NDArray[np.float64]
ENTRIES_AT_ONCE = 2**22
"""Map entries that are compared at once, so that float64 copies stay small."""
CONSTANT = 1e-6
"""A map whose entries deviate from their mean by less than this share of it has no pattern to compare."""


def head_similarity(maps_BAQK: NDArray[Any]) -> Array:
    """The cosine of every two heads' attention maps, each taken as one vector: (B, A, A), 0 to 1."""
    maps_BAM = maps_BAQK.reshape(*maps_BAQK.shape[:2], -1).astype(np.float64)
    return _cosines(maps_BAM, np.linalg.norm(maps_BAM, axis=2, keepdims=True))


def head_correlation(maps_BAQK: NDArray[Any]) -> Array:
    """As `head_similarity`, of what a map has beyond attention spread evenly: (B, A, A), -1 to 1.

    It is Pearson's correlation of the maps. Two heads that look everywhere alike have a similarity of 1 and,
    since nothing is left to compare, a correlation of 0.
    """
    maps_BAM = maps_BAQK.reshape(*maps_BAQK.shape[:2], -1).astype(np.float64)
    centred_BAM = maps_BAM - maps_BAM.mean(2, keepdims=True)
    norms_BA1 = np.linalg.norm(centred_BAM, axis=2, keepdims=True)
    constant_BA1 = norms_BA1 <= CONSTANT * np.linalg.norm(maps_BAM, axis=2, keepdims=True)
    return _cosines(centred_BAM, np.where(constant_BA1, np.inf, norms_BA1))


def _cosines(maps_BAM: Array, norms_BA1: Array) -> Array:
    unit_BAM = maps_BAM / np.where(norms_BA1 == 0, np.inf, norms_BA1)
    cosines_BAA: Array = (unit_BAM @ unit_BAM.swapaxes(1, 2)).clip(-1, 1)
    return cosines_BAA


def most_alike(likeness_BAA: Array) -> Array:
    """Of each head, the largest likeness to another head of its block: (B, A), for two heads or more."""
    others_BAA = likeness_BAA.copy()
    heads = range(likeness_BAA.shape[1])
    others_BAA[:, heads, heads] = -np.inf
    found_BA: Array = others_BAA.max(2)
    return found_BA


def as_heads(
    name: str, calls: Sequence[NDArray[Any]], num_heads: int | None = None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """What a module computed in one pass as attention of named blocks: maps (B, A, Q, K).

    Several maps (B, Q, K) of one shape are the heads of one block, in their order. Maps of more dimensions
    have their heads before queries and keys; several of them are blocks of their own.

    Args:
        name: of the module.
        calls: attention weights in the order of computation, rows sum to 1.
        num_heads: where the module says it.

    Raises:
        ConfigError: the heads are not where they are expected.
    """
    if len(calls) > 1 and calls[0].ndim == 3 and len({call.shape for call in calls}) == 1:
        yield name, np.stack(calls, axis=1)
        return
    for index, call in enumerate(calls):
        if call.ndim == 3:
            known = num_heads if num_heads and len(call) % num_heads == 0 else 1
            maps_BAQK = call.reshape(-1, known, *call.shape[1:])
        else:
            maps_BAQK = call.reshape(-1, *call.shape[-3:])
        if num_heads not in (None, maps_BAQK.shape[1]):
            raise ConfigError(
                f"{name}: expected attention of shape (…, {num_heads}, queries, keys), got {call.shape}; "
                "attention of another layout cannot be compared"
            )
        yield (name if len(calls) == 1 else f"{name}[{index}]"), maps_BAQK


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockHeads:
    """How alike the heads of one attention are, means over maps.

    Attributes:
        module: dotted name of the module.
        maps: pictures, or windows of them.
        queries, keys: sides of a map.
        similarity_AA, correlation_AA: of every two heads, see `head_similarity` and `head_correlation`.
        max_similarity_A, max_correlation_A: of each head to the other head that is nearest in that picture.
    """

    module: str
    maps: int
    queries: int
    keys: int
    similarity_AA: Array
    correlation_AA: Array
    max_similarity_A: Array
    max_correlation_A: Array

    @property
    def heads(self) -> int:
        """How many there are, two or more."""
        return len(self.max_similarity_A)

    @property
    def redundancy(self) -> float:
        """Mean over heads of the largest similarity to another head, 0 to 1."""
        return float(self.max_similarity_A.mean())

    @property
    def correlation(self) -> float:
        """The same of correlations, -1 to 1."""
        return float(self.max_correlation_A.mean())

    @property
    def mean_similarity(self) -> float:
        """Mean over pairs of different heads: unlike a maximum it does not grow with their number."""
        return _mean_of_pairs(self.similarity_AA)

    @property
    def mean_correlation(self) -> float:
        """The same of correlations: about 0 where heads have nothing in common."""
        return _mean_of_pairs(self.correlation_AA)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "module": self.module,
            "heads": self.heads,
            "maps": self.maps,
            "queries": self.queries,
            "keys": self.keys,
            "redundancy": round(self.redundancy, 4),
            "correlation": round(self.correlation, 4),
            "mean_similarity": round(self.mean_similarity, 4),
            "mean_correlation": round(self.mean_correlation, 4),
            "max_similarity": self.max_similarity_A.round(4).tolist(),
            "max_correlation": self.max_correlation_A.round(4).tolist(),
            "similarity": self.similarity_AA.round(4).tolist(),
            "correlations": self.correlation_AA.round(4).tolist(),
        }


def _mean_of_pairs(likeness_AA: Array) -> float:
    return float(likeness_AA[~np.eye(len(likeness_AA), dtype=bool)].mean())


class HeadTally:
    """Adds up the attention of pictures, block by block; the maps themselves are not kept."""

    def __init__(self) -> None:
        self._sums: dict[str, list[Array]] = {}
        self._shapes: dict[str, tuple[int, int, int]] = {}
        self._maps: dict[str, int] = {}

    def add(self, module: str, maps_BAQK: NDArray[Any]) -> None:
        """Some pictures' attention in one block.

        Raises:
            WeightsError: it is not finite.
        """
        if not np.isfinite(maps_BAQK).all():
            raise WeightsError(f"{module}: its attention is not finite; are these sound weights?")
        batch, heads, queries, keys = maps_BAQK.shape
        self._shapes.setdefault(module, (heads, queries, keys))
        self._maps[module] = self._maps.get(module, 0) + batch
        if heads == 1:
            return
        sums = self._sums.setdefault(module, [np.zeros(shape) for shape in ((heads, heads), (heads,)) * 2])
        step = max(1, ENTRIES_AT_ONCE // (heads * queries * keys))
        for first in range(0, batch, step):
            some_BAQK = maps_BAQK[first : first + step]
            likenesses = head_similarity(some_BAQK), head_correlation(some_BAQK)
            parts = [part for likeness in likenesses for part in (likeness, most_alike(likeness))]
            for total, part in zip(sums, parts, strict=True):
                total += part.sum(0)

    @property
    def single_headed(self) -> tuple[str, ...]:
        """Modules with one head, which have nothing to compare."""
        return tuple(module for module, (heads, *_) in self._shapes.items() if heads == 1)

    def blocks(self) -> tuple[BlockHeads, ...]:
        """Those of several heads, in the order of computation."""
        found = []
        for module, sums in self._sums.items():
            similarity_AA, max_A, correlation_AA, max_correlation_A = (
                total / self._maps[module] for total in sums
            )
            found.append(
                BlockHeads(
                    module=module,
                    maps=self._maps[module],
                    queries=self._shapes[module][1],
                    keys=self._shapes[module][2],
                    similarity_AA=similarity_AA,
                    correlation_AA=correlation_AA,
                    max_similarity_A=max_A,
                    max_correlation_A=max_correlation_A,
                )
            )
        return tuple(found)
