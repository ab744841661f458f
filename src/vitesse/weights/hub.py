"""Published weights from the Hugging Face Hub, through its own client and cache.

`HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE` mean what they mean to every other program.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitesse.catalogue import resolve
from vitesse.errors import WeightsError, require

FILE_NAME = "model.safetensors"


def fetch_pretrained(name: str) -> Path:
    """The weights that `arch` or `arch.tag` names, downloaded unless they are cached.

    Raises:
        UnknownModelError: no architecture or weights have this name.
        MissingExtraError: huggingface_hub is not installed.
        WeightsError: offline and not cached, not on the hub, or the download broke off.
    """
    return fetch(resolve(name)[1].hub_id)


def fetch(hub_id: str) -> Path:
    """`model.safetensors` of a hub repository, downloaded unless cached; the cache never holds part of it.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        WeightsError: offline and not cached, not on the hub, or the download broke off.
    """
    hub = require("huggingface_hub", "torch")
    errors = require("huggingface_hub.errors", "torch")
    what = f"{hub_id}/{FILE_NAME}"
    try:
        return Path(hub.hf_hub_download(hub_id, FILE_NAME))
    except errors.LocalEntryNotFoundError as error:
        reason = _why_unreachable(hub, error.__cause__)
        raise WeightsError(f"{what}: not in the cache and {reason}; fetch it once while online") from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        raise WeightsError(f"{what}: not found on {hub.constants.ENDPOINT}, or not open to you") from error
    except Exception as error:  # the client lets errors of whichever HTTP library it is built on through
        if not _is_transfer_error(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(
            f"{what}: the download broke off ({reason}); nothing of it is kept, try again"
        ) from error


def _why_unreachable(hub: Any, cause: BaseException | None) -> str:
    if hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    response = getattr(cause, "response", None)
    answer = "cannot be reached" if response is None else f"answers {response.status_code}"
    return f"{hub.constants.ENDPOINT} {answer}"


def _is_transfer_error(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in (
        "httpx",
        "httpx2",
        "requests",
    )
