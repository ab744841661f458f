"""What a search was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vitesse.errors import ConfigError, did_you_mean
from vitesse.runtime.engines import available_engines, usable_cpus
from vitesse.search.latency import ENGINES, FEWEST
from vitesse.search.space import SPACES

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
DURATION = re.compile(r"(\d+\.?\d*|\.\d+)\s*(us|ms|s)")
DEVICES = ("cpu",)
FREE_TO_CHANGE = frozenset({"trials", "confirm"})
"""What may change when a search goes on."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What must agree between the parts of an interrupted search, `FREE_TO_CHANGE` apart.

    Attributes:
        max_latency: of a batch, as `5ms` or `0.005s`; or the name of a hand-made model, to be no slower.
        trials: candidates that are trained, the hand-made among them.
        family: of `SPACES`.
        device: where models are timed; `cpu`.
        engine: what runs them.
        threads, batch_size: of the engine.
        image_sizes: sides in pixels to choose from.
        max_macs: millions of multiply-accumulates a picture; None for any.
        floor: share of the latency below which no candidate is trained: what is left unused seldom wins.
        samples: models that are timed at first, to fit the predictor on.
        confirm: further seeds with which the best one and the hand-made one are trained again.
        rounds: samples of each model's latency.
    """

    max_latency: str
    trials: int = 50
    family: str = "efficientvit_m"
    device: str = "cpu"
    engine: str = "onnxruntime"
    threads: int = 1
    batch_size: int = 1
    image_sizes: tuple[int, ...] = (224,)
    max_macs: float | None = None
    floor: float = 0.5
    samples: int = 24
    confirm: int = 2
    seed: int = 0
    rounds: int = 60

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ConfigError(
                f"--device: models are timed on the {' or '.join(DEVICES)}, got {self.device!r}"
            )
        if self.family not in SPACES:
            raise ConfigError(
                f"--family: no design space for {self.family!r}; {did_you_mean(self.family, SPACES)}"
            )
        known = ("torch", *(engine for engine in available_engines() if engine in ENGINES))
        if self.engine not in known:
            raise ConfigError(f"--engine: expected of {', '.join(sorted(known))}, got {self.engine!r}")
        at_least = {"trials": 1, "threads": 1, "batch_size": 1, "samples": FEWEST + 2, "rounds": 1}
        for key, least in {**at_least, "confirm": 0, "seed": 0}.items():
            if getattr(self, key) < least:
                option = key.replace("_", "-")
                raise ConfigError(f"--{option}: expected at least {least}, got {getattr(self, key)}")
        if self.threads > usable_cpus():
            raise ConfigError(f"--threads: this process may use {usable_cpus()} CPUs, got {self.threads}")
        if not 0 <= self.floor < 1:
            raise ConfigError(f"--floor: expected a share of the latency, 0 to 1, got {self.floor}")
        if self.max_macs is not None and not self.max_macs > 0:
            raise ConfigError(f"--max-macs: expected more than 0 millions, got {self.max_macs}")
        self.limit()

    def limit(self) -> float | str:
        """The latency in seconds, or the hand-made model that it is that of.

        Raises:
            ConfigError: neither a duration above 0 nor such a model.
        """
        names = SPACES[self.family].configs
        if self.max_latency in names:
            return self.max_latency
        found = DURATION.fullmatch(self.max_latency.strip())
        if found is None or not float(found[1]):
            raise ConfigError(
                f"--max-latency: expected a time such as 5ms or 0.005s, or one of {', '.join(names)}, got "
                f"{self.max_latency!r}"
            )
        return float(found[1]) * UNITS[found[2]]

    def identity(self) -> dict[str, Any]:
        """What must agree to go on, as plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in FREE_TO_CHANGE}
        return {**values, "image_sizes": list(self.image_sizes)}


def difference(known: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first value of `asked` that is another in `known`, and both; empty where there is none."""
    for key, value in asked.items():
        before = known.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            if found := difference(before, value):
                return f"{key} {found}"
        elif before != value:
            return f"{key} {before}, now {value}"
    return ""
