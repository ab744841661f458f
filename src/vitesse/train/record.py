"""What a run leaves to read: recipe, metrics, what is wrong with the data, trackers, lines for a person."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vitesse.errors import ConfigError, TrainingError, require
from vitesse.files import sweep, write_atomically
from vitesse.progress import say
from vitesse.train.checkpoint import Progress
from vitesse.train.recipe import Recipe, recipe_values

METRICS_FILE = "metrics.jsonl"
RECIPE_FILE = "recipe.yaml"
REFUSED_FILE = "refused.txt"
DATA_CHECK_FILE = "data_check.json"


class RunLog:
    """The records of a run in its folder; a folder that cannot be written is told of and survived.

    A row of `metrics.jsonl` is a JSON object: `kind` is `step` (`step`, `epoch`, `loss`, `lr`, `grad_norm`,
    `img_per_s`, seconds a step in each phase), `epoch` (`epoch`, `step`, mean `loss`, `seconds`, `skipped`
    and, where it was evaluated, accuracies as fractions) or `note` (`step`, `text`). What is not finite is
    null.

    Attributes:
        rows: of this run so far.
        notes: what a person should know afterwards.
        refused: names of pictures that could not be read, as in `refused.txt`.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, recipe: Recipe) -> None:
        self.accelerator, self.folder, self.recipe = accelerator, folder, recipe
        self.writes = accelerator.is_main_process
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.refused: tuple[str, ...] = ()
        with self.survived("a tracker"):
            _start_trackers(accelerator, folder, recipe)

    def begin(self, done: Progress | None) -> None:
        """Go on after what is done, or anew; rows after that are forgotten, and come again.

        What an earlier session left half written is removed.
        """
        if not self.writes:
            return
        for folder in (self.folder, *self.folder.glob("checkpoints/*")):
            sweep(folder)
        yaml = require("yaml", "train")
        with self.survived("the recipe"):
            text = yaml.safe_dump(recipe_values(self.recipe), sort_keys=False)
            write_atomically(self.folder / RECIPE_FILE, text.encode())
        with self.survived("the metrics"):
            if done:
                before = self._lines(METRICS_FILE, json.loads)
                self.rows[:0] = [row for row in before if _is_before(row, done)]
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            write_atomically(self.folder / METRICS_FILE, text.encode())
        self.notes = list(dict.fromkeys([*(row["text"] for row in self.of_kind("note")), *self.notes]))
        if done:
            self.refused = tuple(self._lines(REFUSED_FILE, str))

    def _lines(self, name: str, parse: Callable[[str], Any]) -> list[Any]:
        """What can be parsed of a file's lines, of which a killed run may have cut the last."""
        path, found = self.folder / name, []
        for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):
                found.append(parse(line))
        return found

    def add(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append a row, and tell the trackers its numbers at its `step`."""
        if not self.writes:
            return
        row = {"kind": kind, **{key: _finite(value) for key, value in values.items()}}
        self._append(row)
        numbers = {f"{kind}/{key}": value for key, value in row.items() if isinstance(value, (int, float))}
        self._tell_trackers(lambda: self.accelerator.log(numbers, step=row["step"]))

    def _append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self.survived("the metrics"), (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The rows of a kind, in their order."""
        return [row for row in self.rows if row["kind"] == kind]

    def note(self, text: str, step: int | None = None) -> None:
        """Tell a person now, and again in the report; nothing is told twice.

        What belongs to a step, 0 before the first, is still told in the report of a resumed run.
        """
        if not self.writes or text in self.notes:
            return
        self.notes.append(text)
        say(text)
        if step is not None:
            self._append({"kind": "note", "step": step, "text": text})

    def refuse(self, names: Iterable[str]) -> None:
        """Add to the pictures that could not be read, and list them all in `refused.txt`."""
        known = tuple(sorted({*self.refused, *names}))
        if known == self.refused:
            return
        self.refused = known
        if self.writes:
            with self.survived("the list of refused pictures"):
                write_atomically(self.folder / REFUSED_FILE, "".join(f"{name}\n" for name in known).encode())

    def describe_data(self, found: Mapping[str, Any]) -> None:
        """Leave what a check of the data found, in `data_check.json`."""
        with self.survived("the check of the data"):
            write_atomically(self.folder / DATA_CHECK_FILE, json.dumps(found, indent=1).encode())

    @contextlib.contextmanager
    def survived(self, what: str) -> Iterator[None]:
        """Let training go on where a file cannot be written, with a note of it."""
        try:
            yield
        except OSError as error:
            self.note(
                f"{what} cannot be written to {self.folder} ({error.strerror or error}); training goes on"
            )

    def close(self) -> None:
        """Let the trackers finish."""
        self._tell_trackers(self.accelerator.end_training)

    def _tell_trackers(self, tell: Callable[[], None]) -> None:
        """Let training go on where a service cannot be reached, whatever its client raises."""
        try:
            tell()
        except Exception as error:
            self.note(f"a tracker cannot be told ({_reason(error)}); training goes on")


def check_trackers(recipe: Recipe) -> list[str]:
    """The trackers that a recipe names.

    Raises:
        MissingExtraError: one is not installed.
    """
    for name in recipe.trackers:
        require(name, "train" if name == "tensorboard" else "trackers")
    return list(recipe.trackers)


def _start_trackers(accelerator: Accelerator, folder: Path, recipe: Recipe) -> None:
    """
    Raises:
        ConfigError: one cannot start, as where nobody is logged in.
        OSError: nothing can be written.
    """
    config = {key: value if _is_plain(value) else str(value) for key, value in recipe_values(recipe).items()}
    options = {
        "wandb": {"name": folder.name, "dir": str(folder)},
        "mlflow": {"run_name": folder.name},
    }
    chosen = {name: values for name, values in options.items() if name in recipe.trackers}
    try:
        accelerator.init_trackers("vitesse", config=config, init_kwargs=chosen)
    except OSError:
        raise
    except Exception as error:
        raise ConfigError(
            f"recipe trackers: expected all of {', '.join(recipe.trackers)} to start, one does not "
            f"({_reason(error)}); set it up, or leave it out: trackers=[tensorboard]"
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def make_folder(folder: Path) -> None:
    """The folder of a run, writable.

    Raises:
        TrainingError: it cannot be made, or nothing can be written into it.
    """
    probe = folder / ".writable"
    try:
        write_atomically(probe, b"")
        probe.unlink(missing_ok=True)  # another process may have been faster
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise TrainingError(f"{folder}: cannot be written ({reason}); give another --out") from error


def _is_before(row: Any, done: Progress) -> bool:
    """Whether a row of `metrics.jsonl` belongs to what is done."""
    try:
        return bool(row["step"] <= done.step and (row["kind"] != "epoch" or row["epoch"] <= done.epochs))
    except (TypeError, KeyError):
        return False


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, str, bool))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
