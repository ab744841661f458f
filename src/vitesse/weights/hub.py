"""Published weights from the Hugging Face Hub, through its own client and cache.

`HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE` mean what they mean to every other program.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitesse.catalogue import resolve
from vitesse.errors import WeightsError, require

FILE_NAME = "model.safetensors"
CHUNK_BYTES = 1 << 22


def fetch_pretrained(name: str) -> Path:
    """The weights that `arch` or `arch.tag` names, downloaded unless they are cached.

    Raises:
        UnknownModelError: no architecture or weights have this name.
        MissingExtraError: huggingface_hub is not installed.
        WeightsError: offline and not cached, not on the hub, or the download broke off.
    """
    weights = resolve(name)[1]
    return fetch(weights.hub_id, weights.file)


def is_cached(hub_id: str, file_name: str = FILE_NAME) -> bool:
    """Whether `fetch` finds a file of a hub repository in the cache.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = require("huggingface_hub", "torch")
    return isinstance(hub.try_to_load_from_cache(hub_id, file_name), str)


def fetch(hub_id: str, file_name: str = FILE_NAME) -> Path:
    """A file of a hub repository, downloaded unless cached; the cache never holds part of it.

    A download whose content is not what the hub promised is deleted.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        WeightsError: offline and not cached, not on the hub, the download broke off or is damaged.
    """
    hub = require("huggingface_hub", "torch")
    errors = require("huggingface_hub.errors", "torch")
    what = f"{hub_id}/{file_name}"
    try:
        cached = hub.try_to_load_from_cache(hub_id, file_name)
        with _without_warnings():
            path = Path(hub.hf_hub_download(hub_id, file_name))
    except errors.HFValidationError as error:
        raise WeightsError(f"{what}: expected OWNER/REPO, {hub_id!r} is no repository's name") from error
    except errors.LocalEntryNotFoundError as error:
        reason = _why_unreachable(hub, error.__cause__)
        raise WeightsError(f"{what}: not in the cache and {reason}; fetch it once while online") from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        raise WeightsError(f"{what}: not found on {hub.constants.ENDPOINT}, or not open to you") from error
    except Exception as error:  # the client lets errors of whichever HTTP library it is built on through
        if not is_transfer_error(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(
            f"{what}: the download broke off ({reason}); nothing of it is kept, try again"
        ) from error
    if str(path) != cached:
        _verify(path, what)
    return path


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """The client warns at every retry; what comes of them is told once, by the error."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _verify(path: Path, what: str) -> None:
    """Compare a new download with the sha256 by which the hub's client names large files."""
    blob = path.resolve()
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    digest = hashlib.sha256()
    with blob.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if (found := digest.hexdigest()) != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise WeightsError(
            f"{what}: expected content with sha256 {blob.name}, got {found}; it is deleted, try again"
        )


def _why_unreachable(hub: Any, cause: BaseException | None) -> str:
    if hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    response = getattr(cause, "response", None)
    answer = "cannot be reached" if response is None else f"answers {response.status_code}"
    return f"{hub.constants.ENDPOINT} {answer}"


def is_transfer_error(error: Exception) -> bool:
    """Whether an error comes from the network or the HTTP library."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in (
        "httpx",
        "httpx2",
        "requests",
    )
