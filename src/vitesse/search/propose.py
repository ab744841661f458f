"""Which architecture to try next: Optuna's TPE, asked until it proposes one that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vitesse.errors import require
from vitesse.search.space import Point, Space
from vitesse.search.trials import DIRECTIONS, Trial, distributions
from vitesse.spec import ModelSpec

STARTUP = 8
"""So many are drawn at random before the sampler begins to learn from them."""
DRAWS = 500
"""How often it is asked at most."""


def propose(
    space: Space,
    trials: Sequence[Trial],
    num_classes: int,
    seed: int,
    allowed: Callable[[ModelSpec], bool],
) -> Point | None:
    """The next point; None where none of `DRAWS` proposals is allowed.

    It depends on the seed and on the trials so far alone, so an interrupted search proposes what it would
    have. What was not allowed is not told to the sampler. Candidates that were stopped count with the
    accuracy that they had: a lower bound.
    """
    optuna = require("optuna", "search")
    mixed = int(np.random.default_rng([seed, len(trials)]).integers(2**31))
    sampler = optuna.samplers.TPESampler(seed=mixed, n_startup_trials=STARTUP)
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    known = distributions(space)
    for trial in trials:
        if trial.top1 is not None and trial.measured is not None and trial.state != "failed":
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(trial.point), distributions=known, values=[trial.top1, trial.measured]
                )
            )
    for _ in range(DRAWS):
        asked = study.ask(known)
        point: Point = asked.params
        if allowed(space.spec(point, num_classes)):
            return point
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
    return None
