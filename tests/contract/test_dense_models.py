"""What every model that gives a class to each pixel must do."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitesse.errors import ConfigError, WeightsError
from vitesse.export import fold
from vitesse.models import build, create_model, list_models, load_checkpoint, registered_models
from vitesse.models.backbone import DenseModel
from vitesse.models.efficientvit_mit import CONFIGS, MultiScaleLinearAttention
from vitesse.models.loading import load_torch
from vitesse.spec import ModelSpec, PreprocessSpec, from_mapping, to_mapping
from vitesse.weights import load_weights, save_weights
from vitesse.weights.keymaps import ORIGINAL, TIMM, keymap_for
from vitesse.weights.load import start_from

NAMES = registered_models("segment")
MODELS = [name for name in NAMES if "_b0_" in name or "_b1_ade" in name or "_l1_" in name]
"""The others are the same code with other widths, which `test_catalogue` builds and counts."""
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
SMALL = "efficientvit_seg_b0_cityscapes"
BOTH_SERIES = pytest.mark.parametrize("name", [SMALL, "efficientvit_seg_l1_ade20k"])


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """On a busy machine torch's threads wait for each other: seven times slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def a_small_l1():
    """The L series' code in a backbone that is built and run in a moment."""
    with pytest.MonkeyPatch.context() as patch:
        small = dataclasses.replace(
            CONFIGS["efficientvit_l1"], embed_dim=(8, 16, 32, 64, 128), depths=(1, 1, 1, 1, 1)
        )
        patch.setitem(CONFIGS, "efficientvit_l1", small)
        yield


def lively(name, **options):
    """A model in eval mode whose branches all take part: no BatchNorm gain is at 0 or 1."""
    torch.manual_seed(0)
    model = create_model(name, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_they_are_listed_by_their_task():
    assert list_models("*_seg_*", task="segment") == NAMES
    assert not set(NAMES) & set(list_models())
    assert all(create_model(name).task == "segment" for name in (SMALL,))


@EVERY_MODEL
@torch.no_grad()
def test_logits_lie_on_the_finest_map_in_both_modes(name):
    model = lively(name, num_classes=7, in_chans=5)
    x_BCHW = images(2, 5, 64, 96)
    assert model(x_BCHW).shape == model.train()(x_BCHW).shape == (2, 7, 8, 12)
    assert isinstance(model, DenseModel)
    maps = model.forward_features(x_BCHW)
    for spec in model.backbone.feature_specs:
        assert maps[spec.name].shape == (2, spec.channels, 64 // spec.stride, 96 // spec.stride)


@pytest.mark.parametrize("image_size", [(32, 32), (64, 160), (33, 47), (72, 100), (81, 63), (250, 333)])
@torch.no_grad()
def test_any_image_size(image_size):
    height, width = image_size
    model = lively(SMALL)
    logits, (classes, same_logits) = (
        model(images(1, 3, *image_size)),
        model.deployed()(images(1, 3, *image_size)),
    )
    assert logits.shape == (1, 19, -(-height // 8), -(-width // 8))
    assert torch.isfinite(logits).all()
    assert classes.shape == (1, height, width)
    assert torch.equal(logits, same_logits)


@EVERY_MODEL
def test_what_cannot_work_is_refused_with_what_can(name):
    model = create_model(name, num_classes=3)
    for shape in [(1, 3, 31, 64), (1, 3, 64, 31), (1, 4, 64, 64), (3, 64, 64)]:
        with pytest.raises(ConfigError, match=r"expected images of shape .*at least 32, got"):
            model(torch.zeros(shape))
    with pytest.raises(ConfigError, match=f"distilled: expected a classifier, got {name}"):
        create_model(name, distilled=True)
    with pytest.raises(ConfigError, match=f"features_only: expected one of .* got {name}"):
        create_model(name, features_only=True)


def test_classes_and_size_are_those_of_the_data_set_unless_said():
    assert create_model(SMALL).spec == ModelSpec(name=SMALL, image_size=(1024, 2048), num_classes=19)
    ade20k = create_model("efficientvit_seg_b1_ade20k", num_classes=4, image_size=(64, 96)).spec
    assert (ade20k.num_classes, ade20k.image_size) == (4, (64, 96))


@EVERY_MODEL
def test_the_gradient_reaches_every_parameter(name):
    model = lively(name, num_classes=4).train()
    model(images(2, 3, 64, 96)).square().sum().backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@EVERY_MODEL
@torch.no_grad()
def test_weights_loaded_after_eval_have_effect(name):
    model, x_BCHW = lively(name), images(1, 3, 64, 64)
    before = model(x_BCHW)
    name = next(key for key in model.state_dict() if "qkv" in key)
    changed = model.state_dict() | {name: torch.randn_like(model.state_dict()[name])}
    model.load_state_dict(changed)
    after = model(x_BCHW)
    assert not torch.allclose(before, after)
    fresh = build(model.spec).eval()
    fresh.load_state_dict(changed)
    assert torch.equal(fresh(x_BCHW), after)


@EVERY_MODEL
@torch.no_grad()
def test_company_in_the_batch_and_memory_layout_do_not_matter(name):
    model, x_BCHW = lively(name), images(3, 3, 64, 96)
    together = model(x_BCHW)
    limits = {"rtol": 1e-4, "atol": 1e-5 * together.abs().max().item()}
    torch.testing.assert_close(torch.cat([model(x[None]) for x in x_BCHW]), together, **limits)
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last(x_BCHW), together, **limits)


@EVERY_MODEL
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
@torch.no_grad()
def test_a_copy_computes_the_same_and_is_independent(name, copied):
    model, x_BCHW = lively(name), images(1, 3, 64, 64)
    before = model(x_BCHW)
    twin = copied(model)
    assert (twin.spec, twin.fresh_prefixes) == (model.spec, ("head.",))
    assert torch.equal(twin(x_BCHW), before)
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(model(x_BCHW), before)


@EVERY_MODEL
@torch.no_grad()
def test_the_spec_rebuilds_the_module_and_drop_path_leaves_evaluation_alone(name):
    model = lively(name, num_classes=5, in_chans=2, drop_path_rate=0.3)
    twin = build(from_mapping(ModelSpec, to_mapping(model.spec))).eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    x_BCHW = images(1, 2, 96, 64)
    assert torch.equal(twin(x_BCHW), model(x_BCHW))
    assert repr(twin) == repr(model)
    assert max(getattr(module, "drop_path", 0) for module in model.backbone.modules()) == 0.3


@EVERY_MODEL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_keeps_the_logits_where_attention_s_sums_would_overflow(name, dtype):
    model, x_BCHW = lively(name, num_classes=5), images(1, 3, 64, 96)
    for module in model.modules():
        if isinstance(module, MultiScaleLinearAttention):  # these factors cancel out
            module.qkv.weight.mul_(50)
            module.proj.conv.weight.div_(50)
    expected = model(x_BCHW)
    with torch.autocast("cpu", dtype=dtype):
        under_autocast = model(x_BCHW)
    cast = copy.deepcopy(model).to(dtype)(x_BCHW.to(dtype))
    assert cast.dtype == dtype
    for found in (under_autocast, cast):
        assert torch.cosine_similarity(found.float().flatten(1), expected.flatten(1)).min() > 0.98


@EVERY_MODEL
@torch.no_grad()
def test_a_checkpoint_comes_back_as_it_was(name, tmp_path):
    model, x_BCHW = lively(name, num_classes=3, image_size=(64, 96)), images(1, 3, 64, 96)
    names = ["road", "sky", "car"]
    save_weights(tmp_path / "m.safetensors", model, {"class_names": names})
    found, metadata = load_checkpoint(tmp_path / "m.safetensors")
    assert (found.spec, metadata["class_names"]) == (model.spec, names)
    assert torch.equal(found.eval()(x_BCHW), model(x_BCHW))
    manifest = load_torch(tmp_path / "m.safetensors")[1]
    assert (manifest.task, manifest.class_names) == ("segment", tuple(names))
    resize = "short" if "ade20k" in name else "fit"
    assert manifest.preprocess == PreprocessSpec(image_size=(64, 96), resize=resize), "all of the picture"


@BOTH_SERIES
@torch.no_grad()
def test_the_original_release_s_names_come_in_with_their_own_classes(name, tmp_path):
    model, x_BCHW = lively(name, num_classes=3), images(1, 3, 64, 96)
    save_file(keymap_for(name).write(model.state_dict(), ORIGINAL), tmp_path / "m.safetensors")
    found, _ = load_checkpoint(tmp_path / "m.safetensors", name)
    assert found.spec.num_classes == 3
    assert torch.equal(found.eval()(x_BCHW), model(x_BCHW))
    fresh = build(ModelSpec(name=name, num_classes=9))
    report = start_from(fresh, tmp_path / "m.safetensors")
    assert report.naming == ORIGINAL
    assert set(report.fresh) == {"head.classifier.weight", "head.classifier.bias"}
    assert len(report.loaded) == len(model.state_dict()) - 2


@BOTH_SERIES
@pytest.mark.parametrize("naming", ["ours", TIMM, ORIGINAL])
def test_a_classifier_starts_the_backbone(name, naming, tmp_path):
    model = build(ModelSpec(name=name, num_classes=4))
    (source,) = model.starts_from
    classifier, path = lively(source), tmp_path / "m.safetensors"
    if naming == "ours":
        save_weights(path, classifier)
    else:
        save_file(keymap_for(source).write(classifier.state_dict(), naming), path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = start_from(model, path)
    after, theirs = model.state_dict(), classifier.state_dict()
    assert report.unexpected == report.missing == ()
    assert all(key.startswith("head.") for key in report.fresh)
    assert all(torch.equal(after[key], before[key]) for key in report.fresh)
    assert {f"backbone.{key}" for key in theirs if not key.startswith("head.")} == set(report.loaded)
    assert all(torch.equal(after[key], theirs[key.removeprefix("backbone.")]) for key in report.loaded)
    assert len(report.skipped) == sum(key.startswith("head.") for key in theirs)
    with pytest.raises(WeightsError, match="missing"):
        load_weights(model, classifier.state_dict())


def test_another_architecture_s_checkpoint_does_not_start_it(tmp_path):
    save_weights(tmp_path / "m.safetensors", create_model("efficientvit_b1", num_classes=2))
    with pytest.raises(WeightsError, match=f"expected weights of {SMALL} or efficientvit_b0, the file holds"):
        start_from(create_model(SMALL), tmp_path / "m.safetensors")


@EVERY_MODEL
@torch.no_grad()
def test_a_folded_model_computes_the_same(name):
    model = lively(name)
    folded, x_BCHW = fold(model), images(2, 3, 81, 96)
    expected = model(x_BCHW)
    assert (folded(x_BCHW) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    assert expected.std() > 0.01, "the logits say something of the picture"
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    twice = fold(folded)
    assert torch.equal(twice(x_BCHW), folded(x_BCHW))
