"""Which names give which model: published weights through a hub on this machine, our own repositories."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save

from vitesse import load
from vitesse.errors import ArtefactError, ConfigError, UnknownModelError, WeightsError
from vitesse.models import build
from vitesse.predictors import find_artefact
from vitesse.runtime.artefact import bundled_artefact, cache_dir
from vitesse.spec import ModelSpec
from vitesse.weights.keymaps import TIMM, keymap_for

NAME, HUB_ID = "efficientvit_m0", "timm/efficientvit_m0.r224_in1k"


@pytest.fixture
def published(hub, randomise):
    """timm-named weights of an M0 on the hub, and the model they belong to."""
    model = randomise(build(ModelSpec(name=NAME))).eval()
    hub.add(HUB_ID, "model.safetensors", save(keymap_for(NAME).write(model.state_dict(), TIMM)))
    return model


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (None, "got an artefact"),
        (bundled_artefact().stem, "got an artefact"),
        ("hf:me/flowers", "got an artefact"),
        ("mine.onnx", "got an artefact"),
        ("mine.pth", "run `vitesse convert` first"),
        ("mine.json", "without weights; run `vitesse train DATA --model mine.json` first"),
        ("shvit_s1+half", "without weights; run `vitesse train DATA --model shvit_s1\\+half` first"),
    ],
)
def test_torch_runs_checkpoints_and_names_only(model, told):
    with pytest.raises(ConfigError, match=told):
        load(model, engine="torch")


@pytest.mark.parametrize("name", ["mine.json", "shvit_s1+half"])
def test_what_has_no_weights_says_how_to_get_some(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text('{"name": "shvit_s1"}')
    with pytest.raises(ConfigError, match="an architecture without weights; run `vitesse train DATA --model"):
        find_artefact(name)


def test_a_folder_does_not_hide_a_model_of_its_name(hub, tmp_path, monkeypatch):
    (tmp_path / NAME).mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=HUB_ID):
        load(NAME)


@pytest.mark.slow
def test_a_published_model_is_fetched_exported_once_and_reused_offline(hub, published, photo, tmp_path):
    picture = tmp_path / "photo.jpg"
    photo().save(picture)
    predictor = load(NAME, engine="onnxruntime")
    manifest = predictor.artefact.manifest
    assert (manifest.trained_on, manifest.licence) == ("ImageNet-1k", "MIT")
    assert (manifest.class_names[0], manifest.class_names[657]) == ("tench", "missile")
    assert manifest.preprocess.crop_pct == 0.875
    assert manifest.provenance["hub_id"] == HUB_ID
    (record,) = predictor.predict([picture])
    assert record.top.label in manifest.class_names

    hub.status = 500
    assert load(f"{NAME}.r224_in1k", engine="onnxruntime").artefact.sha256 == predictor.artefact.sha256
    assert hub.downloads == 1
    code = (
        "import sys, vitesse\n"
        f"record = vitesse.load({NAME!r}, engine='onnxruntime').predict([{str(picture)!r}])[0]\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "print(record.top.index)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == record.top.index

    (kept,) = (cache_dir() / "artefacts").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    hub.status = 200
    assert load(NAME, engine="onnxruntime").predict([picture])[0].top.index == record.top.index


def test_torch_runs_published_weights_with_their_names_and_crop(published):
    predictor = load(NAME, engine="torch")
    assert predictor.artefact.manifest.class_names[1] == "goldfish"
    x_BCHW = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = published(x_BCHW)
    torch.testing.assert_close(torch.from_numpy(predictor.engine.run(x_BCHW.numpy())[0]), expected)


def test_a_failed_fetch_leaves_no_artefact(hub):
    with pytest.raises(WeightsError, match=f"{HUB_ID}/model.safetensors: not found on"):
        load(NAME)
    assert not list(cache_dir().rglob("*.onnx*"))


def test_a_repository_of_our_own(hub, tiny_artefact, monkeypatch):
    hub.add("me/mine", "model.onnx", tiny_artefact.path.read_bytes())
    assert find_artefact("hf:me/mine").sha256 == tiny_artefact.sha256
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_artefact("hf:me/mine").sha256 == tiny_artefact.sha256
    with pytest.raises(WeightsError, match=r"me/other/model.onnx: not in the cache and HF_HUB_OFFLINE"):
        find_artefact("hf:me/other")


def test_a_repository_that_holds_something_else(hub):
    hub.add("me/mine", "model.onnx", b"<html>")
    with pytest.raises(ArtefactError):
        find_artefact("hf:me/mine")


def test_the_bundled_artefact_goes_by_its_files_name_only(hub):
    assert find_artefact(None).path == find_artefact(bundled_artefact().stem).path == bundled_artefact()
    with pytest.raises(WeightsError, match="efficientvit_m1"):
        find_artefact("efficientvit_m1")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("efficientvit_m77", UnknownModelError, "did you mean efficientvit_m"),
        ("bcdd", UnknownModelError, "did you mean bccd"),
        ("efficientvit_m5.r999", UnknownModelError, "no weights tagged 'r999'"),
        ("efficientvit_l0", WeightsError, "no weights of it were published"),
        ("weights.pth", ConfigError, "vitesse convert"),
        ("absent.onnx", ArtefactError, "absent.onnx"),
    ],
)
def test_names_that_give_nothing(name, error, message):
    with pytest.raises(error, match=message):
        find_artefact(name)


def test_an_unknown_name_is_named_even_where_nothing_is_bundled(monkeypatch):
    def absent():
        raise ArtefactError("no artefact is bundled")

    monkeypatch.setattr("vitesse.predictors.bundled_artefact", absent)
    with pytest.raises(WeightsError, match="efficientvit_l0"):
        find_artefact("efficientvit_l0")
