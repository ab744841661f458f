"""A model spread over processes computes what it did; here over one, so that nothing but the way differs."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed import HashStore, destroy_process_group, init_process_group, is_initialized
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from vitesse.errors import ConfigError, StoppedError
from vitesse.models import build
from vitesse.spec import ModelSpec
from vitesse.train import loop
from vitesse.train.loop import Trainer
from vitesse.train.objective import Objective
from vitesse.train.recipe import Recipe
from vitesse.train.setup import make_accelerator, prepared
from vitesse.train.sharding import own_part, shard, whole

MODELS = {
    "efficientvit_m0": 64,
    "shvit_s1": 64,
    "efficientvit_b0": 32,
    "vit_tiny_patch4": 16,
    "concatplexer_tiny_patch4_n4": 16,
    "imagemux_tiny_patch4_n2": 16,
    "timm:test_efficientnet": 32,
    "timm:test_vit": 32,
}


@pytest.fixture
def meet() -> Iterator[Callable[[], None]]:
    """A function that lets this process talk to others, of which there are none."""

    def initialised() -> None:
        if not is_initialized():
            init_process_group("gloo", store=HashStore(), rank=0, world_size=1)

    yield initialised
    if is_initialized():
        destroy_process_group()


@pytest.fixture
def accelerator(meet: Callable[[], None], tmp_path: Path) -> Accelerator:
    meet()
    return make_accelerator(Recipe(), tmp_path)


def new(name: str) -> nn.Module:
    torch.manual_seed(0)
    side = MODELS[name]
    return build(ModelSpec(name=name, image_size=(side, side), num_classes=5))


def passed(model: nn.Module, side: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of random images, and the gradients of all weights."""
    generator = torch.Generator().manual_seed(1)
    loss = F.cross_entropy(model(torch.randn(4, 3, side, side, generator=generator)), torch.arange(4))
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), {name: own_part(gradient) for name, gradient in found.items()}


def assert_blocks(model: nn.Module) -> None:
    """There are some, that share nothing, of a quarter of the model at most."""
    total, *sizes = (
        sum(parameter.numel() for parameter in module.parameters())
        for module in model.modules()
        if isinstance(module, FSDPModule)
    )
    assert len(sizes) >= 3
    assert max(sizes) <= total / 4
    assert sum(sizes) <= total


@pytest.mark.parametrize("name", MODELS)
def test_every_family_computes_what_it_did(name: str, accelerator: Accelerator) -> None:
    plain, spread = new(name), new(name).to(memory_format=torch.channels_last)
    shard(spread, accelerator)
    assert_blocks(spread)
    expected, found = (passed(model, MODELS[name]) for model in (plain, spread))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    copy = whole(spread)
    assert not isinstance(copy, FSDPModule)
    assert copy.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(copy.state_dict()[key], value) for key, value in plain.state_dict().items())
    assert whole(plain) is plain


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, meet: Callable[[], None]) -> None:
    """A run of one process may be spread; at its end it no longer talks to others."""

    def made(recipe: Recipe, out: Path) -> Accelerator:
        meet()
        return make_accelerator(replace(recipe, shard=False), out)

    monkeypatch.setattr(loop, "make_accelerator", made)


@pytest.fixture
def disturbed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """A function that lets a run's loss be NaN at one step, and stop it after another."""
    now, step, loss = [0], Trainer._train_step, Objective.__call__

    def disturb(bad: int, last: int) -> None:
        def watched(self: Trainer, *arguments: Any) -> Any:
            now[0] = self.progress.step
            if now[0] == last:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *arguments)

        def spoilt(self: Objective, *arguments: Any) -> Tensor:
            return loss(self, *arguments) * (math.nan if now[0] == bad else 1)

        monkeypatch.setattr(Trainer, "_train_step", watched)
        monkeypatch.setattr(Objective, "__call__", spoilt)

    return disturb


OPTIONS = {
    **{"accumulate": 2, "mesa": 0.5, "mesa_from": 0.0, "evaluate_ema": False, "bn_images": 8, "log_every": 1},
    "channels_last": False,  # which gives convolutions another order of sums
}


def test_a_run_goes_on_spread_or_whole(
    pretend: None,
    disturbed: Callable[[int, int], None],
    colours: Path,
    tmp_path: Path,
    run: Callable[..., Any],
    same: Callable[..., bool],
) -> None:
    """To the last bit, the skipped step included, with all of a recipe that looks at the weights."""
    disturbed(4, -1)
    run(colours, tmp_path / "plain", **OPTIONS)
    for last, spread in ((2, True), (7, False)):
        disturbed(4, last)
        with pytest.raises(StoppedError, match=f"at step {last + 1};"):
            run(colours, tmp_path / "run", shard=spread, **OPTIONS)
    disturbed(4, -1)
    run(colours, tmp_path / "run", shard=True, **OPTIONS)
    assert recorded(tmp_path / "run") == recorded(tmp_path / "plain")
    for name in ("last/state", "last/model", "last/ema", "best/model"):
        file = f"checkpoints/{name}.safetensors"
        assert same(load_file(tmp_path / "run" / file), load_file(tmp_path / "plain" / file))


def recorded(out: Path) -> list[dict[str, Any]]:
    """What the rows say, but for time."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "img_per_s", "data_s", "forward_s", "backward_s", "update_s")
    kept = [row for row in rows if row["kind"] != "note"]
    return [{key: value for key, value in row.items() if key not in timed} for row in kept]


def test_a_whole_copy_is_as_precise_as_what_is_trained(meet: Callable[[], None], tmp_path: Path) -> None:
    recipe = Recipe(precision="bf16")
    accelerator = make_accelerator(recipe, tmp_path)
    meet()
    plain, spread = (
        prepared(accelerator, new("vit_tiny_patch4"), replace(recipe, shard=kind))[0].eval()
        for kind in (False, True)
    )
    x_BCHW = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        found_BK, expected_BK = whole(spread).eval()(x_BCHW), plain(x_BCHW)
        exact_BK = new("vit_tiny_patch4").eval()(x_BCHW)
    assert torch.equal(found_BK, expected_BK)
    assert not torch.equal(found_BK, exact_BK)


def test_single_numbers_cannot_be_spread(accelerator: Accelerator) -> None:
    model = new("vit_tiny_patch4")
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match="shard: scale of vit_tiny_patch4 has no parts; set shard=false"):
        shard(model, accelerator)


def test_one_process_has_nobody_to_share_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shard: needs several processes; launch with torchrun, or set"):
        make_accelerator(Recipe(shard=True), tmp_path)
