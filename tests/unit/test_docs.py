"""Every fenced `sh` and `python` block of README and docs runs, in a folder with a few pictures."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vitesse import cli
from vitesse.catalogue import models

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?P<mark><!-- command: \w+ -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S
)
LANGUAGES = {"sh", "python", "text"}
ONLY_VITESSE = re.compile(r"(vitesse (?:[^\n$|;&<>*]|\\\n)*\n)+")
"""Lines that mean the same to a shell and to the command's own parser."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, code) of each block that runs here; `.ci/run` runs the README's two marked commands."""
    found = list(FENCE.finditer(page.read_text(encoding="utf-8")))
    assert {block["language"] for block in found} <= LANGUAGES
    return [(b["language"], b["code"]) for b in found if b["mark"] is None and b["language"] != "text"]


def test_links_to_files_lead_somewhere() -> None:
    for page in (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"):
        links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8"))
        assert links
        assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_the_readme_s_table_is_the_catalogue() -> None:
    rows = re.findall(r"^\| (\w+_\w+) \| (.*) \|$", (REPOSITORY / "README.md").read_text(), re.M)
    expected = [
        (m.name, f"{m.params / 1e6:.1f} | {m.macs / 1e6:.0f} | {m.image_size[0]} | {m.top1 * 100:.1f}")
        for m in models()
        if m.top1 is not None
    ]
    assert rows == expected


@pytest.fixture
def desk(
    tmp_path: Path,
    photo: Callable[..., Image.Image],
    make_artefact: Callable[..., Path],
    make_promptable: Callable[..., Path],
) -> Path:
    """A folder with what the pages name: photo.jpg, photos/{train,val}/CLASS/*.jpg, mine.onnx, sam.onnx."""
    photo(400, 300).save(tmp_path / "photo.jpg")
    for split, count in {"train": 12, "val": 4}.items():
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                photo(64, 64, seed=index + 100 * (label == "dog")).save(folder / f"{index}.jpg")
    shutil.copy(make_artefact(), tmp_path / "mine.onnx")
    for path in make_promptable().parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


def run_here(code: str, folder: Path) -> str:
    """Runs lines of `vitesse …` without starting a process for each; gives the first that failed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        for line in code.replace("\\\n", " ").splitlines():
            if cli.run(shlex.split(line)[1:]) != 0:
                return line
    return ""


def run_block(language: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code] if language == "python" else ["bash", "-ec", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(page: Path, desk: Path) -> None:
    for language, code in blocks(page):
        if ONLY_VITESSE.fullmatch(code):
            assert run_here(code, desk) == "", page.name
            continue
        done = run_block(language, code, desk)
        assert done.returncode == 0, f"{page.name}:\n{code}\n{done.stdout}\n{done.stderr}"


def test_blocks_are_found_and_the_two_commands_are_marked() -> None:
    counted = {page.name: len(blocks(page)) for page in PAGES}
    assert counted["README.md"] >= 3
    assert counted["predict.md"] >= 3
    marks = re.findall(r"<!-- command: (\w+) -->", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert marks == ["run", "test"]


def test_a_block_that_fails_is_noticed(tmp_path: Path) -> None:
    assert run_block("sh", "false\ntrue\n", tmp_path).returncode != 0
    assert run_block("python", "raise SystemExit(1)", tmp_path).returncode != 0
