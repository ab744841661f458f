"""Channels of a model: where their values appear, and which weights are theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

KINDS = ("q", "k", "v", "ffn", "width")
"""Queries, keys, values, hidden channels of feed-forwards, and the residual channels of a stage."""
INNER = "inner"
"""Channels between layers of a stem or a subsampling, whose number follows from the widths of the stages."""
SUBSAMPLING = "s"


@dataclass(frozen=True, eq=False, kw_only=True)
class Channels:
    """Channels of one kind in one place; other layers that carry the same ones refer to the same object.

    Attributes:
        kind: of `KINDS`, or `INNER`.
        stage: 1 for the first; 0 before and behind the stages.
        block: its number in the stage from 1 on, `SUBSAMPLING`, or empty for the whole stage.
        size: how many.
        group: those that are cut by the same number share this name.
        tied: the channels whose companions these are, one to one: cut where those are cut.
    """

    kind: str
    stage: int
    block: str
    size: int
    group: str = ""
    tied: Channels | None = None

    @property
    def leader(self) -> Channels:
        """Those whose cut decides over these."""
        return self if self.tied is None else self.tied


Axis = Sequence[Channels]
"""What lies behind each other along one dimension."""


@dataclass(frozen=True, kw_only=True)
class Tap:
    """Where channels get their values: the output of a module, or the input of one.

    Attributes:
        dim: of the channels, 1 or -1.
    """

    module: str
    axis: tuple[Channels, ...]
    dim: int = 1
    of_input: bool = False


@dataclass(frozen=True, kw_only=True)
class Use:
    """A dimension of a weight or buffer, by its name in the state dict, that channels lie along."""

    tensor: str
    dim: int
    axis: tuple[Channels, ...]


@dataclass
class Structure:
    """All channels of a model.

    Attributes:
        taps: each channel's values add up over all taps that have it.
        uses: every dimension that changes with the number of channels that can be cut.
    """

    taps: list[Tap] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)

    def channels(self) -> list[Channels]:
        """All of them once, in the order of computation."""
        axes = [*(tap.axis for tap in self.taps), *(use.axis for use in self.uses)]
        return list(dict.fromkeys(channels for axis in axes for channels in axis))

    def cut_with(self, kind: str) -> list[Channels]:
        """Those of a kind that weights are known to lie along."""
        used = {channels for use in self.uses for channels in use.axis}
        return [channels for channels in self.channels() if channels.kind == kind and channels in used]
