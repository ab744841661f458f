"""Artefacts, good and bad: read right, or one line that says what to do."""

from __future__ import annotations

import contextlib
import hashlib
import json

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vitesse.errors import ArtefactError
from vitesse.runtime import artefact as module
from vitesse.runtime.artefact import METADATA_KEY, bundled_artefact, cache_dir, kept_artefact, read_artefact
from vitesse.runtime.protobuf import MalformedError, read_onnx

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(path, message):
    with pytest.raises(ArtefactError, match=message) as caught:
        read_artefact(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_good_one_is_read(make_artefact):
    path = make_artefact({"licence": "MIT"})
    found = read_artefact(str(path))
    assert found.path == path
    assert found.manifest.licence == "MIT"
    assert found.manifest.class_names[3] == "class 3"
    assert (found.opset, found.input_shape) == (18, (None, 3, 24, 32))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.data == path.read_bytes()


@pytest.mark.parametrize("graph", [{"batch": 1}, {"size": ("h", "w")}, {"opset": 17}])
def test_free_sides_and_a_batch_of_one_are_taken(make_artefact, graph):
    read_artefact(make_artefact(**graph))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"manifest": None}, "plain ONNX model without a Vitesse manifest; make one with `vitesse export`"),
        ({"opset": 16}, "expected opset 17 or later, got 16"),
        ({"size": (24, 31)}, r"manifest says input \(B, 3, 24, 32\), the graph takes \(None, 3, 24, 31\)"),
        ({"channels": 4}, "the graph takes"),
        ({"batch": 4}, "the graph takes .* free batch"),
        ({"element": TensorProto.FLOAT16}, "expected a float32 input"),
        ({"manifest": {"schema": 99}}, "schema 99 is newer .* upgrade vitesse"),
        ({"manifest": {"schema": 99, "novelty": 1}}, "upgrade vitesse"),
        ({"manifest": {"schema": 0}}, "manifest schema"),
        ({"manifest": {"novelty": 1}}, "unknown key 'novelty'"),
        ({"manifest": {"class_names": ["one"]}}, "expected 10 class names, got 1"),
        ({"manifest": {"class_names": [1] * 10}}, "expected text"),
        ({"manifest": {"model": "tiny"}}, "manifest cannot be read"),
        (
            {"manifest": {"model": {"name": "tiny", "image_size": [24.0, 32.0], "num_classes": 10}}},
            "whole numbers",
        ),
        (
            {"manifest": {"preprocess": {"image_size": [24, 32], "mean": [float("nan")] * 3}}},
            "finite numbers",
        ),
        ({"manifest": {"preprocess": {"image_size": [24, 32], "std": [float("inf")] * 3}}}, "finite numbers"),
        ({"manifest": "{"}, "manifest cannot be read"),
        ({"manifest": "[]"}, "manifest cannot be read"),
        ({"manifest": "{}"}, "manifest cannot be read"),
        ({"manifest": "[" * 100_000}, "manifest cannot be read"),
        ({"manifest": ""}, "manifest cannot be read"),
    ],
    ids=str,
)
def test_a_bad_one_is_refused(make_artefact, graph, message):
    refused(make_artefact(**graph), message)


def test_weights_in_another_file_are_refused(make_artefact, tmp_path):
    model = onnx.load(make_artefact())
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4096, np.float32), "location"))
    inside = tmp_path / "inside.onnx"
    onnx.save(model, inside)
    read_artefact(inside)
    outside = tmp_path / "outside.onnx"
    onnx.save(model, outside, save_as_external_data=True, size_threshold=0)
    refused(outside, "its weights lie in another")


def test_weights_of_another_file_inside_a_branch_are_refused(make_artefact, tmp_path):
    model = onnx.load(make_artefact())
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    out = helper.make_tensor_value_info("t", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Constant", [], ["t"], value=tensor)], "branch", [], [out])
    model.graph.node.append(helper.make_node("If", ["mean"], ["x"], then_branch=branch, else_branch=branch))
    path = tmp_path / "branch.onnx"
    path.write_bytes(model.SerializeToString())
    refused(path, "its weights lie in another")


def test_graphs_nested_without_end_are_refused():
    def field(number, payload):
        head, length = bytes([number << 3 | 2]), len(payload)
        size = b""
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return head + size + bytes([length]) + payload

    inner = field(11, b"\x0a\x08location")
    for _ in range(500):
        inner = field(1, field(5, field(6, inner))) + field(11, b"\x0a\x01x")
    with pytest.raises(MalformedError, match="nested too deep"):
        read_onnx(b"\x08\x08" + field(7, inner))


def test_a_length_beyond_its_message_is_malformed():
    inputs = b"\x5a\x7f" + b"\x0a\x01x"  # graph input of 127 bytes, where three follow
    with pytest.raises(MalformedError, match="cut short"):
        read_onnx(b"\x08\x08\x3a" + bytes([len(inputs)]) + inputs)


def test_paths_that_are_no_file(tmp_path):
    refused(tmp_path / "none.onnx", "does not exist")
    refused(tmp_path, "is not a file")


def test_too_large_a_file_is_not_read(make_artefact, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    refused(make_artefact(), "less than 2 GiB")


@pytest.mark.parametrize("data", [b"", b"\0", b"PK\x03\x04" * 99, b"\xff" * 999, b'{"a": 1}', b"\x08\x08"])
def test_garbage_is_refused(tmp_path, data):
    path = tmp_path / "garbage.onnx"
    path.write_bytes(data)
    refused(path, "expected an ONNX model")


def test_cut_short_at_every_per_cent_it_is_refused(make_artefact, tmp_path):
    data = make_artefact().read_bytes()
    path = tmp_path / "cut.onnx"
    for percent in range(100):
        path.write_bytes(data[: len(data) * percent // 100])
        with pytest.raises(ArtefactError):
            read_artefact(path)


@quick
@given(st.data())
def test_flipped_bits_are_refused_or_harmless(tiny_artefact, tmp_path, data):
    bytes_ = bytearray(tiny_artefact.data)
    for _ in range(data.draw(st.integers(1, 4))):
        bytes_[data.draw(st.integers(0, len(bytes_) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "flipped.onnx"
    path.write_bytes(bytes_)
    with contextlib.suppress(ArtefactError):
        read_artefact(path)


@quick
@given(st.binary(max_size=200))
def test_any_bytes_are_a_model_or_malformed(data):
    with contextlib.suppress(MalformedError):
        read_onnx(data)


@quick
@given(
    st.dictionaries(st.text(max_size=8), st.text(max_size=30), max_size=4),
    st.lists(st.one_of(st.none(), st.integers(0, 2**40)), max_size=5),
    st.integers(1, 99),
)
def test_facts_are_those_that_onnx_reads(metadata, shape, opset):
    value = helper.make_tensor_value_info("pixels é", TensorProto.FLOAT, shape)
    model = helper.make_model(
        helper.make_graph([], "g", [value], []),
        opset_imports=[helper.make_opsetid("custom", 3), helper.make_opsetid("", opset)],
    )
    helper.set_model_props(model, metadata)
    facts = read_onnx(model.SerializeToString())
    assert facts.metadata == metadata
    assert (facts.opset, facts.input_name, facts.input_type) == (opset, "pixels é", TensorProto.FLOAT)
    assert facts.input_shape == tuple(shape)
    assert not facts.external


def test_the_manifest_is_the_one_that_onnx_reads(make_artefact):
    path = make_artefact()
    (entry,) = [p for p in onnx.load(path).metadata_props if p.key == METADATA_KEY]
    assert read_artefact(path).manifest.to_dict() == json.loads(entry.value)


def test_bundled_ones_lie_in_assets_and_go_by_their_names(monkeypatch, tmp_path):
    (tmp_path / "runtime").mkdir()
    (tmp_path / "assets").mkdir()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "runtime" / "artefact.py"))
    with pytest.raises(ArtefactError, match="expected a bundled artefact, it is not there; reinstall"):
        bundled_artefact()
    for name in ("any", module.DEFAULT_MODEL, "more"):
        (tmp_path / "assets" / f"{name}.onnx").touch()
    assert bundled_artefact() == tmp_path / "assets" / f"{module.DEFAULT_MODEL}.onnx"
    assert bundled_artefact("more") == tmp_path / "assets" / "more.onnx"
    assert module.bundled_names() == (module.DEFAULT_MODEL, "any", "more")


def test_a_kept_artefact_that_is_damaged_is_told_of_and_made_again(make_artefact, capsys):
    path = make_artefact()
    kept = kept_artefact(path)
    assert kept is not None
    assert kept.sha256 == read_artefact(path).sha256
    path.write_bytes(path.read_bytes()[:100])
    assert kept_artefact(path) is None
    assert f"{path}: expected an ONNX model" in capsys.readouterr().err
    path.unlink()
    assert kept_artefact(path) is None
    assert capsys.readouterr().err == ""


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("VITESSE_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("VITESSE_CACHE")
    assert cache_dir().name == "vitesse"
