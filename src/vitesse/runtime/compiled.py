"""What an engine compiled, kept between runs, so that a cold start need not compile again.

A blob lies in `cache_dir()/compiled` behind its own SHA-256; one that is cut short or altered is as good as
none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from vitesse.files import write_atomically
from vitesse.runtime.artefact import cache_dir

_DIGEST_BYTES = hashlib.sha256().digest_size
_KEPT = 16


class Blob:
    """The place of one compiled model.

    Args:
        key: everything that it depends on: model, machine, settings, the engine's version.
    """

    def __init__(self, *key: object) -> None:
        name = hashlib.sha256("|".join(map(str, key)).encode()).hexdigest()
        self._path = cache_dir() / "compiled" / f"{name}.blob"

    def recall(self) -> bytes | None:
        """What was kept, whole, or None."""
        try:
            content = self._path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # in a folder that can only be read
            os.utime(self._path)
        digest, blob = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return blob if hashlib.sha256(blob).digest() == digest else None

    def remember(self, blob: bytes) -> None:
        """Keep it beside the latest used of the others; a full or read-only disk keeps nothing."""
        with contextlib.suppress(OSError):
            write_atomically(self._path, hashlib.sha256(blob).digest() + blob)
            latest_first = sorted(self._path.parent.glob("*.blob"), key=_last_use, reverse=True)
            for old in latest_first[_KEPT:]:
                old.unlink(missing_ok=True)


def _last_use(path: Path) -> float:
    return path.stat().st_mtime
