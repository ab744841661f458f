"""Fixtures that several rooms share. Nothing here imports torch."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # workers share the cores; threads of theirs would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from vitesse.runtime.artefact import METADATA_KEY, Artefact, read_artefact
from vitesse.spec import PROMPT_FRAME, Manifest, ModelSpec, PreprocessSpec

REPOSITORY = Path(__file__).parents[1]
TINY_CLASSES = tuple(f"class {index}" for index in range(10))
TINY_SIZE = (24, 32)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what tests remember between runs out of the user's cache."""
    monkeypatch.setenv("VITESSE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data of design §10: `VITESSE_DATA`, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("VITESSE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set VITESSE_DATA")
    return folder


@pytest.fixture(scope="session")
def vitesse_data(data_dir: Path) -> Path:
    """The same folder under the name of its variable."""
    return data_dir


def _manifest(**changes: Any) -> Manifest:
    spec = PreprocessSpec(image_size=TINY_SIZE, crop_pct=0.9)
    model = ModelSpec(name="tiny", image_size=TINY_SIZE, num_classes=len(TINY_CLASSES))
    return dataclasses.replace(Manifest(model=model, class_names=TINY_CLASSES, preprocess=spec), **changes)


def tiny_weights() -> tuple[np.ndarray, np.ndarray]:
    """Weight (10, 3) and bias (10,) of the tiny classifier, float32."""
    generator = np.random.default_rng(7)
    return generator.normal(size=(10, 3)).astype(np.float32), generator.normal(size=10).astype(np.float32)


def _tiny_onnx(
    *,
    batch: int | str = "batch",
    size: tuple[int | str, int | str] = TINY_SIZE,
    channels: int = 3,
    opset: int = 18,
    element: int = TensorProto.FLOAT,
    logarithm: bool = False,
) -> onnx.ModelProto:
    """Mean of each channel, then a linear layer; with `logarithm` a negative mean gives NaN."""
    weight, bias = tiny_weights()
    constants = {"weight": weight, "bias": bias, "axes": np.asarray([1], np.int64)}
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("Gemm", ["mean", "weight", "bias"], ["linear"], transB=1),
    ]
    if logarithm:
        nodes.append(helper.make_node("Log", ["mean"], ["log"]))
        nodes.append(helper.make_node("ReduceMean", ["log", "axes"], ["spoiler"]))
        nodes.append(helper.make_node("Add", ["linear", "spoiler"], ["logits"]))
    else:
        nodes.append(helper.make_node("Identity", ["linear"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", element, [batch, channels, *size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture(scope="session")
def make_artefact(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a tiny real classifier and gives its path.

    `manifest` is a dict that replaces manifest keys, a str put there as it is, or None for a plain ONNX file;
    everything else goes to the graph.
    """

    def make(manifest: dict[str, Any] | str | None = {}, **graph: Any) -> Path:  # noqa: B006
        model = _tiny_onnx(**graph)
        if isinstance(manifest, dict):
            manifest = json.dumps({**_manifest().to_dict(), **manifest})
        if manifest is not None:
            helper.set_model_props(model, {METADATA_KEY: manifest})
        path = tmp_path_factory.mktemp("artefact") / "tiny.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return make


@pytest.fixture(scope="session")
def tiny_artefact(make_artefact: Callable[..., Path]) -> Artefact:
    """A checked artefact of ten classes for pictures of 24x32."""
    return read_artefact(make_artefact())


@pytest.fixture(scope="session")
def tiny_reference() -> Callable[[np.ndarray], np.ndarray]:
    """The tiny classifier in numpy: (B, 3, H, W) to logits (B, 10)."""
    weight, bias = tiny_weights()
    return lambda x_BCHW: x_BCHW.mean(axis=(2, 3)) @ weight.T + bias


SAM_SIDE, SAM_LOGITS = 64, 256
QUALITIES = (0.5, 0.6, 0.9, 0.7)


def _encoder_onnx() -> onnx.ModelProto:
    """The mean colour of each eighth of a side as the image embedding."""
    return _onnx(
        [
            helper.make_node(
                "AveragePool", ["images"], ["image_embedding"], kernel_shape=[8, 8], strides=[8, 8]
            )
        ],
        {"images": ["batch", 3, SAM_SIDE, SAM_SIDE]},
        {"image_embedding": ["batch", 3, 8, 8]},
        {},
    )


def _decoder_onnx() -> onnx.ModelProto:
    """The rectangle between an object's last two points as its mask; the others are narrower by 32 pixels.

    A box's mask is the box, and a single point's the rectangle from the top left to it. The qualities are
    `QUALITIES`, the first of them plus the mean of the image embedding.
    """
    centres = (np.arange(SAM_LOGITS, dtype=np.float32) + 0.5) * PROMPT_FRAME / SAM_LOGITS
    constants = {
        "x": centres.reshape(1, 1, 1, -1),
        "y": centres.reshape(1, 1, -1, 1),
        "margins": 32 * np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1),
        "qualities": np.asarray([QUALITIES], np.float32),
        "first": np.asarray([[1, 0, 0, 0]], np.float32),
        "none": np.zeros((1, 1), np.float32),
        "each": np.asarray([-1, 1, 1, 1], np.int64),
        "flat": np.asarray([-1, 1], np.int64),
    } | {f"index {i}": np.asarray(i, np.int64) for i in (-2, -1, 0, 1)}
    nodes = [
        helper.make_node("Gather", ["prompts", "index -2"], ["one"], axis=1),
        helper.make_node("Gather", ["prompts", "index -1"], ["other"], axis=1),
        helper.make_node("Min", ["one", "other"], ["low"]),
        helper.make_node("Max", ["one", "other"], ["high"]),
    ]
    for axis, index in (("x", 0), ("y", 1)):
        for end, signs in (("low", (axis, "end")), ("high", ("end", axis))):
            key = f"{axis} {end}"
            nodes += [
                helper.make_node("Gather", [end, f"index {index}"], [f"{key} flat"], axis=1),
                helper.make_node("Reshape", [f"{key} flat", "each"], [f"{key} end"]),
                helper.make_node("Sub", [f"{key} end" if s == "end" else s for s in signs], [key]),
            ]
    nodes += [
        helper.make_node("Min", ["x low", "x high", "y low", "y high"], ["inside"]),
        helper.make_node("Sub", ["inside", "margins"], ["masks"]),
        helper.make_node("ReduceMean", ["image_embedding"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["first", "mean"], ["seen"]),
        helper.make_node("Add", ["qualities", "seen"], ["of all"]),
        helper.make_node("Reshape", ["x low flat", "flat"], ["column"]),
        helper.make_node("Mul", ["column", "none"], ["zeros"]),
        helper.make_node("Add", ["of all", "zeros"], ["quality"]),
    ]
    return _onnx(
        nodes,
        {"prompts": ["objects", "points", 3], "image_embedding": [1, 3, 8, 8]},
        {"masks": ["objects", 4, SAM_LOGITS, SAM_LOGITS], "quality": ["objects", 4]},
        constants,
    )


def _onnx(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    constants: dict[str, np.ndarray],
    whole: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """Inputs and outputs are float32, but for those that are `whole` numbers."""
    kinds = dict.fromkeys(whole, TensorProto.INT64)
    ends = [
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in some.items()
        ]
        for some in (inputs, outputs)
    ]
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny", *ends, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture(scope="session")
def make_promptable(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a tiny model for masks, `sam.onnx` and `sam.decoder.onnx`; gives the first path.

    See `_decoder_onnx` for what it computes. `manifest` replaces keys of the encoder's manifest.
    """

    def make(**manifest: Any) -> Path:
        size = (SAM_SIDE, SAM_SIDE)
        known = Manifest(
            model=ModelSpec(name="tiny_sam", image_size=size, num_classes=1),
            class_names=("object",),
            preprocess=PreprocessSpec(image_size=size, resize="fit", interpolation="bilinear"),
            task="promptable",
        ).to_dict()
        path = tmp_path_factory.mktemp("promptable") / "sam.onnx"
        decoder = _decoder_onnx()
        helper.set_model_props(decoder, {METADATA_KEY: json.dumps(known)})
        path.with_name("sam.decoder.onnx").write_bytes(decoder.SerializeToString())
        encoder, digest = _encoder_onnx(), hashlib.sha256(decoder.SerializeToString()).hexdigest()
        known |= {"decoder": digest, **manifest}
        helper.set_model_props(encoder, {METADATA_KEY: json.dumps(known)})
        path.write_bytes(encoder.SerializeToString())
        return path

    return make


INSTANCE_SIZE = (64, 96)


@pytest.fixture(scope="session")
def instances() -> dict[str, np.ndarray]:
    """What the tiny detector with masks finds in any picture, by output: a disc, a ring, a doubtful disc."""
    y, x = (np.mgrid[:28, :28] - 13.5) / 14
    radius = np.hypot(x, y)
    disc, ring = (1 / (1 + np.exp(20 * edge)) for edge in (radius - 0.9, abs(radius - 0.6) - 0.25))
    return {
        "boxes": np.array([[[8, 4, 40, 60], [50.5, 10.2, 110, 52.7], [1, 1, 9, 9], [0] * 4]], np.float32),
        "scores": np.array([[0.9, 0.6, 0.1, 0]], np.float32),
        "labels": np.array([[1, 0, 1, 0]], np.int64),
        "masks": np.stack([disc, ring, disc, disc * 0])[None].astype(np.float32),
    }


@pytest.fixture(scope="session")
def instance_artefact(instances: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with masks for one picture of `INSTANCE_SIZE` in a run, which gives `instances`."""
    nodes = [helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0)]
    nodes += [helper.make_node("Mul", ["mean", "none"], ["zero"])]
    nodes += [
        helper.make_node("Identity", [f"all {name}"], [name])
        if name == "labels"
        else helper.make_node("Add", [f"all {name}", "zero"], [name])
        for name in instances
    ]
    model = _onnx(
        nodes,
        {"images": [1, 3, *INSTANCE_SIZE]},
        {name: list(array.shape) for name, array in instances.items()},
        {f"all {name}": array for name, array in instances.items()} | {"none": np.float32(0).reshape(())},
        whole=("labels",),
    )
    manifest = Manifest(
        model=ModelSpec(name="tiny_instances", image_size=INSTANCE_SIZE, num_classes=2),
        class_names=("ring", "disc"),
        preprocess=PreprocessSpec(image_size=INSTANCE_SIZE, resize="fit"),
        task="detect",
    )
    helper.set_model_props(model, {METADATA_KEY: json.dumps(manifest.to_dict())})
    path = tmp_path_factory.mktemp("instances") / "instances.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="session")
def photo() -> Callable[..., Image.Image]:
    """A function that paints a picture with both slow and fast changes, different for each seed."""

    def paint(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
        generator = np.random.default_rng(seed)
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        angle = generator.uniform(0.02, 0.4, (3, 2))
        waves = [np.sin(columns * a + rows * b + seed) for a, b in angle]
        noise = generator.normal(0, 12, (height, width, 3))
        pixels = np.stack(waves, axis=-1) * 90 + 128 + noise
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    return paint


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """A function that saves a picture to bytes."""

    def save(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return save


@pytest.fixture(scope="session")
def paint_classes() -> Callable[..., Path]:
    """A function that fills a folder with class folders of small pictures that a model can tell apart."""

    def paint(root: Path, per_class: int = 20, size: int = 32) -> Path:
        generator = np.random.default_rng(0)
        for label, colour in {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}.items():
            (root / label).mkdir(parents=True)
            for index in range(per_class):
                pixels = np.full((size, size, 3), colour) + generator.normal(0, 25, (size, size, 3))
                picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                picture.save(root / label / f"{index:03}.png")
        return root

    return paint


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where everything is at hand (CI), a skipped test is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("CI allows no skipped test", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


class Hub(ThreadingHTTPServer):
    """A Hugging Face Hub on this machine.

    Serves `files` by path, and lists those of data sets; `cuts` downloads break off in the middle of what
    they still have to send, and `etag` replaces the sha256 that it promises. `ranges` are the bytes of every
    download. What is pushed lands in `pushed` by its name.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files: dict[str, bytes] = {}
        self.pushed: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.ranges: list[int] = []
        self.cuts, self.status, self.downloads = 0, 200, 0
        self.etag: str | None = None
        self.commit = "0" * 40

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, hub_id: str, name: str, content: bytes) -> None:
        self.files[f"/{hub_id}/resolve/main/{name}"] = content

    def listed(self, hub_id: str, path: str, recursive: bool = False) -> list[dict[str, Any]]:
        """What is right in a folder, or below it; or a file."""
        top = f"/{hub_id}/resolve/main/"
        sizes = {
            name.removeprefix(top): len(data) for name, data in self.files.items() if name.startswith(top)
        }
        below = [name for name in sizes if name == path or name.startswith(f"{path}/" if path else "")]
        depth = None if recursive else path.count("/") + 1 + bool(path)
        found = sorted({"/".join(name.split("/")[:depth]) for name in below})
        kinds = [{"type": "file", "size": sizes[n]} if n in sizes else {"type": "directory"} for n in found]
        return [{"path": name, "oid": "0" * 40, **kind} for name, kind in zip(found, kinds, strict=True)]


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.server.downloads += self.path in self.server.files
        if asked := re.match(r"/api/(datasets/\w+/\w+)/tree/main/?([^?]*)(.*)", unquote(self.path)):
            self.say(self.server.listed(asked[1], asked[2], "recursive=true" in asked[3].casefold()))
        elif (asked := re.match(r"/api/(datasets/\w+/\w+)", self.path)) and self.server.listed(asked[1], ""):
            self.say({"id": asked[1].removeprefix("datasets/"), "sha": self.server.commit})
        else:
            self.answer(body=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.status != 200:
            self.say({"error": "refused"}, self.server.status)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.say(
                {"url": f"{self.server.url}/{json.loads(body)['organization']}/{json.loads(body)['name']}"}
            )
        elif asked := re.match(r"/api/(datasets/\w+/\w+)/paths-info/", self.path):
            names = parse_qs(body.decode())["paths"] if body[:1] != b"{" else json.loads(body)["paths"]
            self.say([entry for name in names for entry in self.server.listed(asked[1], name)])
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self.say({"files": [{"path": name, **regular} for name in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.pushed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            repository = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            address = f"{self.server.url}/{repository}/commit/{'0' * 40}"
            self.say({"success": True, "commitOid": "0" * 40, "commitUrl": address, "hookOutput": ""})
        else:
            self.say({"warnings": [], "errors": []})

    def answer(self, body: bool) -> None:
        content = self.server.files.get(self.path)
        if content is None or self.server.status != 200:
            self.send_response(404 if content is None else self.server.status)
            self.send_header("X-Error-Code", "RepoNotFound" if content is None else "")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = re.search(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, last = (int(asked[1]), int(asked[2] or len(content))) if asked else (0, len(content))
        rest = content[start : last + 1]
        self.server.ranges.append(len(rest))
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{self.server.etag or hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.server.commit)
        self.send_header("Content-Length", str(len(rest)))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(rest) - 1}/{len(content)}")
        self.end_headers()
        if body and self.server.cuts:
            self.server.cuts -= 1
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(rest)

    def say(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running `Hub` that the real client library of this process talks to, with an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
