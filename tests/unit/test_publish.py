"""Publishing through the real client to a hub on this machine: what arrives, what the card says, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vitesse.cli import run
from vitesse.errors import ArtefactError, ConfigError, WeightsError
from vitesse.models import build, load_checkpoint
from vitesse.publish import prepare, push, write_card
from vitesse.runtime.artefact import bundled_artefact, read_artefact
from vitesse.spec import ModelSpec
from vitesse.weights import save_weights


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "mine.safetensors"
    model = build(ModelSpec(name="efficientvit_m0", image_size=(64, 64), num_classes=2))
    save_weights(path, model, {"class_names": ["cat", "dog"], "provenance": {"commit": "abc"}})
    return path


def front_matter(card):
    _, matter, text = card.decode().split("---\n", 2)
    return yaml.safe_load(matter), text


def test_an_artefact_arrives_whole_with_a_card_of_its_manifest(hub, token):
    url = push(prepare([bundled_artefact()], "me/flowers"), private=True)
    assert url == f"{hub.url}/me/flowers"
    assert hub.created[0]["name"] == "flowers"
    assert hub.created[0]["visibility" if "visibility" in hub.created[0] else "private"] in (True, "private")
    assert hub.pushed.keys() == {"model.onnx", "README.md"}
    assert hub.pushed["model.onnx"] == bundled_artefact().read_bytes()
    matter, text = front_matter(hub.pushed["README.md"])
    manifest = read_artefact(bundled_artefact()).manifest
    assert (matter["license"], matter["library_name"]) == (manifest.licence.lower(), "vitesse")
    metrics = {m["name"]: m["value"] for m in matter["model-index"][0]["results"][0]["metrics"]}
    assert metrics["top-1 accuracy"] == manifest.accuracy["top1"]
    assert "vitesse predict photo.jpg --model hf:me/flowers" in text
    assert "apple, aquarium_fish" in text
    assert f"images: {manifest.accuracy['images']}" in text


@pytest.mark.parametrize("repo_id", ["flowers", "me/a b", "../x", "a/b/c", "me/", ""])
def test_names_that_are_no_repository_are_refused(repo_id):
    with pytest.raises(ConfigError, match="expected OWNER/REPO"):
        prepare([bundled_artefact()], repo_id)


def test_a_card_of_other_bands_says_so(tmp_path):
    spec = ModelSpec(name="efficientvit_m0", image_size=(64, 64), num_classes=2, in_chans=4)
    preprocess = {"image_size": [64, 64], "mean": [0.5] * 4, "std": [0.5] * 4}
    save_weights(tmp_path / "m.safetensors", build(spec), {"preprocess": preprocess})
    card = prepare([tmp_path / "m.safetensors"], "me/fields").files["README.md"].decode()
    assert "64x64 pixels and 4 channels" in card
    assert "vitesse predict scene.npy" in card


def test_what_was_pushed_can_be_used(hub, token, checkpoint, tmp_path):
    push(prepare([checkpoint], "me/pets"))
    matter, text = front_matter(hub.pushed["README.md"])
    assert "model-index" not in matter, "no accuracy is known of it"
    assert "license" not in matter
    assert "## Accuracy" not in text
    assert "cat, dog" in text
    back = tmp_path / "back.safetensors"
    back.write_bytes(hub.pushed["model.safetensors"])
    assert load_checkpoint(back)[1]["class_names"] == ["cat", "dog"]


def test_a_dry_run_writes_what_would_be_uploaded_and_needs_no_hub(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["push", str(checkpoint), "--to", "me/pets", "--dry-run", str(out), "--json"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.safetensors"]
    assert (out / "model.safetensors").read_bytes() == checkpoint.read_bytes()
    assert '"url"' in capsys.readouterr().out


def test_a_licence_in_words_is_named_as_such(tiny_artefact, make_artefact):
    card = prepare([make_artefact({"licence": "see the card"})], "me/x").files["README.md"]
    matter, _ = front_matter(card)
    assert (matter["license"], matter["license_name"]) == ("other", "see the card")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "not logged in to the Hugging Face Hub: run `hf auth login`"),
        (403, "your token may not write there"),
        (500, "the hub answers 500"),
    ],
)
def test_a_hub_that_refuses(hub, token, checkpoint, status, message):
    hub.status = status
    with pytest.raises(WeightsError, match=message) as caught:
        push(prepare([checkpoint], "me/pets"))
    assert "\n" not in str(caught.value)
    assert hub.pushed == {}


def test_a_hub_that_is_away(hub, token, checkpoint, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"not published, http://127.0.0.1:9 cannot be reached"):
        push(prepare([checkpoint], "me/pets"))


def test_files_that_do_not_go_together(tiny_artefact, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="hold different models"):
        prepare([tiny_artefact.path, checkpoint], "me/x")
    with pytest.raises(ConfigError, match=r"mine.safetensors: expected at most one"):
        prepare([checkpoint, checkpoint], "me/x")
    with pytest.raises(ConfigError, match=r"photo.jpg: expected at most one artefact"):
        prepare([tmp_path / "photo.jpg"], "me/x")
    for name in ("pets", "me/", "/pets", "a/b/c"):
        with pytest.raises(ConfigError, match="expected OWNER/REPO"):
            prepare([checkpoint], name)
    with pytest.raises(ArtefactError):
        prepare([tmp_path / "absent.onnx"], "me/x")


def test_a_detector_has_a_card(tmp_path: Path) -> None:
    card = write_card(bundled_artefact("bccd"), tmp_path).read_text()
    for fact in ("pipeline_tag: object-detection", "name: AP50", "type: mAP"):
        assert fact in card
