"""Programs for mobile compilers: the same function in operators that they know."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import nn

from vitesse.errors import ExportError
from vitesse.export import fold
from vitesse.export.program import captured, operators
from vitesse.models import Backbone
from vitesse.spec import ModelSpec

SIZES = {
    "efficientvit_m0": (128, 64),  # attends in windows that the first map does not fill
    "shvit_s1": (64, 96),
    "efficientvit_b0": (64, 96),  # takes both orders of linear attention
    "efficientvit_b0_single_scale": (64, 96),
    "efficientvit_l0": (64, 96),
    "vit_tiny_patch16": (64, 96),
}
NOT_PLAIN = ("split", "chunk", "unbind", "alias", "scaled_dot_product")
SMALL = ModelSpec(name="small", image_size=(4, 6))

Program = torch.export.ExportedProgram
Traced = tuple[nn.Module, Program]


@pytest.fixture(scope="module", params=SIZES)
def traced(request: pytest.FixtureRequest, settled: Callable[..., Backbone]) -> Traced:
    model = settled(request.param, SIZES[request.param])
    return fold(model), captured(fold(model), model.spec)


def pictures(count: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_program_gives_the_models_logits(traced: Traced) -> None:
    model, program = traced
    one, other = pictures(2, model.spec.image_size).split(1)
    expected_BK = torch.cat((model(one), model(other)))
    found_BK = torch.cat((program.module()(one), program.module()(other)))
    assert (found_BK - expected_BK).abs().max() <= 1e-5 * expected_BK.abs().max()
    assert (expected_BK[0] - expected_BK[1]).abs().max() > 0.01, "the logits say something of the picture"


def shapes(node: torch.fx.Node) -> list[tuple[int, ...]]:
    return [tuple(argument.meta["val"].shape) for argument in node.all_input_nodes]


def test_a_program_holds_plain_operators_only(traced: Traced) -> None:
    _, program = traced
    assert not [name for name in operators(program) if any(word in name for word in NOT_PLAIN)]
    for node in program.graph.nodes:
        if "expand" in str(node.target):
            assert shapes(node) != [tuple(node.meta["val"].shape)], "an expand changes something"
        if "matmul" in str(node.target):
            assert max(map(len, shapes(node))) <= 3, "a product of batches has one batch axis"
        if "mean.dim" in str(node.target):
            assert len(node.meta["val"].shape) == len(shapes(node)[0]), "a mean keeps its axes"
        assert node.target is not operator.getitem


class Calls(nn.Module):
    """A model that is one function of its pictures."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.function(x_BCHW)


@pytest.mark.parametrize(
    ("function", "gone"),
    [
        (lambda x: x.split(4, dim=-1)[1], "split"),
        (lambda x: x.split((1, 3, 2), 3)[1], "split"),
        (lambda x: torch.cat(x.chunk(4, dim=3)[::2], 3), "chunk"),
        (lambda x: x.chunk(2)[0], "chunk"),
        (lambda x: x.unbind()[0], "unbind"),
        (lambda x: x.unbind(-1)[4], "unbind"),
        (lambda x: x.expand(-1, 3, 4, -1) + 1, "expand"),
        (lambda x: x.mean((-1, -2)), None),
        (lambda x: x.mT @ x, "matmul"),
        (lambda x: nn.functional.scaled_dot_product_attention(x, x + 1, x * 2), "scaled_dot_product"),
        (lambda x: nn.functional.scaled_dot_product_attention(x, x, x, scale=0.3), "scaled_dot_product"),
        # What no rule says in other words stays as it is.
        (lambda x: x[:, :1].expand(-1, 5, -1, -1), None),
        (lambda x: x @ x[0, 0].T, None),
        (lambda x: x.mean((1, 2)), None),
        (lambda x: nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True), None),
        (lambda x: nn.functional.scaled_dot_product_attention(x, x, x, torch.eye(4)), None),
    ],
)
def test_a_rule_changes_no_value(function: Callable[[torch.Tensor], torch.Tensor], gone: str | None) -> None:
    program = captured(Calls(function), SMALL)
    x_BCHW = pictures(1, SMALL.image_size)
    torch.testing.assert_close(program.module()(x_BCHW), function(x_BCHW), rtol=1e-5, atol=1e-6)
    assert gone is None or not [name for name in operators(program) if gone in name]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x if x.sum() > 0 else -x,
        lambda x: torch.from_numpy(x.numpy() * 2),
        lambda x: x[:, :, : int(x.max())],
        lambda x: x @ x,
    ],
    ids=["branches", "numpy", "sizes", "shapes"],
)
def test_what_cannot_be_traced_is_one_line(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(ExportError, match=r"^small: torch cannot trace it: \S") as caught:
        captured(Calls(function), SMALL)
    assert "\n" not in str(caught.value)
