"""Which architecture to try next: Optuna's TPE, asked until it proposes one that is allowed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vitesse.errors import require
from vitesse.search.space import Point, Space
from vitesse.search.trials import DIRECTIONS, Trial, distributions
from vitesse.spec import ModelSpec

STARTUP = 8
"""So many are drawn at random before the sampler begins to learn from them."""
DRAWS = 60
"""How often the sampler is asked."""
RANDOM_DRAWS = 600
"""How many points are then drawn at random."""


def propose(
    space: Space,
    trials: Sequence[Trial],
    num_classes: int,
    seed: int,
    allowed: Callable[[ModelSpec], bool],
) -> Point | None:
    """The next point; None where no proposal is allowed.

    It depends on the seed and on the trials so far alone, so an interrupted search proposes what it would
    have. Candidates that were stopped count with the accuracy that they had: a lower bound. What is not
    allowed stays open, so that the sampler takes it for bad and looks elsewhere.
    """
    optuna = require("optuna", "search")
    rng = np.random.default_rng([seed, len(trials)])
    sampler = optuna.samplers.TPESampler(
        seed=int(rng.integers(2**31)), n_startup_trials=STARTUP, constant_liar=True
    )
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    known = distributions(space)
    for trial in trials:
        if trial.top1 is not None and trial.measured is not None and trial.state != "failed":
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(trial.point), distributions=known, values=[trial.top1, trial.measured]
                )
            )
    asked = (study.ask(known).params for _ in range(DRAWS))
    drawn = (space.draw(rng) for _ in range(RANDOM_DRAWS))
    points: Iterator[Point] = itertools.chain(asked, drawn)
    return next((point for point in points if allowed(space.spec(point, num_classes))), None)
