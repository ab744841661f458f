"""What tests of the command share. It is called as its entry point calls it, in this process."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitesse import cli
from vitesse.runtime.artefact import Artefact


@dataclass(frozen=True)
class Done:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every line of stdout as JSON; fails where one is not."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def vitesse(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """A function that runs one command line, `stdin` its standard input.

    It is `vitesse.cli.run`: typer's CliRunner would leave out our exit codes and error lines.
    """
    monkeypatch.delenv(cli.DEBUG, raising=False)

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run


@pytest.fixture
def predict(vitesse: Callable[..., Done], tiny_artefact: Artefact) -> Callable[..., Done]:
    """A function that runs `vitesse predict` with the tiny artefact; one engine, so nothing is timed."""
    return lambda *arguments, **options: vitesse(
        "predict", *arguments, "--model", tiny_artefact.path, "--engine", "onnxruntime", **options
    )


@pytest.fixture
def bundled(tiny_artefact: Artefact, monkeypatch: pytest.MonkeyPatch) -> Artefact:
    """Puts the tiny artefact where the bundled one is."""
    for module in ("predictors", "doctor"):
        monkeypatch.setattr(f"vitesse.{module}.bundled_artefact", lambda *_: tiny_artefact.path)
    return tiny_artefact


@pytest.fixture
def album(tmp_path: Path, photo: Callable[..., Image.Image]) -> Path:
    """A folder with three good pictures, two of them deeper, and what is to be passed over."""
    root = tmp_path / "album"
    (root / "deep" / "er").mkdir(parents=True)
    (root / ".hidden").mkdir()
    photo(seed=1).save(root / "b.jpg")
    photo(seed=2).save(root / "deep" / "a.PNG")
    photo(seed=3).save(root / "deep" / "er" / "c.webp")
    photo(seed=4).save(root / ".hidden" / "d.jpg")
    photo(seed=5).save(root / ".e.jpg")
    (root / "notes.txt").write_text("no picture")
    return root


def one_error(done: Done, code: int) -> str:
    """The single line of a refusal, after checks that it is one and that stdout is empty."""
    assert done.code == code, done
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    return done.err.removeprefix("error: ").rstrip("\n")


@pytest.fixture(name="one_error")
def _one_error() -> Callable[[Done, int], str]:
    return one_error
