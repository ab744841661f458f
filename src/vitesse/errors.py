"""The errors Vitesse raises. Every message says what was expected, what came, and what to do."""

from __future__ import annotations

import contextlib
import importlib
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class VitesseError(Exception):
    """Anything that Vitesse refuses; the message is one line a user can act on."""


class ConfigError(VitesseError):
    """A spec, recipe or option holds an unknown key or an impossible value."""


class UnknownModelError(ConfigError):
    """No model has this name; the message lists the nearest ones."""


class ImageError(VitesseError):
    """A picture was refused: unreadable, too large, or of a kind that is not accepted."""


class TooLargeError(ImageError):
    """A picture has more pixels, or its file more bytes, than the limits allow."""


class ArtefactError(VitesseError):
    """An artefact cannot be used: not ONNX, no manifest, a newer schema, a shape that disagrees."""


class EngineError(VitesseError):
    """An inference engine is not installed, refused the model, or failed while running it."""


class WeightsError(VitesseError):
    """Weights cannot be loaded, converted or fetched."""


class DataError(VitesseError):
    """A dataset cannot be read: a layout that is not recognised, or labels out of range."""


class TrainingError(VitesseError):
    """A training run cannot start, go on or be resumed."""


class StoppedError(VitesseError):
    """A signal ended a run, which is saved; the same command goes on with it."""


class ExportError(VitesseError):
    """A model cannot be folded or exported, or the exported file disagrees with the model."""


class MissingExtraError(VitesseError):
    """An optional package is not installed; the message names the exact install command."""

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"this needs {package}, which is not installed: pip install 'vitesse[{extra}]'")


def require(module: str, extra: str) -> Any:
    """Import an optional module, or raise `MissingExtraError` naming the extra that brings it.

    Raises:
        MissingExtraError: the module's top-level package is not installed.
    """
    with from_extra(extra):
        return importlib.import_module(module)


def one_line(error: Exception) -> str:
    """What an error says in one line, with its type where it is none of ours."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, VitesseError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def from_extra(extra: str) -> Iterator[None]:
    """Around imports of what an extra brings: a package that is not installed becomes `MissingExtraError`.

    Raises:
        MissingExtraError: a package other than Vitesse is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "vitesse").partition(".")[0]
        if package == "vitesse":
            raise
        raise MissingExtraError(package, extra) from error


LISTED = 40
"""Names that a message lists at most."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of an error message for a mistyped name: its nearest names, or what there is."""
    choices = sorted(known)
    near = get_close_matches(word, choices, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    more = len(choices) - LISTED
    return f"known: {', '.join(choices[:LISTED])}{f' and {more} more' if more > 0 else ''}"
