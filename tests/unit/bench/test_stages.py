"""Stages: the same photos to tensors and to labels, ours beside the usual way."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vitesse.bench import Contender, benchmark, stages
from vitesse.bench.report import markdown
from vitesse.cli import run as command
from vitesse.errors import ConfigError
from vitesse.runtime.imaging import load_tensor
from vitesse.spec import PreprocessSpec


@pytest.fixture
def photos(tmp_path, photo):
    """Three photos of different sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        photo(seed=index).resize((200 + 40 * index, 160)).save(folder / f"{index}.png")
    return folder


def timed(stage, contender, folder, batch_size=2):
    """Run a stage's contenders once; gives them."""
    found = stages.of_stage(stage, [contender], folder, threads=1)
    for one in found:
        one.start()(one.feed(batch_size))
    return found


@pytest.fixture
def engine_of(monkeypatch):
    """Makes a contender whose engine notes the size of every batch."""

    def make(artefact, seen):
        def run(batch_BCHW):
            seen.append(len(batch_BCHW))
            return (np.zeros((len(batch_BCHW), 10), np.float32),)

        monkeypatch.setattr(stages, "started", lambda *_, **__: SimpleNamespace(name="stub", run=run))
        return contender_of(artefact, run)

    return make


def contender_of(artefact, run):
    return Contender(
        model="tiny",
        engine="onnxruntime",
        precision="fp32",
        image_size=artefact.manifest.preprocess.image_size,
        artefact=artefact,
        macs=1000,
        start=lambda: run,
    )


def test_to_labels_runs_every_photo_once_in_batches(tiny_artefact, photos, engine_of):
    seen = []
    (found,) = timed("end-to-end", engine_of(tiny_artefact, seen), photos)
    assert seen == [2, 1]
    assert (found.pictures, found.stage) == (3, "end-to-end")


def test_the_usual_loop_runs_every_photo_once_in_batches(tiny_artefact, photos, engine_of):
    seen = []
    contender = engine_of(tiny_artefact, seen)
    contender.engine = "torch"
    timed("end-to-end", contender, photos)
    assert seen == [2, 1]


def test_decoding_needs_no_engine_and_has_a_usual_way_beside_it(tiny_artefact, photos, engine_of):
    seen = []
    found = timed("data", engine_of(tiny_artefact, seen), photos)
    assert [one.engine for one in found] == ["vitesse", "torchvision"]
    assert seen == []


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_usual_way_makes_the_same_tensors(photos, resize, interpolation):
    """But for where it rounds: it resizes to whole pixels before it crops."""
    spec = PreprocessSpec(image_size=(96, 96), resize=resize, interpolation=interpolation)
    for path in sorted(photos.iterdir()):
        usual_CHW = stages._usual_loader(spec)(path).numpy()
        assert np.abs(usual_CHW - load_tensor(path, spec)).mean() * 0.225 * 255 < 8, "levels of 255"


def test_a_photo_that_cannot_be_read_is_named_and_not_left_out(tiny_artefact, photos, engine_of):
    (photos / "1.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"1 of 3 photos are refused: .*"):
        timed("end-to-end", engine_of(tiny_artefact, []), photos)


def test_a_stage_with_files_divides_by_their_number_and_claims_no_share_of_the_limit(tiny_artefact, photos):
    timings = benchmark(
        [str(tiny_artefact.path)],
        engines="onnxruntime",
        stage="end-to-end",
        data=photos,
        batch_sizes=(2,),
        rounds=2,
    )
    (timing,) = timings
    assert not timing.error
    assert timing.to_dict()["stage"] == "end-to-end"
    assert markdown(timings, {"fp32": 1e9}).splitlines()[-1].endswith("|  |")


def test_a_stage_with_files_needs_them(tiny_artefact, capsys):
    assert command(["bench", str(tiny_artefact.path), "--stage", "data"]) == 2
    assert "--stage data: expected --data DIR with photos" in capsys.readouterr().err
    assert command(["bench", str(tiny_artefact.path), "--stage", "data", "--data", "nowhere"]) == 2
    assert "expected --data DIR with photos, got nowhere" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="model, data, end-to-end"):
        stages.of_stage("decode", [], Path(), threads=1)
