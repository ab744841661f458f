"""Progress is for people: it never touches what is printed to stdout."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vitesse import progress
from vitesse.progress import track

COUNT_ON_STDOUT = """
from vitesse.progress import track
for number in track(range(5), "count", 5):
    print(number)
"""


def test_a_bar_on_the_terminal_leaves_a_piped_stdout_alone() -> None:
    pty = pytest.importorskip("pty")
    terminal, stderr = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", COUNT_ON_STDOUT], stdout=subprocess.PIPE, stderr=stderr, text=True, check=True
    )
    os.close(stderr)
    shown = os.read(terminal, 65536).decode()
    os.close(terminal)
    assert done.stdout.split() == ["0", "1", "2", "3", "4"]
    assert "count" in shown


def test_without_a_terminal_there_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(track("abc", "spell", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "PLAIN_SECONDS", -1.0)
    assert list(track("abc", "spell", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "spell: 1/3\nspell: 2/3\nspell: 3/3\n")
