"""The trials of a search, in Optuna's journal: what a killed search goes on with.

Accuracy is maximised, the latency ratio minimised. Numbers are Optuna's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitesse.errors import ConfigError, require
from vitesse.search.settings import difference
from vitesse.search.space import Point, Space
from vitesse.spec import ModelSpec, to_mapping

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

State = Literal["open", "trained", "stopped", "too slow", "failed"]
"""`stopped` were behind after an epoch; `too slow` were measured and not trained; `open` go on."""
DIRECTIONS = ["maximize", "minimize"]
NAME = "vitesse"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate.

    Attributes:
        point: where in the space it lies.
        spec: its model.
        predicted, measured: latency over the reference's; None where nobody knows.
        rungs: accuracy after each epoch, by their number.
        starts: how often its training was begun; several mean that it ended the process.
        error: why it failed.
    """

    number: int
    point: Point
    spec: ModelSpec
    state: State = "open"
    hand_made: bool = False
    predicted: float | None = None
    measured: float | None = None
    rungs: Mapping[int, float] = field(default_factory=dict)
    starts: int = 0
    error: str = ""

    @property
    def top1(self) -> float | None:
        """After the last epoch that it was trained for."""
        return self.rungs[max(self.rungs)] if self.rungs else None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**to_mapping(self), "top1": self.top1}


class Journal:
    """The trials in `study.journal` of a folder, and what they are trials of.

    Raises:
        ConfigError: the journal is of another search.
        MissingExtraError: Optuna is not installed.
    """

    def __init__(
        self, folder: Path, space: Space, num_classes: int, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.space, self.num_classes = space, num_classes
        self.study = _study(folder / "study.journal")
        if settings is not None:
            self._agree_on(settings, folder)

    def trials(self) -> list[Trial]:
        """All, in their order."""
        return [self._trial(frozen) for frozen in self.study.get_trials(deepcopy=False)]

    def add(self, point: Point, **facts: Any) -> Trial:
        """A new open trial, in one line of the journal: a kill leaves all of it or nothing."""
        from optuna.trial import TrialState, create_trial

        known = distributions(self.space)
        made = create_trial(
            state=TrialState.RUNNING, params=dict(point), distributions=known, user_attrs=facts
        )
        self.study.add_trial(made)
        return self.trials()[-1]

    def note(self, number: int, **facts: Any) -> Trial:
        """Keep what is known of an open trial."""
        trial_id = self._frozen(number)._trial_id
        for key, value in facts.items():
            self.study._storage.set_trial_user_attr(trial_id, key, value)
        return self.trials()[number]

    def close(self, number: int, state: State, error: str = "") -> Trial:
        """The end of a trial, told to Optuna too."""
        from optuna.trial import TrialState

        trial = self.note(number, state=state, error=error)
        if state == "trained":
            assert trial.top1 is not None
            assert trial.measured is not None
            self.study.tell(number, [trial.top1, trial.measured])
        else:
            self.study.tell(number, state=TrialState.FAIL if state == "failed" else TrialState.PRUNED)
        return trial

    def kept(self, key: str) -> Any:
        """What `keep` kept, or None."""
        return self.study.user_attrs.get(key)

    def keep(self, key: str, value: Any) -> None:
        """Keep a JSON value of the search as a whole."""
        self.study.set_user_attr(key, value)

    def _agree_on(self, settings: Mapping[str, Any], folder: Path) -> None:
        known = self.kept("settings")
        if known is None or not self.study.get_trials(deepcopy=False):  # refused before its first trial
            self.keep("settings", dict(settings))
        elif found := difference(known, settings):
            raise ConfigError(f"{folder} holds a search with {found} is asked for; take another --out")

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _trial(self, frozen: FrozenTrial) -> Trial:
        facts = dict(frozen.user_attrs)
        facts["rungs"] = {int(epochs): top1 for epochs, top1 in facts.get("rungs", {}).items()}
        return Trial(
            number=frozen.number,
            point=frozen.params,
            spec=self.space.spec(frozen.params, self.num_classes),
            **facts,
        )


def _study(path: Path) -> Study:
    """The study in a journal; a last line that a killed process wrote in part is removed."""
    optuna = require("optuna", "search")
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (data := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    return optuna.create_study(  # type: ignore[no-any-return]
        storage=storage, study_name=NAME, directions=DIRECTIONS, load_if_exists=True
    )


def distributions(space: Space) -> dict[str, Any]:
    """The space as Optuna knows it: numbers in even steps, or one of several."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    return {
        name: IntDistribution(choices[0], choices[-1], step=choices.step)
        if isinstance(choices, range)
        else CategoricalDistribution(choices)
        for name, choices in space.choices().items()
    }
