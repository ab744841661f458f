"""Files that are whole or absent: written under a temporary name, synced, then renamed.

A kill at any moment leaves the last good file; at worst a hidden `.NAME.TOKEN.tmp` stays beside it, which
`sweep` removes.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

LEFT_BEHIND = re.compile(r"\..*\.[0-9a-f]{12}\.tmp(\.[^.]+)?", re.DOTALL)
"""The temporary names of `atomic_path`."""


def write_atomically(path: str | Path, data: bytes) -> None:
    """Replace `path` by a file that holds `data`, or leave it as it is.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; the old file stays.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path with the same suffix in the same folder, for libraries that write by name.

    The folder is made where it is missing. When the block ends well the file takes the name `path`; when it
    raises the file is removed and `path` stays as it was. A symbolic link at `path` is kept and its target
    replaced.

    Raises:
        OSError: the block wrote no file, or the folder cannot be made or written.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(6)}.tmp{target.suffix}")
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        temporary.replace(target)
        if os.name == "posix":  # elsewhere a folder cannot be opened, and a rename is durable by itself
            _sync(target.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed writers left right in a folder, while nobody writes there."""
    for path in folder.glob(".*.tmp*"):
        if LEFT_BEHIND.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
