"""Downloads through the real client from a server on this machine: whole, cut, missing, offline."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save

from vitesse.errors import UnknownModelError, WeightsError
from vitesse.weights.hub import fetch_pretrained

NAME = "efficientvit_m0"
PATH = "/timm/efficientvit_m0.r224_in1k/resolve/main/model.safetensors"


class Hub(ThreadingHTTPServer):
    """Serves one file; `cuts` downloads break off in the middle of what they still have to send."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = save({"weight": torch.arange(100_000.0)})
        self.cuts = 0
        self.status = 200
        self.downloads = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.server.downloads += self.path == PATH
        self.answer(body=True)

    def answer(self, body):
        if self.path != PATH or self.server.status != 200:
            self.send_response(404 if self.path != PATH else self.server.status)
            self.send_header("X-Error-Code", "RepoNotFound" if self.path != PATH else "")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int((re.search(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        rest = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(self.server.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(rest)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{start + len(rest) - 1}/{start + len(rest)}")
        self.end_headers()
        if body and self.server.cuts:
            self.server.cuts -= 1
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


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
    assert path.read_bytes() == hub.content
    assert fetch_pretrained(NAME) == path
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch_pretrained(NAME) == path
    assert hub.downloads == 1


def test_a_cut_in_the_middle_is_resumed(hub):
    hub.cuts = 1
    assert fetch_pretrained(NAME).read_bytes() == hub.content
    assert hub.downloads == 2


def test_a_download_that_never_ends_well_leaves_nothing(hub, tmp_path):
    hub.cuts = 10_000
    assert "the download broke off" in refusal()
    assert files_kept(tmp_path) == []
    hub.cuts = 0
    assert fetch_pretrained(NAME).read_bytes() == hub.content


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
    monkeypatch.setattr(sys.modules[__name__], "PATH", "/elsewhere")
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
