"""The head of EfficientViT-Seg against its description, computed by hand in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.catalogue import facts
from vitesse.models import build
from vitesse.spec import ModelSpec


def filled(name: str) -> nn.Module:
    """A model whose head alone has values, as training might leave them."""
    with torch.device("meta"):
        model = build(ModelSpec(name=name, num_classes=facts(name).num_classes)).eval()
    generator = torch.Generator().manual_seed(1)
    head: nn.Module = model.head.to_empty(device="cpu")
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
            for value in (module.weight, module.bias, module.running_mean):
                nn.init.uniform_(value, 0.1, 1.0, generator=generator)
    nn.init.normal_(head.classifier.bias, generator=generator)
    return model


def by_hand(
    state: dict[str, Tensor], maps: list[Tensor], eps: float, act: Callable[[Tensor], Tensor]
) -> Tensor:
    """Maps of strides 32, 16 and 8 to logits; a block is what its weights say."""

    def conv_norm(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, None, 1, weight.shape[2] // 2, 1, groups)
        mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.bn.weight"], state[f"{name}.bn.bias"], eps=eps)

    coarse, middle, fine = (conv_norm(f"inputs.{i}", x) for i, x in enumerate(maps))
    rows, columns = fine.shape[2:]
    for x, factor in ((coarse, 4), (middle, 2)):
        enlarged = F.interpolate(x, [side * factor for side in x.shape[2:]], mode="bicubic")
        fine = fine + enlarged[:, :, :rows, :columns]
    for number in range(sum(key.endswith("branch.project.conv.weight") for key in state)):
        x, block = fine, f"blocks.{number}.branch"
        for part in ("expand", "spatial", "depthwise"):
            if f"{block}.{part}.conv.weight" in state:
                x = act(conv_norm(f"{block}.{part}", x))
        fine = fine + conv_norm(f"{block}.project", x)
    if "expand.0.conv.weight" in state:
        fine = act(conv_norm("expand.0", fine))
    return F.conv2d(fine, state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize(
    "name",
    [
        "efficientvit_seg_b0_cityscapes",
        "efficientvit_seg_b1_ade20k",
        "efficientvit_seg_l1_cityscapes",
        "efficientvit_seg_l1_ade20k",
    ],
)
@pytest.mark.parametrize("size", [(64, 96), (81, 100)])
@torch.no_grad()
def test_the_head_computes_its_description(name: str, size: tuple[int, int]) -> None:
    model = filled(name)
    strides, large = (32, 16, 8), "_l" in name
    generator = torch.Generator().manual_seed(2)
    specs = model.backbone.feature_specs[:0:-1]
    assert tuple(spec.stride for spec in specs) == strides
    maps = {
        spec.name: torch.randn(
            2, spec.channels, *(-(-side // spec.stride) for side in size), generator=generator
        )
        for spec in specs
    }
    act = (lambda x: F.gelu(x, approximate="tanh")) if large else F.hardswish
    state = {key: value.double() for key, value in model.head.state_dict().items()}
    expected = by_hand(state, [x.double() for x in maps.values()], 1e-7 if large else 1e-5, act)
    found = model.head(maps)
    assert found.shape == (2, facts(name).num_classes, -(-size[0] // 8), -(-size[1] // 8))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert expected.std() > 0.01


def test_the_normalisations_expect_the_reference_s_eps() -> None:
    for name, eps in (("efficientvit_seg_b1_cityscapes", 1e-5), ("efficientvit_seg_l2_ade20k", 1e-7)):
        with torch.device("meta"):
            model = build(ModelSpec(name=name))
        assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {eps}


def test_a_fresh_head_refines_nothing() -> None:
    """Every residual branch starts at zero, as in the backbone."""
    model = build(ModelSpec(name="efficientvit_seg_b1_ade20k", num_classes=2)).eval()
    x_BCHW = torch.randn(1, 64, 8, 8)
    assert torch.equal(model.head.blocks(x_BCHW), x_BCHW)
    weight = model.head.classifier.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.3)
