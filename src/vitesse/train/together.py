"""What the processes of a run find out together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

from accelerate.utils import gather_object

from vitesse.errors import VitesseError
from vitesse.train.stopping import LostProcessError, StopRequestedError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def from_all(accelerator: Accelerator, work: Callable[[], T]) -> list[T]:
    """What `work` gives in each process, in their order; all processes call it together.

    Raises:
        StopRequestedError: a process was told to stop; all of them raise it.
        VitesseError: of the first process that raised one, in all of them.
        LostProcessError: another process raised anything else; there it is raised as it is.
    """
    value: T | None = None
    error: Exception | None = None
    try:
        value = work()
    except Exception as raised:
        error = raised
    said = [(value, _as_told(error))]
    told = gather_object(said) if accelerator.num_processes > 1 else said
    errors = [other for _, other in told if other is not None]
    if error is not None and not isinstance(error, VitesseError):
        raise error
    if any(isinstance(other, StopRequestedError) for other in errors):
        raise StopRequestedError("another process")
    if errors:
        raise errors[0]
    return [cast(T, given) for given, _ in told]


def _as_told(error: Exception | None) -> Exception | None:
    if error is None or isinstance(error, (VitesseError, StopRequestedError)):
        return error
    return LostProcessError(f"another process failed: {type(error).__name__}: {error}")
