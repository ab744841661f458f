"""What a user names as input, as pictures: files, folders, globs, standard input, sample photos."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from vitesse.errors import ConfigError, MissingExtraError, did_you_mean
from vitesse.runtime.decode import DEFAULT_LIMITS, ImageLimits

Picture = Path | tuple[str, bytes]
"""A file, or bytes with the name the user gave them; both are sources of a `Predictor`."""

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".npy"})
SAMPLE = "sample:"
SAMPLES = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
}
STDIN = "-"


def expand(sources: Iterable[str], limits: ImageLimits = DEFAULT_LIMITS) -> list[Picture]:
    """The pictures that the sources name, in their order; within a folder by name.

    A path that does not exist stays in the list, so that it gets its own refusal and the others go on.

    Args:
        sources: files; folders, searched to any depth; globs; `-`, standard input, which holds one picture or
            a list of paths, one a line; `sample:NAME`, photos that scikit-image ships.
        limits: no more bytes than this are read of a picture on standard input.

    Raises:
        ConfigError: a folder or glob without pictures, an unknown sample, empty standard input.
        MissingExtraError: a sample is asked for and scikit-image is not installed.
    """
    return [picture for source in sources for picture in _expand(source, limits)]


def expand_one(source: str, limits: ImageLimits = DEFAULT_LIMITS) -> Picture:
    """The one picture that a source names, see `expand`.

    Raises:
        ConfigError: it names several.
    """
    found = expand([source], limits)
    if len(found) > 1:
        raise ConfigError(f"{source}: expected one picture, this names {len(found)}")
    return found[0]


def _expand(source: str, limits: ImageLimits) -> Iterable[Picture]:
    if source == STDIN:
        return _from_stdin(limits)
    if source.startswith(SAMPLE) and not os.path.lexists(source):
        return [(source, _sample(source.removeprefix(SAMPLE)).read_bytes())]
    if not source:
        raise ConfigError("expected a file or folder, got an empty name; is a shell variable unset?")
    if glob.has_magic(source) and not os.path.lexists(source):
        return _from_glob(source)
    return _from_path(Path(source))


def _from_glob(pattern: str) -> list[Path]:
    """What a pattern matches, every picture once: `**` matches a folder and the files in it too."""
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  (Path.glob refuses absolute ones)
    paths = [Path(match) for match in matches]
    found = dict.fromkeys(file for path in paths for file in (_walk(path) if path.is_dir() else (path,)))
    if not found:
        raise ConfigError(f"{pattern}: no file matches; check the pattern and the folder you are in")
    return [*found]


def _from_path(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [*_walk(path)]
    if not found:
        raise ConfigError(f"{path}: the folder holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Picture files by suffix, hidden files and folders left out; links to folders are not followed."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_SUFFIXES:
                yield Path(parent, name)


def _from_stdin(limits: ImageLimits) -> list[Picture]:
    start = sys.stdin.buffer.read(12) if sys.stdin is not None else b""  # None where it is closed
    if not start.strip():
        raise ConfigError("-: standard input is empty; expected a picture, or paths line by line")
    if _is_picture(start):
        return [(STDIN, start + sys.stdin.buffer.read(limits.max_bytes + 1 - len(start)))]
    data = start + sys.stdin.buffer.read()
    if b"\0" in data:  # neither a picture that is accepted nor a list: let the decoder say what it is
        return [(STDIN, data)]
    lines = [line.rstrip(b"\r") for line in data.split(b"\n")]
    return [picture for line in lines if line.strip() for picture in _from_path(Path(os.fsdecode(line)))]


def _is_picture(start: bytes) -> bool:
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return webp or start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))


def _sample(name: str) -> Path:
    """The photo's file, found without importing scikit-image."""
    if name not in SAMPLES:
        raise ConfigError(f"{SAMPLE}{name}: no such sample; {did_you_mean(name, SAMPLES)}")
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise MissingExtraError("scikit-image", "demo")
    return Path(spec.origin).parent / "data" / SAMPLES[name]
