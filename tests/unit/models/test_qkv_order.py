"""Linear attention's weights with q, k and v in another order are noticed, right ones are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from vitesse.errors import WeightsError
from vitesse.models import build, convert
from vitesse.models.efficientvit_mit import MultiScaleLinearAttention
from vitesse.models.qkv_order import check_qkv_order
from vitesse.spec import ModelSpec
from vitesse.weights import load_weights

NAME, SIZE = "efficientvit_b0", 96


def seen_pictures(model):
    """A model whose statistics come from pictures of blurred blocks, which are no noise of the check."""
    generator = np.random.default_rng(3)
    blocks = generator.integers(0, 255, (8, 6, 6, 3), dtype=np.uint8)
    pictures = [np.asarray(Image.fromarray(b).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for b in blocks]
    x_BCHW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 64 - 2
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    for module in model.modules():
        if isinstance(module, MultiScaleLinearAttention):  # training makes values unlike queries and keys
            module.qkv.weight.data.unflatten(0, (-1, 3, module.head_dim))[:, 2] *= 0.3
    with torch.no_grad():
        model.train()(x_BCHW)
    return model.eval()


def check(model):
    check_qkv_order(model, MultiScaleLinearAttention, "file")


def with_global_order(model):
    """The same weights as a model would hold them that splits its channels into all q, all k, all v."""
    for module in model.modules():
        if isinstance(module, MultiScaleLinearAttention):
            heads = module.qkv.weight.shape[0] // 3 // module.head_dim
            order = [
                (head * 3 + kind) * module.head_dim + i
                for kind in range(3)
                for head in range(heads)
                for i in range(module.head_dim)
            ]
            for conv in (module.qkv, *(conv for pair in module.aggregate for conv in pair)):
                conv.weight.data = conv.weight.data[order]
    return model


@pytest.fixture
def trained():
    return seen_pictures(build(ModelSpec(name=NAME, image_size=(SIZE, SIZE), num_classes=10)))


def test_our_order_passes_and_the_global_one_is_named(trained):
    check(trained)
    with pytest.raises(
        WeightsError, match=r"file: stages\.2\.1\.\S*\.qkv\.weight: expected channels head by head"
    ):
        check(with_global_order(trained))


def test_the_model_stays_as_it_was(trained):
    before = {key: tensor.clone() for key, tensor in trained.state_dict().items()}
    check(trained)
    assert all(torch.equal(before[key], tensor) for key, tensor in trained.state_dict().items())


@pytest.mark.parametrize("name", ["efficientvit_b0", "efficientvit_b0_single_scale"])
def test_weights_that_were_never_trained_pass(name, randomise):
    check(build(ModelSpec(name=name, image_size=(64, 64))))
    check(randomise(build(ModelSpec(name=name, image_size=(64, 64)))))


@pytest.mark.parametrize("in_chans", [3, 4])
def test_timms_untrained_weights_pass(in_chans, timm):
    """By chance the two orders fit alike badly, one of them better by more than the margin."""
    for seed in range(6):
        torch.manual_seed(seed)
        weights = timm.create_model(NAME, in_chans=in_chans).state_dict()
        load_weights(build(ModelSpec(name=NAME, in_chans=in_chans)), weights)


def test_every_way_to_load_foreign_weights_checks_them(trained, tmp_path):
    right = {key: tensor.clone() for key, tensor in trained.state_dict().items()}
    wrong = with_global_order(trained).state_dict()
    target = build(trained.spec)
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    save_file({key: tensor.contiguous() for key, tensor in wrong.items()}, tmp_path / "w.safetensors")
    for source in (wrong, tmp_path / "w.safetensors"):
        with pytest.raises(WeightsError, match="all q, then all k, then all v"):
            load_weights(target, source)
    assert all(torch.equal(before[key], tensor) for key, tensor in target.state_dict().items())
    load_weights(target, right)


def test_a_model_on_such_a_backbone_checks_its_weights(trained):
    target = build(ModelSpec(name="efficientvit_seg_b0_cityscapes", num_classes=3))
    bare = {key: tensor for key, tensor in trained.state_dict().items() if not key.startswith("head.")}
    load_weights(target, bare, strict=False)
    with pytest.raises(WeightsError, match="all q, then all k, then all v"):
        load_weights(target, with_global_order(trained).state_dict(), strict=False)


def test_convert_refuses_it_and_writes_nothing(trained, tmp_path):
    out = tmp_path / "out.safetensors"
    torch.save(trained.state_dict(), tmp_path / "good.pth")
    convert(tmp_path / "good.pth", name=NAME, out=out, image_size=SIZE)
    out.unlink()
    torch.save(with_global_order(trained).state_dict(), tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"bad\.pth: .* all q, then all k, then all v"):
        convert(tmp_path / "bad.pth", name=NAME, out=out, image_size=SIZE)
    assert not out.exists()
