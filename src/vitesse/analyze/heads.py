"""Do attention heads repeat each other? From models and pictures to the likeness of their heads.

EfficientViT, arXiv 2305.07027, section 2.2 and figure 3, for any model and pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitesse.analyze.head_similarity import BlockHeads, HeadTally
from vitesse.analyze.weighted import RANDOM, Weighted, find_weighted
from vitesse.data.contract import Source
from vitesse.data.sources import open_pictures, take
from vitesse.errors import ConfigError, DataError, from_extra
from vitesse.metrics.run import Showing, shown
from vitesse.runtime.artefact import Artefact
from vitesse.runtime.engines import Engine
from vitesse.runtime.multiplex import whole_groups


@dataclass(frozen=True, kw_only=True)
class HeadsAnalysis:
    """How alike the heads of one model are.

    Attributes:
        model: as the user named it.
        weights: `file`, `published` or `random`.
        images: pictures that were shown.
        refused: pictures that could not be read.
        blocks: attention of several heads, in the order of computation.
        single_headed: modules of attention with one head.
    """

    model: str
    weights: str
    data: str
    image_size: tuple[int, int]
    images: int
    refused: int
    blocks: tuple[BlockHeads, ...]
    single_headed: tuple[str, ...]

    @property
    def redundancy(self) -> float:
        """Mean over all heads of the largest similarity to another head of their block, 0 to 1."""
        return float(np.concatenate([block.max_similarity_A for block in self.blocks]).mean())

    @property
    def correlation(self) -> float:
        """The same of correlations, -1 to 1."""
        return float(np.concatenate([block.max_correlation_A for block in self.blocks]).mean())

    def remarks(self) -> list[str]:
        """What a reader should know beside the figures, a line each."""
        found = []
        if self.weights == RANDOM:
            found.append(
                f"{self.model}: its weights are random, for none are in the cache: what its heads have in "
                "common says little about a trained model; name a checkpoint"
            )
        if self.images == 1:
            found.append(f"{self.model}: seen on 1 picture only, another one may give other figures")
        if self.refused:
            found.append(f"{self.model}: {self.refused} pictures could not be read and are left out")
        if self.single_headed:
            names = ", ".join(self.single_headed)
            found.append(f"{self.model}: left out, for they have a single head: {names}")
        return found

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "model": self.model,
            "weights": self.weights,
            "data": self.data,
            "image_size": list(self.image_size),
            "images": self.images,
            "refused": self.refused,
            "redundancy": round(self.redundancy, 4),
            "correlation": round(self.correlation, 4),
            "blocks": [block.record() for block in self.blocks],
            "single_headed": list(self.single_headed),
        }


def analyze_heads(
    models: str | Sequence[str],
    data: str | Path | Source,
    *,
    arch: str | None = None,
    split: str | None = "test",
    limit: int | None = 64,
    batch_size: int = 16,
) -> tuple[HeadsAnalysis, ...]:
    """Compare the attention heads of every block on real pictures, of one model or several.

    Args:
        models: checkpoints, artefacts or names, see `find_weighted`.
        data: pictures, see `open_pictures`; each model prepares them in its own way.
        arch: the architecture of those checkpoints that do not say theirs.
        split: of `data`.
        limit: at most so many pictures, drawn by seed 0.
        batch_size: pictures a pass.

    Raises:
        UnknownModelError: no model has this name; the message lists the nearest.
        ConfigError: a model without attention, or with nothing but single heads; an impossible number.
        DataError: the data cannot be read, or holds no readable picture.
        ArtefactError, WeightsError, MissingExtraError: see their messages.
    """
    for option, number in (("--limit", limit), ("--batch-size", batch_size)):
        if number is not None and number < 1:
            raise ConfigError(f"{option}: expected at least 1, got {number}")
    source = take(open_pictures(data, split), limit)
    found = find_weighted([models] if isinstance(models, str) else models, arch)
    return tuple(_analyze(weighted, source, str(data), batch_size) for weighted in found)


def _analyze(weighted: Weighted, source: Source, data: str, batch_size: int) -> HeadsAnalysis:
    manifest, tally = weighted.manifest, HeadTally()
    showing = Showing(
        preprocess=manifest.preprocess,
        batch_size=weighted.batch or whole_groups(batch_size, manifest.mux_width),
        purpose=f"heads of {weighted.name}",
    )
    images = 0
    for _, pictures_B, _ in shown(_watched(weighted, tally), source, showing):
        images += len(pictures_B)
        _check_heads(weighted, tally)  # after the first batch, not after the last
    if not images:
        raise DataError(f"{data}: none of {len(source)} pictures could be read")
    return HeadsAnalysis(
        model=weighted.name,
        weights=weighted.weights,
        data=data,
        image_size=manifest.preprocess.image_size,
        images=images,
        refused=len(source) - images,
        blocks=tally.blocks(),
        single_headed=tally.single_headed,
    )


def _watched(weighted: Weighted, tally: HeadTally) -> Engine:
    with from_extra("bench"):
        if isinstance(weighted.module, Artefact):
            from vitesse.analyze.onnx_attention import WatchedArtefact

            return WatchedArtefact(weighted.module, tally.add)
        from vitesse.analyze.attention import WatchedModel

        return WatchedModel(weighted.module, tally.add)


def _check_heads(weighted: Weighted, tally: HeadTally) -> None:
    """
    Raises:
        ConfigError: there are no two heads to compare.
    """
    if tally.blocks():
        return
    if single := tally.single_headed:
        raise ConfigError(
            f"{weighted.name}: expected attention of several heads, all its {len(single)} have one alone; "
            "there is nothing to compare"
        )
    raise ConfigError(
        f"{weighted.name}: expected a model with attention heads, found no softmax attention in it"
        + ("; of linear attention name the checkpoint" if isinstance(weighted.module, Artefact) else "")
    )
