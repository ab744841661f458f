"""The `vitesse` command under observation: run as a script in its place.

`SPY_FOLDER` gets a file a process with a line `EPOCH PICTURE` for every training picture that was read, and a
file a rank with the bytes of weights and moments that it held at the end.
`SPY_FAULT` is `SIGNAL RANK WHEN`: once in the folder's life the process of that rank sends itself the signal,
WHEN it begins its `N`-th picture, a run (`setup`), or an evaluation (`validate`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitesse.cli import main
from vitesse.data.loader import AugmentedPictures
from vitesse.data.sampler import Key
from vitesse.train import TrainResult, loop
from vitesse.train.sharding import own_part

FOLDER, RANK = Path(os.environ["SPY_FOLDER"]), os.environ.get("RANK", "0")
FAULT, AT_RANK, WHEN = os.environ.get("SPY_FAULT", "none none none").split()
SEEN = FOLDER / f"seen-{os.getpid()}.txt"
read_picture, fit = AugmentedPictures.__getitem__, loop.Trainer.fit
pictures_read = 0


def strike(when: str) -> None:
    mark = FOLDER / f"struck-{RANK}"
    if when == WHEN and AT_RANK == RANK and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), getattr(signal, FAULT))


def watched_read(self: AugmentedPictures, key: Key) -> Any:
    global pictures_read
    pictures_read += 1
    strike(str(pictures_read))
    with SEEN.open("a") as file:
        file.write(f"{key.epoch} {key.picture}\n")
    return read_picture(self, key)


def weighed_fit(self: loop.Trainer, *options: Any) -> TrainResult:
    try:
        return fit(self, *options)
    finally:
        moments = (value for state in self.optimizer.state.values() for value in state.values())
        held = sum(own_part(t).untyped_storage().nbytes() for t in (*self.model.parameters(), *moments))
        (FOLDER / f"held-{RANK}.txt").write_text(str(held))


def struck(when: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **options: Any) -> Any:
        strike(when)
        return function(*arguments, **options)

    return wrapped


if __name__ == "__main__":
    AugmentedPictures.__getitem__ = watched_read
    loop.Trainer.fit = weighed_fit
    loop.make_folder = struck("setup", loop.make_folder)
    loop.validate = struck("validate", loop.validate)
    main()
