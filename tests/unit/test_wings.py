"""The two promises of the house: the runtime wing knows no torch, and imports point down."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "vitesse"
LEVELS = (
    {"errors", "provenance"},
    {"files", "spec", "progress"},
    {"results", "catalogue"},
    {"runtime", "layers", "weights"},
    {"data", "inputs", "doctor"},
    {"heads"},
    {"models"},
    {"metrics"},
    {"train", "export"},
    {"predictors"},
    {"evaluate", "publish"},
    {"ship"},
    {"bench"},
    {"analyze", "search", "serve"},
    {"prune"},
    {"cli"},
    {"__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
INSIDE_RUNTIME = (
    {"header", "protobuf"},
    {"decode", "artefact", "drawing"},
    {"bands", "overlay"},
    {"imaging", "autoselect", "compiled", "gallery"},
    {"engines", "postprocess", "sources"},
    {"multiplex", "windows"},
    {"merging", "sliding"},
    {"tiling"},
    {"predictor"},
    {"promptable"},
)
LIGHT = [
    "vitesse",
    *(f"vitesse.{name}" for name in ("errors", "files", "spec", "results", "predictors", "inputs")),
]
LIGHT += [f"vitesse.runtime.{path.stem}" for path in sorted((SOURCE / "runtime").glob("[!_]*.py"))]
BANNED = ("torch", "timm", "onnx", "torchvision", "safetensors", "accelerate", "pyarrow")


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after a statement, in a fresh process."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def imports_of(path: Path) -> set[str]:
    """Dotted names below `vitesse` that a file imports, wherever in it; but not for type checking alone."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("vitesse.") for name in found if name.startswith("vitesse.")}


def violations(files: dict[str, set[str]], levels: dict[str, int]) -> list[str]:
    """`room -> room` for every import that does not point down."""
    return sorted(
        f"{file} imports {name}"
        for file, names in files.items()
        for name in names
        if (here := file.partition(".")[0]) != (there := name.partition(".")[0])
        and levels[there] >= levels[here]
    )


def rooms() -> dict[str, set[str]]:
    files = {
        path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", "."): path
        for path in SOURCE.rglob("*.py")
    }
    return {name: imports_of(path) for name, path in files.items() if name != "__init__"}


def test_the_runtime_wing_is_torch_free():
    assert loaded_by(f"import {', '.join(LIGHT)}").isdisjoint(BANNED)


def test_predicting_is_torch_free(make_artefact, photo, encode, tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode(photo()))
    call = f"vitesse.load({str(make_artefact())!r}).predict([{str(tmp_path / 'a.jpg')!r}])"
    loaded = loaded_by(f"import vitesse; {call}")
    assert loaded.isdisjoint(BANNED)
    assert "numpy" in loaded


def test_predicting_masks_is_torch_free(instance_artefact):
    code = (
        "import numpy, vitesse; "
        f"(r,) = vitesse.predict([numpy.zeros((64, 96, 3), 'uint8')], {str(instance_artefact)!r}, "
        "engine='onnxruntime'); assert r.predictions[0].mask().any()"
    )
    assert loaded_by(code).isdisjoint(BANNED)


def test_segmenting_is_torch_free(make_promptable):
    code = (
        "import numpy; from vitesse.predictors import load_masks; "
        f"sam = load_masks({str(make_promptable())!r}, engine='onnxruntime'); "
        "sam.set_image(numpy.zeros((30, 40, 3), 'uint8')); sam.predict(points=[(1, 1)])"
    )
    assert loaded_by(code).isdisjoint(BANNED)


def test_the_probe_can_fail(tmp_path):
    (tmp_path / "torch.py").touch()
    assert "torch" in loaded_by(f"sys.path.insert(0, {str(tmp_path)!r}); import vitesse, torch")
    assert "onnx" in loaded_by("import vitesse.spec, onnx")


def test_importing_loads_nothing_heavy():
    assert loaded_by("import vitesse").isdisjoint({"numpy", "PIL", "onnxruntime", "openvino"})


def test_engines_are_imported_only_when_made():
    assert loaded_by("import vitesse.runtime.predictor").isdisjoint({"onnxruntime", "openvino"})


WATCHED = """
import sys
watched = ("socket.connect", "socket.bind", "subprocess.", "os.exec", "os.fork", "os.posix_spawn")
def hook(event, args):
    if event.startswith(watched):
        raise SystemExit(f"import did {event}")
sys.addaudithook(hook)
"""


def watch(statement: str) -> int:
    return subprocess.run([sys.executable, "-c", WATCHED + statement], capture_output=True).returncode


def test_importing_opens_no_socket_and_starts_no_process():
    assert watch(f"import {', '.join(LIGHT)}") == 0


def test_the_watch_can_fail():
    assert watch("import subprocess; subprocess.run(['true'])") == 1
    assert watch("import socket; socket.create_connection(('127.0.0.1', 9))") == 1


def test_every_room_has_a_level():
    unknown = {name.partition(".")[0] for name in rooms()} - LEVEL.keys()
    assert not unknown, f"say in LEVELS where {sorted(unknown)} belong"


def test_imports_point_down():
    assert violations(rooms(), LEVEL) == []


def test_imports_inside_the_runtime_point_down():
    levels = {name: level for level, names in enumerate(INSIDE_RUNTIME) for name in names}
    inside = {
        name.removeprefix("runtime."): {n.removeprefix("runtime.") for n in names if n.startswith("runtime.")}
        for name, names in rooms().items()
        if name.startswith("runtime.") and not name.endswith("__init__")
    }
    assert inside.keys() == levels.keys()
    assert violations(inside, levels) == []


def graph_of(files: dict[str, set[str]]) -> dict[str, set[str]]:
    """File by file: an imported name belongs to the longest file name that it begins with."""

    def home(name: str) -> str | None:
        parts = name.split(".")
        prefixes = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        candidates = [file for prefix in prefixes for file in (prefix, f"{prefix}.__init__")]
        return next((file for file in candidates if file in files), None)

    return {
        file: {there for name in names if (there := home(name))} - {file} for file, names in files.items()
    }


def test_no_file_imports_itself_in_a_circle():
    tuple(graphlib.TopologicalSorter(graph_of(rooms())).static_order())


def test_a_circle_is_found():
    circle = {"a.__init__": {"a.b.f"}, "a.b": {"c.g"}, "c": {"a.f"}}
    sorter = graphlib.TopologicalSorter(graph_of(circle))
    with pytest.raises(graphlib.CycleError):
        sorter.prepare()


def test_a_violation_is_found(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    from vitesse.models import create_model\n    import vitesse.cli.main\n")
    found = imports_of(path)
    assert found == {"models.create_model", "cli.main"}
    assert violations({"spec": found}, LEVEL) == ["spec imports cli.main", "spec imports models.create_model"]
    assert violations({"runtime.engines": {"weights.load"}}, LEVEL) == [
        "runtime.engines imports weights.load"
    ]
    assert violations({"cli.main": found, "models.a": {"models.b", "data.x"}}, LEVEL) == []
