"""Importance of channels: by hand, against the loss itself, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.analyze.channels import Channels
from vitesse.analyze.importance import (
    ChannelGroup,
    ImportanceAnalysis,
    analyze_importance,
    channel_importance,
)
from vitesse.analyze.structure import structure_of
from vitesse.errors import ConfigError, DataError, WeightsError
from vitesse.models import build
from vitesse.spec import ModelSpec
from vitesse.weights.files import save_weights

NARROW = {"embed_dim": (16, 16, 24), "depths": (1, 1, 2), "num_heads": (2, 2, 3), "kernels": (3, 3, 3)}
PICTURES = 6


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(PICTURES, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(PICTURES) % 3


def made(name: str, randomise: Callable[[nn.Module], nn.Module], **variant: Any) -> nn.Module:
    torch.manual_seed(0)
    spec = ModelSpec(name=name, image_size=(64, 64), num_classes=3, variant=variant)
    return randomise(build(spec)).double().eval()


def gradients(model: nn.Module, image: Tensor, label: Tensor) -> dict[str, Tensor]:
    loss = F.cross_entropy(model(image[None]), label[None])
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def by_hand(
    model: nn.Module, images: Tensor, labels: Tensor, rows: dict[str, slice]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean over pictures of |sum of gradient x weight| over the rows of some layers."""
    total = 0
    weights = dict(model.named_parameters())
    for image, label in zip(images, labels, strict=True):
        found = gradients(model, image, label)
        parts = [
            (found[name] * weights[name])[some].flatten(1).sum(1)
            if weights[name].ndim > 1
            else (found[name] * weights[name])[some]
            for layer, some in rows.items()
            for name in (f"{layer}.weight", f"{layer}.bias")
        ]
        total = total + torch.stack(parts).sum(0).abs()
    return (total / len(images)).detach().numpy()


def named(found: dict[Channels, Any], kind: str, stage: int, block: str) -> list[Any]:
    return [
        values
        for channels, values in found.items()
        if (channels.kind, channels.stage, channels.block) == (kind, stage, block)
    ]


def test_it_is_gradient_times_weight_of_the_cascade(randomise, images, labels):
    model = made("efficientvit_m0", randomise, **NARROW)
    block = "stages.0.blocks.0"
    heads = [f"{block}.mixer.branch.attention.qkvs.{head}.bn" for head in range(2)]
    producers = [f"{block}.{part}.branch" for part in ("dw0", "ffn0", "dw1", "ffn1")]
    producers = [name + (".project.bn" if "ffn" in name else ".bn") for name in producers]
    producers += ["stem.6.bn", f"{block}.mixer.branch.attention.proj.1.bn"]
    producers += [f"stages.1.subsample.{part}" for part in ("dw0.branch.bn", "ffn0.branch.project.bn")]
    expected = {
        "ffn": by_hand(model, images, labels, {f"{block}.ffn0.branch.expand.bn": slice(None)}),
        "q": by_hand(model, images, labels, {heads[0]: slice(0, 16)}),
        "k": by_hand(model, images, labels, {heads[0]: slice(16, 32)}),
        "v": by_hand(model, images, labels, {heads[1]: slice(32, 40)}),
        "first": by_hand(model, images, labels, dict.fromkeys(producers, slice(0, 8))),
        "second": by_hand(
            model, images, labels, dict.fromkeys(producers, slice(8, 16)) | {heads[0]: slice(32, 40)}
        ),
    }
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    found = channel_importance(model, structure_of(model).taps, batches)
    got = {kind: named(found, kind, 1, "1")[0] for kind in ("ffn", "q", "k")}
    got["v"] = named(found, "v", 1, "1")[1]
    got["first"], got["second"] = named(found, "width", 1, "")
    for key, values in expected.items():
        np.testing.assert_allclose(got[key], values, rtol=1e-6, atol=1e-16, err_msg=key)
        assert values.max() > 1e-10


def test_it_is_gradient_times_weight_of_a_plain_transformer(randomise, images, labels):
    model = made("vit_tiny_patch16", randomise)
    model.blocks = model.blocks[:2]
    qkv, fc1 = "blocks.1.attention.branch.attention.qkv", "blocks.1.ffn.branch.fc1"
    parts = {"q": slice(0, 192), "k": slice(192, 384), "v": slice(384, 576)}
    expected = {kind: by_hand(model, images[:2], labels[:2], {qkv: rows}) for kind, rows in parts.items()}
    expected["ffn"] = by_hand(model, images[:2], labels[:2], {fc1: slice(None)})
    found = channel_importance(model, structure_of(model).taps, [(images[:2], labels[:2])])
    for kind, values in expected.items():
        got = np.concatenate(named(found, kind, 1, "2"))
        np.testing.assert_allclose(got, values, rtol=1e-8, atol=1e-15, err_msg=kind)
    np.testing.assert_allclose(expected["q"], expected["k"], rtol=1e-8)  # they meet in products
    assert expected["v"].max() > 1e-6


@pytest.mark.parametrize("kind", ["ffn", "k"])
def test_what_matters_changes_the_loss_when_it_is_taken_out(kind, randomise, images, labels):
    model = made("efficientvit_m0", randomise, **NARROW)
    found = channel_importance(model, structure_of(model).taps, [(images, labels)])
    block = "stages.0.blocks.0"
    name, rows = {
        "ffn": (f"{block}.ffn0.branch.expand.bn", range(16)),
        "k": (f"{block}.mixer.branch.attention.qkvs.0.bn", range(16, 32)),
    }[kind]
    changes = []
    with torch.no_grad():
        before = F.cross_entropy(model(images), labels, reduction="none")
        for row in rows:
            norm = model.get_submodule(name)
            saved = norm.weight[row].item(), norm.bias[row].item()
            norm.weight[row] = norm.bias[row] = 0
            after = F.cross_entropy(model(images), labels, reduction="none")
            changes.append(float((after - before).abs().mean()))
            norm.weight[row], norm.bias[row] = saved
    assert np.corrcoef(changes, named(found, kind, 1, "1")[0][: len(changes)])[0, 1] > 0.9


def test_what_stays_is_the_most_important_of_all():
    groups = tuple(
        ChannelGroup(kind=kind, stage=1, block="1", importance=np.array(values))
        for kind, values in {"q": [0.1, 0.9], "k": [0.2, 0.3], "ffn": [0.8, 0.7, 0.05, 0.6]}.items()
    )
    analysis = ImportanceAnalysis(
        model="a", image_size=(8, 8), pictures=2, refused=0, labels="data", groups=groups
    )
    assert analysis.remaining(0.5) == [1, 0, 3]
    assert analysis.remaining(0.0) == [2, 2, 4]
    assert analysis.share_by_kind(0.5) == {"q": 0.5, "k": 0.0, "ffn": 0.75}
    assert [record["stay"] for record in analysis.records(0.5)] == [1, 0, 3]
    assert analysis.records(0.5, with_channels=True)[1]["importances"] == [0.2, 0.3]


@pytest.mark.parametrize("name", ["timm:swin_tiny_patch4_window7_224", "timm:deit_tiny_patch16_224"])
def test_models_of_timm_are_followed_too(name, timm):
    torch.manual_seed(0)
    model = build(ModelSpec(name=name, image_size=(224, 224), num_classes=3)).eval()
    layers = structure_of(model)
    x_BCHW = torch.randn(2, 3, 224, 224)
    labels = torch.tensor([0, 1])
    found = channel_importance(model, layers.taps, [(x_BCHW, labels)])
    one = channel_importance(model, layers.taps, [(x_BCHW[:1], labels[:1]), (x_BCHW[1:], labels[1:])])
    heads = 2 * 3 + 2 * 6 + 6 * 12 + 2 * 24 if "swin" in name else 12 * 3
    for kind, expected in {"q": heads, "k": heads, "v": heads, "ffn": 12}.items():
        assert sum(channels.kind == kind for channels in found) == expected
    assert sum(channels.kind == "width" for channels in found) == (4 if "swin" in name else 1)
    for channels, values in found.items():
        assert values.shape == (channels.size,)
        np.testing.assert_allclose(values, one[channels], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["timm:tiny_vit_5m_224", "timm:efficientformer_l1"])
def test_attention_whose_queries_lie_head_by_head_is_refused(name, timm):
    """Thirds of their `qkv` would be taken for queries, keys and values."""
    with pytest.raises(ConfigError, match="this one has no attention that is known"):
        structure_of(build(ModelSpec(name=name, image_size=(224, 224), num_classes=3)))


def test_layers_that_are_not_called_are_refused(timm):
    model = timm.create_model(
        "swinv2_tiny_window8_256", img_size=32, depths=(1,), num_heads=(2,), embed_dim=16, window_size=4
    )
    taps = structure_of(model.eval()).taps
    with pytest.raises(
        ConfigError, match=r"layers\.0\.blocks\.0\.attn\.qkv: expected a layer that the model"
    ):
        channel_importance(model, taps, [(torch.zeros(1, 3, 32, 32), torch.tensor([0]))])


def test_importance_that_is_not_finite_is_named(randomise, images, labels):
    model = made("efficientvit_m0", randomise, **NARROW)
    nn.init.constant_(model.get_parameter("stages.0.blocks.0.ffn0.branch.expand.bn.weight"), 1e200)
    nn.init.constant_(model.get_parameter("stages.0.blocks.0.ffn0.branch.project.bn.weight"), 1e200)
    with pytest.raises(WeightsError, match="its gradients are not finite"):
        channel_importance(model, structure_of(model).taps, [(images[:1], labels[:1])])


@pytest.fixture
def checkpoint(tmp_path: Path, randomise) -> Path:
    torch.manual_seed(0)
    spec = ModelSpec(name="efficientvit_m0", image_size=(32, 32), num_classes=3, variant=NARROW)
    model = randomise(build(spec))
    save_weights(tmp_path / "mine.safetensors", model, {"class_names": ["blue", "green", "red"]})
    return tmp_path / "mine.safetensors"


def test_pictures_and_sizes_are_as_asked(checkpoint, paint_classes, tmp_path):
    data = paint_classes(tmp_path / "data", per_class=3)
    (data / "red" / "000.png").write_bytes(b"broken")
    analysis = analyze_importance(str(checkpoint), data, image_size=64, batch_size=4)
    assert (analysis.pictures, analysis.image_size, analysis.labels) == (8, (64, 64), "data")
    assert analysis.refused == analysis.records(0.5)[0]["refused"] == 1
    assert {group.place for group in analysis.groups} == {
        "1",
        "2",
        "3",
        "1.1",
        "2.s",
        "2.1",
        "3.s",
        "3.1",
        "3.2",
    }
    assert analyze_importance(str(checkpoint), data, limit=4).pictures <= 4
    (data / "blue").rename(data / "unknown")
    own = analyze_importance(str(checkpoint), data, own_labels=True)
    assert own.labels == "self"
    assert all(np.isfinite(group.importance).all() for group in own.groups)


def test_bad_requests_are_refused(checkpoint, paint_classes, tmp_path):
    data = paint_classes(tmp_path / "data", per_class=2)
    with pytest.raises(ConfigError, match="this one has no attention that is known"):
        structure_of(build(ModelSpec(name="efficientvit_b0", num_classes=3)))
    with pytest.raises(DataError, match="expected at least 2 readable pictures, got 1"):
        analyze_importance(str(checkpoint), data, limit=1)
    with pytest.raises(ConfigError, match="--batch-size: expected at least 1, got 0"):
        analyze_importance(str(checkpoint), data, batch_size=0)
    (data / "blue").rename(data / "unknown")
    shutil.rmtree(data / "green")
    with pytest.raises(DataError, match="1 of the data's 2 classes are none of the model's 3, 'unknown'"):
        analyze_importance(str(checkpoint), data)
    (tmp_path / "flat").mkdir()
    (data / "red" / "000.png").rename(tmp_path / "flat" / "a.png")
    with pytest.raises(DataError, match="holds 1 pictures in no class folder"):
        analyze_importance(str(checkpoint), tmp_path / "flat")
