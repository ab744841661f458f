"""Downloads through the real client from a server on this machine: whole, cut, damaged, missing, offline."""

from __future__ import annotations

import os
import subprocess
import sys

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save

from vitesse.errors import UnknownModelError, WeightsError
from vitesse.weights.hub import fetch, fetch_pretrained

NAME = "efficientvit_m0"
HUB_ID = "timm/efficientvit_m0.r224_in1k"
CONTENT = save({"weight": torch.arange(100_000.0)})


@pytest.fixture(autouse=True)
def served(hub):
    hub.add(HUB_ID, "model.safetensors", CONTENT)


def files_kept(folder):
    """Everything in the cache that could be taken for weights."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000]


def refusal(name=NAME):
    with pytest.raises(WeightsError) as caught:
        fetch_pretrained(name)
    assert "\n" not in str(caught.value)
    assert "timm/efficientvit_m0.r224_in1k/model.safetensors: " in str(caught.value)
    return str(caught.value)


def test_downloaded_once_then_from_the_cache_even_offline(hub, monkeypatch):
    path = fetch_pretrained("efficientvit_m0.r224_in1k")
    assert path.read_bytes() == CONTENT
    assert fetch_pretrained(NAME) == path
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch_pretrained(NAME) == path
    assert hub.downloads == 1


def test_a_cut_in_the_middle_is_resumed(hub):
    hub.cuts = 1
    assert fetch_pretrained(NAME).read_bytes() == CONTENT
    assert hub.downloads == 2


def test_a_download_that_never_ends_well_leaves_nothing(hub, tmp_path):
    hub.cuts = 10_000
    assert "the download broke off" in refusal()
    assert files_kept(tmp_path) == []
    hub.cuts = 0
    assert fetch_pretrained(NAME).read_bytes() == CONTENT


def test_offline_without_cache(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "not in the cache and HF_HUB_OFFLINE is set; fetch it once while online" in refusal()
    assert hub.downloads == 0


def test_a_server_that_is_away_or_broken(hub, monkeypatch):
    hub.status = 500
    assert f"not in the cache and {hub.url} answers 500" in refusal()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert "http://127.0.0.1:9 cannot be reached" in refusal()


def test_a_repository_or_name_that_does_not_exist(hub, monkeypatch):
    hub.files.clear()
    assert f"not found on {hub.url}" in refusal()
    with pytest.raises(UnknownModelError, match="did you mean efficientvit_m0"):
        fetch_pretrained("efficientvit_m00")


def test_the_clients_own_variables_are_respected(hub, tmp_path):
    code = f"from vitesse.weights.hub import fetch_pretrained as f; print(f({NAME!r}))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_CACHE", None)
    for offline in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert str(tmp_path / "home") in done.stdout
    assert hub.downloads == 1


def test_content_other_than_promised_is_deleted(hub, tmp_path):
    hub.etag = "0" * 64
    assert f"expected content with sha256 {'0' * 64}, got" in refusal()
    assert files_kept(tmp_path) == []
    hub.etag = None
    assert fetch_pretrained(NAME).read_bytes() == CONTENT


def test_another_revision_is_verified_as_the_first_was(hub, tmp_path):
    fetch_pretrained(NAME)
    hub.commit, hub.etag = "1" * 40, "0" * 64
    assert f"expected content with sha256 {'0' * 64}, got" in refusal()


def test_an_empty_file_is_named(hub):
    hub.add(HUB_ID, "model.safetensors", b"")
    hub.etag = "0" * 64
    assert "expected content with sha256" in refusal()


def test_a_name_that_is_no_repository(hub):
    with pytest.raises(WeightsError, match="expected OWNER/REPO"):
        fetch("a/b/c")
