"""Where a run's weights and its teacher come from: files, the Hub, timm; each in its own normalisation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from vitesse.data.sources import open_source
from vitesse.errors import ConfigError, UnknownModelError, WeightsError
from vitesse.models import create_model
from vitesse.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from vitesse.train import train
from vitesse.train.recipe import Recipe
from vitesse.train.setup import initial_model
from vitesse.train.teacher import check_classes, load_teacher
from vitesse.weights import load_weights, save_weights
from vitesse.weights.convert import save_foreign

M0 = "timm/efficientvit_m0.r224_in1k"
RESNET = "timm/test_resnet.r160_in1k"
TINY = {"image_size": 32, "batch_size": 6, "epochs": 1, "workers": 0, "rand_augment": "", "trackers": []}


@pytest.fixture
def published(hub: Any, tmp_path: Path) -> nn.Module:
    """EfficientViT-M0 as the hub has it."""
    torch.manual_seed(5)
    model = create_model("efficientvit_m0")
    save_foreign(tmp_path / "timm.safetensors", model, "timm")
    hub.add(M0, "model.safetensors", (tmp_path / "timm.safetensors").read_bytes())
    return model


@pytest.fixture
def offline(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("init", ["auto", "published"])
def test_published_weights_start_a_run_under_a_fresh_head(published: nn.Module, init: str) -> None:
    spec = ModelSpec(name="efficientvit_m0", num_classes=3)
    found = initial_model(spec, Recipe(init=init), print).state_dict()
    body = {key: value for key, value in published.state_dict().items() if not key.startswith("head.")}
    assert all(torch.equal(found[key], value) for key, value in body.items())
    assert found["head.classifier.linear.weight"].shape == (3, 192)


def test_published_weights_of_its_backbone_start_a_segmentation_model(hub: Any, tmp_path: Path) -> None:
    classifier = create_model("efficientvit_b0")
    save_foreign(tmp_path / "timm.safetensors", classifier, "timm")
    hub.add(
        "timm/efficientvit_b0.r224_in1k", "model.safetensors", (tmp_path / "timm.safetensors").read_bytes()
    )
    notes: list[str] = []
    spec = ModelSpec(name="efficientvit_seg_b0_cityscapes", num_classes=3)
    found = initial_model(spec, Recipe(init="published"), notes.append).state_dict()
    body = {key: value for key, value in classifier.state_dict().items() if not key.startswith("head.")}
    assert all(torch.equal(found[f"backbone.{key}"], value) for key, value in body.items())
    assert notes[0].startswith(
        "started from published weights of efficientvit_b0: loaded 186 tensors from timm"
    )


def test_their_attention_biases_are_fitted_to_another_size(published: nn.Module) -> None:
    spec = ModelSpec(name="efficientvit_m0", num_classes=3, image_size=(128, 128))
    model = initial_model(spec, Recipe(init="published", image_size=128), print)
    assert model(torch.zeros(2, 3, 128, 128)).shape == (2, 3)


def test_offline_auto_says_so_and_trains_from_scratch(
    offline: None, tmp_path: Path, paint_classes: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = paint_classes(tmp_path / "data", per_class=10)
    result = train(data, model="efficientvit_m0", out=tmp_path / "run", overrides=TINY)
    assert result.scores.images == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "from scratch" in line]
    assert M0 in line
    assert "HF_HUB_OFFLINE is set" in line


@pytest.mark.parametrize("model", ["efficientvit_m0", "timm:test_resnet"])
def test_offline_published_fails_in_one_line(
    offline: None, model: str, tmp_path: Path, paint_classes: Callable[..., Path]
) -> None:
    data = paint_classes(tmp_path / "data", per_class=6)
    with pytest.raises(WeightsError, match="not in the cache and HF_HUB_OFFLINE is set") as caught:
        train(data, model=model, out=tmp_path / "run", overrides=TINY | {"init": "published"})
    assert "\n" not in str(caught.value)


def test_an_architecture_without_published_weights_starts_from_scratch(
    hub: Any,
) -> None:
    notes: list[str] = []
    spec = ModelSpec(name="vit_tiny_patch4_d9", image_size=(16, 16))
    initial_model(spec, Recipe(init="auto"), notes.append)
    assert "no weights of it were published" in notes[0]


def test_a_changed_architecture_starts_from_scratch(hub: Any) -> None:
    notes: list[str] = []
    spec = ModelSpec(name="efficientvit_m0", image_size=(32, 32), variant={"attention": "split"})
    initial_model(spec, Recipe(init="auto"), notes.append)
    assert "a changed efficientvit_m0 has no published weights" in notes[0]
    with pytest.raises(WeightsError, match="a changed efficientvit_m0"):
        initial_model(spec, Recipe(init="published"), notes.append)


@pytest.fixture
def resnet(hub: Any, timm: ModuleType) -> nn.Module:
    """A timm model with weights on the hub, made for pictures of mean 0.5 and deviation 0.5."""
    torch.manual_seed(6)
    model: nn.Module = timm.create_model("test_resnet").eval()
    assert model.pretrained_cfg["mean"] == model.pretrained_cfg["std"] == (0.5, 0.5, 0.5)  # type: ignore[index]
    hub.add(RESNET, "model.safetensors", save(model.state_dict()))
    return model


def test_a_timm_model_starts_from_timm_s_weights(resnet: nn.Module) -> None:
    spec = ModelSpec(name="timm:test_resnet", num_classes=3)
    model = initial_model(spec, Recipe(init="published"), print)
    own, theirs = model.state_dict(), resnet.state_dict()
    assert torch.equal(own["model.conv1.0.weight"], theirs["conv1.0.weight"])
    assert len(own["model.fc.weight"]) == 3


def normalised(pixels_BCHW: Tensor, mean: Any, std: Any) -> Tensor:
    columns = [torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (mean, std)]
    return ((pixels_BCHW.double() - columns[0]) / columns[1]).float()


@pytest.mark.parametrize("given", [False, True])
def test_a_timm_teacher_gets_its_own_weights_and_its_own_normalisation(
    resnet: nn.Module, given: bool, tmp_path: Path
) -> None:
    weights = ""
    if given:
        weights = str(tmp_path / "weights.safetensors")
        save_file(resnet.state_dict(), weights)
    recipe = Recipe(teacher="timm:test_resnet", teacher_weights=weights)
    teacher = load_teacher(recipe, 1000)
    assert teacher is not None
    assert teacher.image_size == (160, 160)
    pixels_BCHW = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        expected = resnet(normalised(pixels_BCHW, [0.5] * 3, [0.5] * 3))
    found = teacher(normalised(pixels_BCHW, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_s_own_normalisation_is_kept_to(tmp_path: Path) -> None:
    model, path = create_model("shvit_s1", num_classes=4, image_size=32), tmp_path / "own.safetensors"
    mean, std = [0.1, 0.2, 0.3], [0.9, 0.8, 0.7]
    save_weights(path, model, {"preprocess": {"image_size": [32, 32], "mean": mean, "std": std}})
    teacher = load_teacher(Recipe(teacher=str(path)), 4)
    assert teacher is not None
    pixels_BCHW = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(normalised(pixels_BCHW, mean, std))
    found = teacher(normalised(pixels_BCHW, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher(torch.zeros(2, 3, 48, 48)).shape == (2, 4)


@pytest.mark.parametrize(
    ("teacher", "error", "message"),
    [
        ("timm:test_resne", UnknownModelError, "timm has no model named 'test_resne'; did you mean"),
        ("timm:test_resnet", ConfigError, "has 1000 classes, expected 3"),
        ("efficientvit_m5", ConfigError, "expected timm:NAME or a .safetensors checkpoint"),
        ("absent.safetensors", WeightsError, "absent.safetensors"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused_in_one_line(
    hub: Any, teacher: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load_teacher(Recipe(teacher=teacher), 3)
    assert "\n" not in str(caught.value)


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, paint_classes: Callable[..., Path]) -> None:
    source, path = open_source(paint_classes(tmp_path / "photos", per_class=2)), tmp_path / "t.safetensors"
    model = create_model("shvit_s1", num_classes=3, image_size=32)
    for names, complaint in (
        (["blue", "green", "red"], ""),
        (["red", "green", "blue"], "its classes stand in another order than the data's"),
        (["red", "dog", "cat"], "2 of the data's 3 classes are none of the model's 3, 'blue' for one"),
    ):
        save_weights(path, model, {"class_names": names})
        teacher = load_teacher(Recipe(teacher=str(path)), 3)
        assert teacher is not None
        with pytest.raises(ConfigError, match=complaint) if complaint else contextlib.nullcontext():
            check_classes(teacher, source, "t")


def test_offline_a_teacher_says_what_to_fetch(offline: None) -> None:
    with pytest.raises(WeightsError, match=f"{RESNET}/model.safetensors: not in the cache") as caught:
        load_teacher(Recipe(teacher="timm:test_resnet"), 1000)
    assert "\n" not in str(caught.value)


def test_a_teacher_of_other_channels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bands.safetensors"
    save_weights(path, create_model("shvit_s1", num_classes=3, image_size=32, in_chans=5), {})
    with pytest.raises(ConfigError, match="takes 5 channels, expected 3"):
        load_teacher(Recipe(teacher=str(path)), 3)


def test_deit_tiny_teaches_as_it_classifies(data_dir: Path, timm: ModuleType) -> None:
    weights = data_dir / "deit_tiny_in1k_lnq_fp16.safetensors"
    recipe = Recipe(teacher="timm:deit_tiny_patch16_224", teacher_weights=str(weights))
    teacher = load_teacher(recipe, 1000)
    assert teacher is not None
    picture = np.full((1, 3, 224, 224), 0.4, np.float32)
    x_BCHW = torch.from_numpy(picture)
    twin = create_model("timm:deit_tiny_patch16_224").eval()
    load_weights(twin, weights)
    with torch.no_grad():
        assert torch.equal(teacher(x_BCHW), twin(x_BCHW))
