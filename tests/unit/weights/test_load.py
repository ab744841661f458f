"""Weights into models: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vitesse.errors import WeightsError
from vitesse.models import build
from vitesse.spec import ModelSpec, PreprocessSpec, to_mapping
from vitesse.weights import load_weights, read_checkpoint_header, save_weights
from vitesse.weights.keymaps import ORIGINAL, TIMM, keymap_for
from vitesse.weights.load import adapt_channels, start_from

NAME = "efficientvit_m0"
STEM = "stem.0.conv.weight"
HEAD = "head.classifier.linear.weight"


def model(**options):
    return build(ModelSpec(name=NAME, **options))


@pytest.fixture
def state(randomise):
    return {key: tensor.clone() for key, tensor in randomise(model()).state_dict().items()}


@pytest.fixture
def checkpoint(tmp_path, randomise):
    path = tmp_path / "model.safetensors"
    save_weights(path, randomise(model(num_classes=10)), {"class_names": [str(i) for i in range(10)]})
    return path


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


def test_values_that_the_models_dtype_cannot_hold_are_refused(state):
    target = model()
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    huge = {key: tensor.double() * 1e300 if key == STEM else tensor for key, tensor in state.items()}
    with pytest.raises(WeightsError, match=rf"{STEM}: expected finite numbers"):
        load_weights(target, huge)
    variance = STEM.replace("conv.weight", "bn.running_var")
    with pytest.raises(WeightsError, match=rf"{variance}: expected variances, 8 of 8 are below zero"):
        load_weights(target, state | {variance: -state[variance]})
    assert same(before, target.state_dict())


@pytest.mark.parametrize("naming", ["vitesse", TIMM, ORIGINAL])
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": {"model": s}}]
)
def test_any_naming_in_any_container(naming, wrap, state):
    target = model()
    report = load_weights(target, wrap(keymap_for(NAME).write(state, naming)))
    assert same(target.state_dict(), state)
    assert report.naming == naming
    assert len(report.loaded) == 693
    assert (report.missing, report.unexpected, report.resampled, report.fresh) == ((), (), (), ())
    assert (len(report.renamed) > 0) == (naming != "vitesse")
    assert len(report.skipped) == (6 if naming == ORIGINAL else 0)
    assert f"loaded 693 tensors from {naming} names" in report.explain()


def test_the_prefix_of_a_data_parallel_model_is_taken_off(state):
    target = model()
    load_weights(target, {f"module.{key}": tensor for key, tensor in state.items()})
    assert same(target.state_dict(), state)


def test_half_precision_is_read_into_the_models_own(state):
    target = model()
    load_weights(
        target,
        {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()},
    )
    assert target.state_dict()[STEM].dtype == torch.float32
    torch.testing.assert_close(target.state_dict()[STEM], state[STEM], atol=1e-3, rtol=1e-3)


def test_loading_after_eval_has_effect(state):
    target, x_BCHW = model().eval(), torch.randn(1, 3, 64, 64)
    before = target(x_BCHW)
    load_weights(target, state)
    assert not torch.equal(before, target(x_BCHW))


def test_saved_and_read_again(tmp_path, randomise):
    source = randomise(model(num_classes=10))
    save_weights(tmp_path / "w.safetensors", source, {"class_names": list("abcdefghij")})
    spec, metadata = read_checkpoint_header(tmp_path / "w.safetensors")
    assert spec == source.spec
    assert metadata == {"class_names": list("abcdefghij")}
    target = build(spec)
    load_weights(target, tmp_path / "w.safetensors")
    assert same(target.state_dict(), source.state_dict())


def test_channels_last_weights_and_a_preprocess_survive_the_file(tmp_path):
    source = model().to(memory_format=torch.channels_last)
    preprocess = to_mapping(PreprocessSpec())
    save_weights(tmp_path / "w.safetensors", source, {"preprocess": preprocess, "provenance": {"seed": 1}})
    target = model()
    load_weights(target, tmp_path / "w.safetensors")
    assert same(target.state_dict(), source.state_dict())
    assert read_checkpoint_header(tmp_path / "w.safetensors")[1] == {
        "preprocess": preprocess,
        "provenance": {"seed": 1},
    }


def test_a_failed_write_leaves_the_last_good_file(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()

    def cut(tensors, path, header):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("vitesse.weights.files.save_file", cut)
    with pytest.raises(OSError, match="disk full"):
        save_weights(checkpoint, model())
    assert checkpoint.read_bytes() == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_metadata_with_an_unknown_key_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="did you mean class_names"):
        save_weights(tmp_path / "w.safetensors", model(), {"class_name": []})
    with pytest.raises(WeightsError, match="expected a model with a spec"):
        save_weights(tmp_path / "w.safetensors", nn.Linear(1, 1))


def refusal(target, source, **options):
    """The message of a refused load, which must be one line and leave the model as it was."""
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(target, source, **options)
    assert same(target.state_dict(), before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_absent_truncated_or_foreign_file_is_refused(tmp_path, checkpoint):
    assert "no such file" in refusal(model(), tmp_path / "none.safetensors")
    whole = checkpoint.read_bytes()
    for size in (0, 5, 1000, len(whole) - 1):
        checkpoint.write_bytes(whole[:size])
        message = refusal(model(num_classes=10), checkpoint)
        assert str(checkpoint) in message
        assert f"these {size} bytes are none" in message
    pickled = tmp_path / "w.pth"
    torch.save({}, pickled)
    assert "run vitesse convert first" in refusal(model(), pickled)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"model": 1}', json.dumps({"model": {"name": "x", "depth": 3}})]
)
def test_a_damaged_header_is_refused(tmp_path, text):
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", {"vitesse": text})
    with pytest.raises(WeightsError, match=r"w\.safetensors: its 'vitesse' header cannot be read"):
        read_checkpoint_header(tmp_path / "w.safetensors")


def test_a_file_without_header_names_no_model(tmp_path, state):
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="say which it is"):
        read_checkpoint_header(tmp_path / "w.safetensors")
    load_weights(model(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(state, bad):
    state["stages.1.subsample.merge.se.reduce.bias"][3] = bad
    message = refusal(model(), keymap_for(NAME).write(state, ORIGINAL))
    assert "blocks2.1.se.fc1.bias: expected finite numbers, 1 of 64 are not" in message


def test_another_architecture_is_refused(tmp_path, checkpoint):
    other = ModelSpec(name="efficientvit_m1")
    assert f"expected weights of efficientvit_m1, the file holds {NAME}" in refusal(build(other), checkpoint)
    message = refusal(build(other), keymap_for(NAME).write(model().state_dict(), TIMM))
    assert "patch_embed.conv1.conv.weight: expected shape (16, 3, 3, 3) of efficientvit_m1" in message
    assert "got (8, 3, 3, 3)" in message
    assert "none of its tensors is in the file (0.weight, 0.bias" in refusal(
        model(), nn.Sequential(nn.Linear(1, 1)).state_dict()
    )


def test_another_number_of_classes_says_what_to_do(checkpoint):
    message = refusal(model(num_classes=100), checkpoint)
    assert "the file's head has 10 classes, the model's 100: pass num_classes=10, or head='new'" in message


def test_a_new_head_keeps_the_backbone_and_says_so(checkpoint):
    target = model(num_classes=100)
    head = target.state_dict()[HEAD].clone()
    report = load_weights(target, checkpoint, head="new")
    assert torch.equal(target.state_dict()[HEAD], head)
    assert report.missing == report.unexpected == ()
    assert HEAD in report.fresh
    assert HEAD in report.skipped
    assert len(report.loaded) + len(report.fresh) == 693


def test_training_goes_on_with_a_head_of_the_same_classes_only(checkpoint):
    kept, fresh = model(num_classes=10), model(num_classes=100)
    head = fresh.state_dict()[HEAD].clone()
    assert start_from(kept, checkpoint).fresh == ()
    assert HEAD in start_from(fresh, checkpoint).fresh
    assert torch.equal(fresh.state_dict()[HEAD], head)
    assert torch.equal(kept.state_dict()[HEAD], load_file(checkpoint)[HEAD])
    with pytest.raises(WeightsError, match=f"expected weights of efficientvit_m1, the file holds {NAME}"):
        start_from(build(ModelSpec(name="efficientvit_m1")), checkpoint)


def test_missing_and_unexpected_tensors_are_refused_unless_allowed(state):
    del state[STEM]
    state["extra.weight"] = torch.zeros(1)
    message = refusal(model(), state)
    assert f"1 missing ({STEM})" in message
    assert "1 unexpected (extra.weight)" in message
    report = load_weights(model(), state, strict=False)
    assert (report.missing, report.unexpected) == ((STEM,), ("extra.weight",))


def test_a_file_without_head_asks_for_a_new_one(state):
    bare = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    assert "pass head='new' for a fresh head" in refusal(model(), bare)
    assert load_weights(model(), bare, head="new").missing == ()


def test_two_names_of_one_parameter_are_not_merged(state):
    foreign = keymap_for(NAME).write(state, TIMM)
    foreign["stages.0.blocks.0.dw0.branch.conv.weight"] = torch.zeros(64, 1, 3, 3)
    assert "1 unexpected (stages.0.blocks.0.dw0.branch.conv.weight)" in refusal(model(), foreign)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"a": {"b": torch.zeros(1)}}])
def test_a_mapping_of_anything_but_tensors_is_refused(content):
    assert "given weights" in refusal(model(), content)


def test_integers_are_no_weights(state):
    state[STEM] = state[STEM].to(torch.int8)
    assert f"{STEM}: expected torch.float32, got torch.int8" in refusal(model(), state)


def test_bias_tables_of_another_image_size_are_resampled_and_reported(state):
    target = model(image_size=(384, 384))
    report = load_weights(target, state)
    assert len(report.resampled) == 6
    assert all(key.endswith("attention_bias_ARS") for key in report.resampled)
    key = report.resampled[0]
    expected = nn.functional.interpolate(
        state[key][None], size=(12, 12), mode="bicubic", align_corners=False
    )[0]
    torch.testing.assert_close(target.state_dict()[key], expected)


def test_a_table_with_another_number_of_heads_is_refused(state):
    key = "stages.0.blocks.0.mixer.branch.attention.attention_bias_ARS"
    state[key] = torch.zeros(3, 7, 7)
    assert f"{key}: expected shape (4, 7, 7)" in refusal(model(), state)


@pytest.mark.parametrize("in_chans", [1, 2, 4, 5, 6])
def test_the_first_convolution_answers_equal_channels_as_before(in_chans, state):
    target = model(in_chans=in_chans)
    report = load_weights(target, state, first_conv="adapt")
    assert report.resampled == (STEM,)
    grey = torch.randn(2, 1, 8, 8)
    answers = [
        nn.functional.conv2d(grey.expand(-1, weight.shape[1], -1, -1), weight)
        for weight in (state[STEM], target.state_dict()[STEM])
    ]
    torch.testing.assert_close(answers[1], answers[0], atol=1e-5, rtol=1e-5)
    assert "with 4 channels, got (8, 3, 3, 3)" in refusal(model(in_chans=4), state)


def test_more_channels_keep_the_filters_of_the_old_ones():
    weight = torch.randn(2, 3, 3, 3)
    adapted = adapt_channels(weight, 4)
    torch.testing.assert_close(adapted[:, 1:3], weight[:, 1:3])
    torch.testing.assert_close(adapted[:, 0], weight[:, 0] / 2)
    torch.testing.assert_close(adapted[:, 3], weight[:, 0] / 2)
