"""What every registered model must do."""

from __future__ import annotations

import copy
import io
import pickle
import random
from fnmatch import fnmatchcase

import numpy as np
import pytest
import torch
from torch import nn

from vitesse.errors import ConfigError
from vitesse.models import build, create_model, registered_models
from vitesse.spec import ModelSpec, from_mapping, to_mapping
from vitesse.weights import load_weights

SAME_CODE = ["concatplexer_small_*", "concatplexer_base_*", "imagemux_small_*", "imagemux_base_*"]
SAME_CODE += ["vit_small_patch16_*", "vit_base_patch16_*", "vit_tiny_patch4_d9", "imagemux_tiny_n4"]
SAME_CODE += ["imagemux_tiny_patch4_n2", "concatplexer_tiny_n?_*", "concatplexer_tiny_patch4_n4*"]
SAME_CODE += ["imagemux_tiny_n?_orthogonal", "imagemux_tiny_patch4_n4_orthogonal"]
SAME_CODE += [
    "vit_small_patch16",
    "vit_base_patch16",
    "efficientvit_l2",
    "efficientvit_l3",
    "efficientvit_b3",
]
"""Other widths, depths and numbers of images of the same code, which `test_catalogue` builds and counts, and
`test_timm_parity` compares."""
MODELS = [name for name in registered_models() if not any(fnmatchcase(name, same) for same in SAME_CODE)]
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
WITH_MAPS = pytest.mark.parametrize("name", [name for name in MODELS if not name.endswith("_tome")])
SMALL = "efficientvit_m0"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """On a busy machine torch's threads wait for each other: seven times slower than one."""
    torch.set_num_threads(1)


def lively(name, **options):
    """A model in eval mode whose branches all take part: no BatchNorm gain or bias table is at 0 or 1."""
    torch.manual_seed(0)
    model = create_model(name, **options)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for key, parameter in model.named_parameters():
        if "bias" in key and parameter.ndim > 1:
            nn.init.normal_(parameter)
    return model.eval()


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@WITH_MAPS
@torch.no_grad()
def test_feature_maps_are_as_the_specs_say(name):
    extractor = create_model(name, features_only=True).eval()
    maps = extractor(images(1, 3, 128, 192))
    assert list(maps) == [spec.name for spec in extractor.feature_specs]
    for spec in extractor.feature_specs:
        assert maps[spec.name].shape == (1, spec.channels, 128 // spec.stride, 192 // spec.stride)
    strides = [spec.stride for spec in extractor.feature_specs]
    assert strides == sorted(strides)


@WITH_MAPS
@torch.no_grad()
def test_features_without_head_are_those_of_the_classifier(name):
    model = lively(name)
    x_BCHW = images(1, 3, 64, 64)
    expected = model.forward_features(x_BCHW)
    extractor = create_model(name, features_only=True).eval()
    extractor.backbone.load_state_dict(model.state_dict(), strict=False)
    found = extractor(x_BCHW)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not any(key.startswith("backbone.head") for key in extractor.state_dict())


@EVERY_MODEL
@torch.no_grad()
def test_classes_and_channels(name):
    model = create_model(name, num_classes=7, in_chans=5).eval()
    assert model(images(2, 5, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    "image_size", [(224, 224), (256, 256), (384, 384), (512, 512), (192, 320), (320, 192), (250, 333)]
)
@pytest.mark.parametrize("built_for_it", [True, False])
@torch.no_grad()
def test_any_image_size(image_size, built_for_it):
    model = lively(SMALL, image_size=image_size if built_for_it else None)
    logits = model(images(1, 3, *image_size))
    assert logits.shape == (1, 1000)
    assert torch.isfinite(logits).all()


@EVERY_MODEL
@torch.no_grad()
def test_an_image_size_that_is_not_square(name):
    assert lively(name, image_size=(192, 320))(images(1, 3, 192, 320)).shape == (1, 1000)


@EVERY_MODEL
@torch.no_grad()
def test_the_smallest_size_runs_and_less_is_refused(name):
    model = create_model(name, num_classes=3).eval()
    side = model.min_image_size
    assert torch.isfinite(model(images(1, 3, side, side))).all()
    for shape in [
        (1, 3, side - 1, side),
        (1, 3, side, side - 1),
        (1, 4, side, side),
        (3, side, side),
        (1, 3, side),
    ]:
        with pytest.raises(ConfigError, match=r"expected images of shape .*, got"):
            model(torch.zeros(shape))
    with pytest.raises(ConfigError, match=f"height and width .* {side}, got"):
        create_model(name, features_only=True)(torch.zeros(1, 3, 1, 1))


@EVERY_MODEL
def test_the_gradient_reaches_every_parameter(name):
    model = lively(name, num_classes=4, distilled=True).train()
    logits, distilled = model(images(max(2, model.mux_width), 3, 96, 96))
    (logits.square().sum() + distilled.square().sum()).backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@EVERY_MODEL
@torch.no_grad()
def test_weights_loaded_after_eval_have_effect(name):
    """Public implementations keep a bias gathered at the first forward in eval mode."""
    model, x_BCHW = lively(name), images(1, 3, 64, 64)
    before = model(x_BCHW)
    for key, tensor in model.state_dict().items():
        if "attention" in key or "mixer" in key:
            changed = model.state_dict() | {key: tensor + torch.randn(tensor.shape)}
            break
    model.load_state_dict(changed)
    after = model(x_BCHW)
    assert not torch.equal(before, after)
    fresh = build(model.spec).eval()
    fresh.load_state_dict(changed)
    assert torch.equal(fresh(x_BCHW), after)


@torch.no_grad()
def test_a_bias_table_loaded_after_eval_has_effect():
    model, x_BCHW = lively(SMALL), images(1, 3, 64, 64)
    before = model(x_BCHW)
    table = next(key for key in model.state_dict() if "attention_bias" in key)
    model.load_state_dict(model.state_dict() | {table: torch.randn_like(model.state_dict()[table])})
    assert not torch.equal(model(x_BCHW), before)


def through_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@EVERY_MODEL
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
@torch.no_grad()
def test_a_copy_computes_the_same_and_is_independent(name, copied):
    model, x_BCHW = lively(name), images(1, 3, 64, 64)
    before = model(x_BCHW)
    twin = copied(model)
    assert twin.spec == model.spec
    assert torch.equal(twin(x_BCHW), before)
    load_weights(twin, create_model(name, image_size=384).state_dict())  # tables are fitted to the copy
    assert not torch.equal(twin(x_BCHW), before)
    assert torch.equal(model(x_BCHW), before)


@EVERY_MODEL
@torch.no_grad()
def test_evaluation_is_deterministic_whatever_the_drop_path(name):
    model = lively(name, drop_path_rate=0.3)
    x_BCHW = images(1, 3, 64, 64)
    assert torch.equal(model(x_BCHW), model(x_BCHW))
    plain = create_model(name).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(x_BCHW), model(x_BCHW))


@EVERY_MODEL
@torch.no_grad()
def test_drop_path_drops_whole_branches_in_training_and_keeps_their_expectation(name):
    model = lively(name, drop_path_rate=0.4)
    last = [module for module in model.modules() if getattr(module, "drop_path", 0)][-1]
    seen = []
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images(1, 3, 32, 32))
    (x,) = seen
    branch = last.branch(x)
    last.training = True
    dropped = last(x.repeat(4000, *[1] * (x.ndim - 1))) - x
    kept = dropped.flatten(1).abs().sum(1) > 0
    torch.testing.assert_close(dropped[kept], branch.expand_as(dropped[kept]) / 0.6, rtol=1e-3, atol=1e-4)
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.04)


@EVERY_MODEL
def test_no_drop_path_means_training_is_deterministic(name):
    model = lively(name, num_classes=3).train()
    x_BCHW = images(2, 3, 64, 64)
    assert torch.equal(model(x_BCHW), model(x_BCHW))


@EVERY_MODEL
@torch.no_grad()
def test_a_distilled_model_gives_a_pair_in_training_and_the_mean_in_evaluation(name):
    model = lively(name, num_classes=3, distilled=True)
    x_BCHW = images(2, 3, 64, 64)
    mean = model(x_BCHW)
    model.head.training = True  # its own mode alone: the normalisations stay as they are
    pair = model(x_BCHW)
    assert [logits.shape for logits in pair] == [(2, 3), (2, 3)]
    assert not torch.allclose(*pair)
    torch.testing.assert_close(mean, (pair[0] + pair[1]) / 2)


@EVERY_MODEL
@torch.no_grad()
def test_memory_layout_and_company_in_the_batch_do_not_matter(name):
    model, x_BCHW = lively(name), images(3, 3, 128, 128)
    together = model(x_BCHW)
    alone = torch.cat([model(group_BCHW) for group_BCHW in x_BCHW.split(model.mux_width)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    channels_last = model.to(memory_format=torch.channels_last)(x_BCHW.to(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, together, rtol=1e-4, atol=1e-4)


@EVERY_MODEL
@torch.no_grad()
def test_the_spec_rebuilds_the_module(name):
    model = lively(name, num_classes=5, in_chans=2, image_size=(256, 192), distilled=True, drop_path_rate=0.1)
    twin = build(from_mapping(ModelSpec, to_mapping(model.spec))).eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    x_BCHW = images(1, 2, 96, 64)
    assert torch.equal(twin(x_BCHW), model(x_BCHW))
    assert repr(twin) == repr(model)


@EVERY_MODEL
@torch.no_grad()
def test_building_and_running_change_no_global_state(name):
    def state():
        return {
            "grad": torch.is_grad_enabled(),
            "dtype": torch.get_default_dtype(),
            "threads": torch.get_num_threads(),
            "precision": torch.get_float32_matmul_precision(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "cudnn": torch.backends.cudnn.benchmark,
            "random": random.getstate(),
            "numpy": np.random.get_state()[1].tolist(),
        }

    before = state()
    model = create_model(name, num_classes=3).eval()
    generator = torch.get_rng_state()
    model(images(1, 3, 64, 64))
    assert torch.equal(torch.get_rng_state(), generator)
    assert state() == before
