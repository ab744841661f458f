"""Checkpoints to models, foreign files to checkpoints and back."""

from __future__ import annotations

import argparse
import contextlib
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vitesse.errors import WeightsError
from vitesse.models import build, convert, load_checkpoint
from vitesse.spec import ModelSpec
from vitesse.weights import read_checkpoint_header, save_weights
from vitesse.weights.convert import read_foreign
from vitesse.weights.keymaps import ORIGINAL, TIMM, keymap_for

NAME = "efficientvit_m0"


@pytest.fixture
def model(randomise):
    return randomise(build(ModelSpec(name=NAME, num_classes=10, in_chans=1, distilled=True)))


@pytest.fixture
def released(model, tmp_path):
    """The model's weights as the original release would store them."""
    path = tmp_path / "efficientvit_m0.pth"
    torch.save({"model": keymap_for(NAME).write(model.state_dict(), ORIGINAL), "epoch": 299}, path)
    return path


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_converting_our_own_checkpoint_keeps_what_it_says(tmp_path):
    """Without the header's help, 64 pixels, classes and preprocessing would be lost."""
    mine = build(ModelSpec(name=NAME, image_size=(64, 64), num_classes=3))
    metadata = {"class_names": ["a", "b", "c"], "preprocess": {"image_size": [64, 64], "crop_pct": 1.0}}
    save_weights(tmp_path / "w.safetensors", mine, metadata | {"provenance": {"seed": 1}})
    out = tmp_path / "folder" / "out.safetensors"
    convert(tmp_path / "w.safetensors", name=NAME, out=out)
    spec, kept = read_checkpoint_header(out)
    assert spec == mine.spec
    assert {key: kept[key] for key in metadata} == metadata
    assert (kept["provenance"]["seed"], kept["provenance"]["converted_from"]) == (1, "w.safetensors")
    for options, told in [
        ({"name": "efficientvit_m1"}, "expected weights of efficientvit_m1, the file holds efficientvit_m0"),
        ({"image_size": 224}, r"expected weights for \(224, 224\), got \(64, 64\)"),
        ({"num_classes": 4}, "expected 4 classes, the file has 3"),
    ]:
        with pytest.raises(WeightsError, match=told):
            convert(
                tmp_path / "w.safetensors", **{"name": NAME, "out": tmp_path / "x.safetensors", **options}
            )


def test_foreign_weights_of_other_channels_get_no_statistics_of_photos(tmp_path):
    four = build(ModelSpec(name=NAME, in_chans=4))
    torch.save(keymap_for(NAME).write(four.state_dict(), TIMM), tmp_path / "w.pth")
    convert(tmp_path / "w.pth", name=NAME, out=tmp_path / "out.safetensors")
    assert read_checkpoint_header(tmp_path / "out.safetensors")[1].keys() == {"provenance"}


def test_a_checkpoint_rebuilds_its_model(model, tmp_path):
    save_weights(tmp_path / "w.safetensors", model, {"class_names": ["a"]})
    for arch in (None, NAME, f"{NAME}.r224_in1k"):
        loaded, metadata = load_checkpoint(tmp_path / "w.safetensors", arch)
        assert loaded.spec == model.spec
        assert metadata == {"class_names": ["a"]}
        assert same(loaded, model)
    with pytest.raises(WeightsError, match=f"expected weights of efficientvit_m1, the file holds {NAME}"):
        load_checkpoint(tmp_path / "w.safetensors", "efficientvit_m1")


@pytest.mark.parametrize("naming", [TIMM, ORIGINAL])
def test_foreign_safetensors_need_the_architecture(naming, model, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(keymap_for(NAME).write(model.state_dict(), naming), path)
    loaded, metadata = load_checkpoint(path, NAME)
    assert loaded.spec == model.spec
    assert metadata == {}
    assert same(loaded, model)
    with pytest.raises(WeightsError, match="say which it is"):
        load_checkpoint(path)


def test_a_release_becomes_a_checkpoint(released, model, tmp_path):
    out = tmp_path / "w.safetensors"
    report = convert(released, name=NAME, out=out)
    assert (report.naming, report.missing, report.unexpected) == (ORIGINAL, (), ())
    loaded, metadata = load_checkpoint(out)
    assert same(loaded, model)
    assert loaded.spec == model.spec
    assert metadata["provenance"]["converted_from"] == "efficientvit_m0.pth"
    assert len(metadata["provenance"]["sha256"]) == 64


@pytest.mark.parametrize("to", [TIMM, ORIGINAL])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_and_goes_out_again_under_foreign_names(to, suffix, released, model, tmp_path):
    ours, out = tmp_path / "w.safetensors", tmp_path / f"out{suffix}"
    convert(released, name=NAME, out=ours)
    convert(ours, name=NAME, out=out, to=to)
    found = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)["model"]
    expected = keymap_for(NAME).write(model.state_dict(), to)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_legacy_torch_file_is_read_too(model, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    assert convert(path, name=NAME, out=tmp_path / "w.safetensors").naming == "vitesse"


def refusal(source, tmp_path, **options):
    out = options.pop("out", tmp_path / "out.safetensors")
    with pytest.raises(WeightsError) as caught:
        convert(source, out=out, **({"name": NAME} | options))
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not list(tmp_path.glob(".*tmp*"))
    return str(caught.value)


class Payload:
    """Would run when unpickled."""

    ran = False

    def __reduce__(self):
        return setattr, (Payload, "ran", True)


@pytest.mark.parametrize(
    ("value", "named"), [(argparse.Namespace(lr=1), "argparse.Namespace"), (Payload(), "setattr")]
)
def test_code_in_a_pickle_is_refused_by_name_and_not_run(value, named, tmp_path):
    torch.save({"model": {}, "args": value}, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth", tmp_path)
    assert "refused, reading it would run code of" in message
    assert named in message
    assert not Payload.ran


def test_a_damaged_file_is_refused(released, tmp_path):
    whole = released.read_bytes()
    for content in (b"", b"not a torch file", whole[:1000], whole[:-100]):
        released.write_bytes(content)
        assert "expected a whole torch file" in refusal(released, tmp_path)
    assert "no such file" in refusal(tmp_path / "none.pth", tmp_path)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.booleans())
def test_damage_anywhere_gives_one_line(at, value, cut, tmp_path_factory):
    """In an old pickle, where every byte is an instruction or its argument."""
    buffer = io.BytesIO()
    torch.save({f"w{i}": torch.zeros(3) for i in range(4)}, buffer, _use_new_zipfile_serialization=False)
    data = bytearray(buffer.getvalue())
    at %= len(data)
    data[at] = value
    path = tmp_path_factory.mktemp("damage") / "w.pth"
    path.write_bytes(bytes(data[:at] if cut else data))
    with contextlib.suppress(WeightsError):
        read_foreign(path)


def test_odd_contents_are_refused(tmp_path):
    circle: dict = {}
    circle["model"] = circle
    for content, told in [
        ({0: torch.zeros(2)}, "expected named tensors, one is called 0"),
        ({"w": torch.eye(3).to_sparse()}, "w: expected a dense tensor"),
        ({"w": torch.empty(3, device="meta")}, "w: expected a dense tensor"),
        (circle, "model: expected a tensor, got dict"),
    ]:
        torch.save(content, tmp_path / "w.pth")
        assert told in refusal(tmp_path / "w.pth", tmp_path)


def test_a_file_of_no_tensors_is_refused(tmp_path):
    torch.save({"model": {"epoch": 3}}, tmp_path / "w.pth")
    assert "epoch: expected a tensor, got int" in refusal(tmp_path / "w.pth", tmp_path)


def test_what_is_not_all_of_the_model_is_refused(released, tmp_path):
    assert "expected shape" in refusal(released, tmp_path, name="efficientvit_m1")
    assert "the file's head has 10 classes, the model's 5" in refusal(released, tmp_path, num_classes=5)
    assert "with the image size that they were trained for" in refusal(released, tmp_path, image_size=384)
    content = torch.load(released, weights_only=True)
    del content["model"]["patch_embed.0.c.weight"]
    torch.save(content, released)
    assert "1 missing (stem.0.conv.weight)" in refusal(released, tmp_path)


def test_another_suffix_is_refused(released, tmp_path):
    assert "ending in .safetensors" in refusal(released, tmp_path, out=tmp_path / "out.bin")
    assert ".safetensors, .pth or .pt" in refusal(released, tmp_path, out=tmp_path / "out.bin", to=TIMM)
    assert "did you mean original" in refusal(released, tmp_path, to="orginal")
