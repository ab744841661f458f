"""Token merging: what is merged into what, sizes, and what it is without merging."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitesse.models import build
from vitesse.models.token_merging import merge
from vitesse.spec import ModelSpec


def tokens(count, channels=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, channels, generator=generator, dtype=torch.float64)


def merged_by_loop(x_NC, sizes_N, keys_ND, count, protected):
    """The same in plain Python: lists of sources and targets, the nearest pairs first."""
    unit = keys_ND / keys_ND.norm(dim=1, keepdim=True)
    total = len(x_NC)
    pairs = []
    for source in range(0, total, 2):
        if source < protected:
            continue
        best = max(
            (t for t in range(1, total, 2) if t >= protected), key=lambda t: float(unit[source] @ unit[t])
        )
        pairs.append((-float(unit[source] @ unit[best]), source, best))
    gone = {}
    for _, source, target in sorted(pairs)[:count]:
        gone[source] = target
    weighted = {i: x_NC[i] * sizes_N[i] for i in range(total)}
    sizes = {i: sizes_N[i].clone() for i in range(total)}
    for source, target in gone.items():
        weighted[target] = weighted[target] + x_NC[source] * sizes_N[source]
        sizes[target] = sizes[target] + sizes_N[source]
    return {i: (weighted[i] / sizes[i], sizes[i]) for i in range(total) if i not in gone}


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(5, 14),
    merged=st.integers(0, 9),
    protected=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_merging_equals_a_loop_and_loses_nothing(count, merged, protected, seed):
    x_BNC, keys_BND = tokens(count, seed=seed), tokens(count, 4, seed + 1)
    sizes_BN1 = torch.randint(1, 5, (2, count, 1), generator=torch.Generator().manual_seed(seed)).double()
    out_BNC, out_sizes_BN1 = merge(x_BNC, sizes_BN1, keys_BND, merged, protected)
    left = min(merged, (count - protected) // 2)
    assert out_BNC.shape[1] == count - left
    torch.testing.assert_close(out_sizes_BN1.sum(1), sizes_BN1.sum(1))
    torch.testing.assert_close((out_BNC * out_sizes_BN1).sum(1), (x_BNC * sizes_BN1).sum(1))
    torch.testing.assert_close(out_BNC[:, :protected], x_BNC[:, :protected])
    for row in range(2):
        expected = merged_by_loop(x_BNC[row], sizes_BN1[row, :, 0], keys_BND[row], left, protected)
        found = sorted(
            map(tuple, torch.cat([out_BNC[row], out_sizes_BN1[row]], 1).round(decimals=9).tolist())
        )
        wanted = sorted(
            tuple(torch.cat([v, s[None]]).round(decimals=9).tolist()) for v, s in expected.values()
        )
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted))


@torch.no_grad()
def test_without_merging_it_is_the_plain_vit_whose_weights_it_shares():
    plain = build(ModelSpec(name="vit_tiny_patch4", image_size=(32, 32))).eval()
    merging = build(ModelSpec(name="vit_tiny_patch4_tome", image_size=(32, 32))).eval()
    merging.load_state_dict(plain.state_dict(), strict=True)
    x_BCHW = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(merging(x_BCHW), plain(x_BCHW), atol=1e-6)
    merging.blocks.merged = (0,) * 12
    torch.testing.assert_close(merging(x_BCHW), plain(x_BCHW), rtol=0, atol=1e-5)


def test_every_block_merges_as_the_schedule_says():
    model = build(ModelSpec(name="vit_tiny_patch16_tome")).eval()
    assert model.blocks.merged == (7, 8) * 6
    seen = []
    for block in model.blocks:
        block.ffn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    assert seen == [197 - 7, 197 - 15, 182 - 7, 182 - 15, 167 - 7, 152, 145, 137, 130, 122, 115, 107]
    assert sum(model.blocks.merged) == 197 - 107


@pytest.mark.parametrize("distilled", [True, False])
def test_gradients_pass_through_merged_tokens(distilled):
    spec = ModelSpec(name="vit_tiny_patch4_tome", image_size=(16, 16), num_classes=3, distilled=distilled)
    x_BCHW = torch.randn(1, 3, 16, 16, requires_grad=True)
    build(spec).eval()(x_BCHW).sum().backward()
    assert (x_BCHW.grad.abs().sum((0, 1)) > 0).all()
