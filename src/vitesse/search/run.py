"""A search from a bound on latency to the most accurate architecture found within it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitesse.errors import ConfigError, StoppedError
from vitesse.search.accuracy import short_training
from vitesse.search.latency import Meter
from vitesse.search.loop import Search
from vitesse.search.result import SearchResult
from vitesse.search.samples import Samples
from vitesse.search.settings import Settings
from vitesse.search.space import Space, space_for
from vitesse.search.trials import Journal
from vitesse.spec import to_mapping
from vitesse.train.recipe import recipe_values
from vitesse.train.stopping import StopRequestedError, StopSignals

FINAL_TIMES = 5
"""So many times the rounds decide at the end which candidates are no slower than the hand-made model."""


def search(
    data: str | Path,
    *,
    max_latency: str,
    out: str | Path = "runs/search",
    recipe: str | Path = "finetune",
    overrides: Iterable[str] | Mapping[str, Any] = (),
    image_sizes: tuple[int, ...] | None = None,
    **options: Any,
) -> SearchResult:
    """Look for the most accurate architecture of a family within a latency on this machine.

    Goes on by itself where `out` holds an interrupted search: Optuna's journal and the measured latencies.

    Args:
        data: pictures with one class each, as `vitesse.train` takes them.
        max_latency: of a batch, as `5ms`; or a hand-made model's name, to be no slower than that.
        out: folder of the search.
        recipe: of the short training of each candidate, from scratch.
        overrides: `key=value` texts, or a mapping, over the recipe.
        image_sizes: sides in pixels to choose from; default that of the recipe.
        options: see `vitesse.search.settings.Settings`.

    Raises:
        ConfigError: an impossible value, a latency that no candidate reaches, or another search in `out`.
        DataError: the data cannot be read.
        StoppedError: SIGTERM or SIGINT came; the same call goes on.
        TrainingError: no candidate could be trained.
    """
    asked = Settings(max_latency=max_latency, **options)
    trainer, class_names = short_training(data, recipe, overrides, next(iter(_space(asked).configs)))
    sizes = image_sizes or (trainer.recipe.image_size,)
    settings = Settings(max_latency=max_latency, image_sizes=sizes, **options)
    space, folder = space_for(settings.family, sizes), Path(out)
    reference = space.spec(space.hand_made()[0][1], len(class_names))
    meter = Meter(
        reference=reference,
        engine=settings.engine,
        threads=settings.threads,
        batch_size=settings.batch_size,
        rounds=settings.rounds,
    )
    identity = {
        **settings.identity(),
        "data": str(data).rstrip("/") or "/",
        "classes": len(class_names),
        "recipe": recipe_values(trainer.recipe),
    }
    with _alone_in(folder), StopSignals() as signals:
        journal = Journal(folder, space, len(class_names), identity)
        samples = Samples.open(
            folder / "latency.json", conditions_of(meter), meter.measure, settings.batch_size
        )
        searching = Search(
            folder=folder,
            settings=settings,
            journal=journal,
            samples=samples,
            train=trainer,
            measure=dataclasses.replace(meter, rounds=FINAL_TIMES * meter.rounds).measure,
            epochs=trainer.recipe.epochs,
            check=signals.check,
        )
        try:
            return searching.run()
        except (StopRequestedError, StoppedError) as error:
            done, what = searching.count(), str(error).partition(";")[0].removeprefix("stopped by ")
            raise StoppedError(
                f"the search was stopped by {what}, after {done} of {settings.trials} trials; run the same "
                "command again to go on"
            ) from error


def conditions_of(meter: Meter) -> dict[str, Any]:
    """What must agree between latencies that are compared."""
    return to_mapping(meter)


def _space(settings: Settings) -> Space:
    return space_for(settings.family, settings.image_sizes)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which a killed process gives back.

    Raises:
        ConfigError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with (folder / "search.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"--out: another search is running in {folder}; take another folder") from None
        yield
