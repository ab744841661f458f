"""`vitesse predict`: one record an input whatever happens, exit codes, streams kept apart."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vitesse.cli import run
from vitesse.runtime.artefact import Artefact

Capture = pytest.CaptureFixture[str]
VITESSE = [sys.executable, "-c", "from vitesse.cli import main; main()"]


@pytest.fixture
def model(tiny_artefact: Artefact) -> list[str]:
    return ["--model", str(tiny_artefact.path), "--engine", "onnxruntime"]


@pytest.fixture
def folder(tmp_path: Path, photo: Callable[..., Image.Image]) -> Path:
    """Two good pictures, a corrupt one, and a file that is none."""
    root = tmp_path / "photos"
    (root / "inner").mkdir(parents=True)
    photo(seed=1).save(root / "a.jpg")
    photo(seed=2).save(root / "inner" / "a.png")
    (root / "broken.jpg").write_bytes((root / "a.jpg").read_bytes()[:200])
    (root / "notes.txt").write_text("no picture")
    return root


def records(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_input_gets_one_record_and_the_others_go_on(
    folder: Path, model: list[str], capsys: Capture
) -> None:
    sources = [
        str(folder / "a.jpg"),
        str(folder / "absent.jpg"),
        str(folder / "broken.jpg"),
        str(folder / "inner"),
    ]
    assert run(["predict", *sources, *model, "--top-k", "3", "--json"]) == 3
    out, err = capsys.readouterr()
    found = records(out)
    assert [record["source"] for record in found] == [*sources[:3], str(folder / "inner" / "a.png")]
    assert [record["error"] is None for record in found] == [True, False, False, True]
    assert set(found[0]) == {"source", "task", "model", "predictions", "error"}
    assert set(found[0]["predictions"][0]) == {"label", "index", "score"}  # type: ignore[index]
    assert [len(record["predictions"]) for record in found] == [3, 0, 0, 3]  # type: ignore[arg-type]
    assert "2 pictures classified, 2 refused" in err
    assert "Traceback" not in out + err


def test_folders_are_searched_and_globs_expanded(folder: Path, model: list[str], capsys: Capture) -> None:
    (folder / "broken.jpg").unlink()
    assert run(["predict", str(folder), *model, "--json"]) == 0
    assert len(records(capsys.readouterr().out)) == 2
    assert run(["predict", str(folder / "*" / "*.png"), *model, "--json"]) == 0
    assert len(records(capsys.readouterr().out)) == 1


def test_people_get_labels_with_shares(folder: Path, model: list[str], capsys: Capture) -> None:
    assert run(["predict", str(folder / "a.jpg"), *model, "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(folder / "a.jpg")
    assert len(lines) == 3
    assert all("%" in line and "class" in line for line in lines[1:])


@pytest.mark.parametrize("listed", [True, False])
def test_standard_input_is_a_picture_or_a_list(
    folder: Path, model: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    content = (
        f"{folder / 'a.jpg'}\n{folder / 'inner' / 'a.png'}\n".encode()
        if listed
        else (folder / "a.jpg").read_bytes()
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert run(["predict", "-", *model, "--json"]) == 0
    assert len(records(capsys.readouterr().out)) == (2 if listed else 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "picture"),
        (["{empty}/*.jpg"], "no file matches"),
        (["sample:rockt"], "did you mean rocket"),
        (["{empty}/x.jpg", "--top-k", "0"], "top-k"),
        (["{empty}/x.jpg", "--engine", "tensorrt"], "engine"),
        (["{empty}/x.jpg", "--modle", "x"], "--model"),
        ([], "SOURCE"),
        (["{empty}/x.jpg", "--model", "efficientvit_m9"], "did you mean efficientvit_m"),
        (["{empty}/x.jpg", "--model", "{empty}/w.pth"], "vitesse convert"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    code = run(["predict", *(text.format(empty=tmp_path / "empty") for text in arguments)])
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_plain_onnx_file_is_refused(
    make_artefact: Callable[..., Path], folder: Path, capsys: Capture
) -> None:
    assert run(["predict", str(folder / "a.jpg"), "--model", str(make_artefact(manifest=None))]) == 1
    assert "without a Vitesse manifest" in capsys.readouterr().err


def test_saved_pictures_stay_in_their_folder_and_do_not_collide(
    folder: Path, model: list[str], tmp_path: Path
) -> None:
    sources = [str(folder / "a.jpg"), str(folder / "inner" / "a.png"), f"{folder}/inner/../a.jpg"]
    assert run(["predict", *sources, *model, "--save", str(tmp_path / "out")]) == 0
    saved = sorted((tmp_path / "out").iterdir())
    assert len(saved) == 3
    assert not [path for path in tmp_path.iterdir() if path.name not in ("out", "photos")]
    for path in saved:
        with Image.open(path) as picture:
            assert min(picture.size) > 48


@pytest.mark.parametrize("name", ["rocket", "coffee", "motorcycle", "astronaut", "chelsea"])
def test_sample_photos_are_found(name: str, model: list[str], capsys: Capture) -> None:
    assert run(["predict", f"sample:{name}", *model, "--json"]) == 0
    assert records(capsys.readouterr().out)[0]["source"] == f"sample:{name}"


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path, model: list[str]) -> None:
    many = [str(folder / "a.jpg")] * 3000
    process = subprocess.Popen(
        [*VITESSE, "predict", *many, *model, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(60)


def test_predict_never_imports_torch(folder: Path, model: list[str]) -> None:
    code = (
        "import sys; from vitesse.cli import run\n"
        f"assert run(['predict', {str(folder / 'a.jpg')!r}, *{model!r}, '--json']) == 0\n"
        "assert not {'torch', 'timm', 'onnx', 'openvino'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
