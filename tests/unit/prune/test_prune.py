"""Smaller models: what they compute, what they cost, and how they are kept."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vitesse.analyze.channels import Channels, Structure
from vitesse.analyze.importance import channel_importance
from vitesse.analyze.structure import structure_of
from vitesse.bench.contenders import count_macs
from vitesse.data.sources import HELD_OUT_SHARE, hold_out, open_source
from vitesse.errors import ConfigError
from vitesse.export.fold import fold
from vitesse.export.onnx import to_onnx
from vitesse.models import build, load_checkpoint
from vitesse.models.create import spec_for
from vitesse.models.variants import write_spec
from vitesse.prune.cut import cut
from vitesse.prune.plan import cuttables, smaller_spec, variant_of
from vitesse.prune.run import prune
from vitesse.spec import ModelSpec
from vitesse.weights.files import save_weights

M0 = {"embed_dim": (16, 24, 24), "depths": (1, 1, 1), "num_heads": (2, 2, 3), "kernels": (3, 5, 3)}
S1 = {"embed_dim": (16, 24, 32), "depths": (1, 1, 1), "partial_dim": (0, 8, 12)}
CASES = {
    "cascade": ("efficientvit_m0", M0),
    "split": ("efficientvit_m0", M0 | {"attention": "split"}),
    "full, alternating": ("efficientvit_m0", M0 | {"attention": "full", "layout": "alternating"}),
    "single head": ("shvit_s1", S1),
    "plain": ("vit_tiny_patch16", {"width": 48, "num_heads": 3, "depth": 2}),
}
CUTS = ({"ffn": 20}, {"k": 3}, {"width": 2}, {"ffn": 9, "k": 15, "width": 4})
Randomise = Callable[[nn.Module], nn.Module]


@dataclasses.dataclass
class Whole:
    """A model with its channels and their importance on a few pictures."""

    model: Any
    structure: Structure
    importance: dict[Channels, Any]
    images: Tensor

    @classmethod
    def of(cls, model: nn.Module) -> Whole:
        structure = structure_of(model)
        images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        importance = channel_importance(model, structure.taps, [(images, torch.arange(4) % 3)])
        return cls(model, structure, importance, images)

    def cut_to(self, spec: ModelSpec) -> Any:
        return cut(self.model, self.structure, spec, self.importance)

    def smaller(self, keep: float, of: Iterable[str] | None = None, cost: str = "macs") -> ModelSpec:
        found = cuttables(self.structure, self.importance, of)
        return smaller_spec(self.model, self.structure, found, keep=keep, cost=cost)

    def kinds(self) -> set[str]:
        return {channels.kind for use in self.structure.uses for channels in use.axis}

    @torch.no_grad()
    def logits(self) -> Tensor:
        return self.model(self.images)


def made(case: str, randomise: Randomise, **changes: Any) -> Any:
    name, variant = CASES[case]
    torch.manual_seed(0)
    spec = ModelSpec(name=name, image_size=(64, 64), num_classes=3, variant=variant | changes)
    model = randomise(build(spec))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(
                module.weight, nonlinearity="linear"
            )  # wide enough for pictures to differ at the end
    return model.eval()


@pytest.fixture(scope="module")
def wholes(randomise: Randomise) -> dict[str, Whole]:
    return {case: Whole.of(made(case, randomise)) for case in CASES}


@pytest.fixture(scope="module")
def whole_of(wholes: dict[str, Whole]) -> Callable[[str], Whole]:
    return lambda case: wholes[case]  # hypothesis would print all the weights


def fewer_of(whole: Whole, kinds: dict[str, int]) -> ModelSpec:
    """Each group of some kinds so many channels narrower; of single heads the attended width stays."""
    fewer = {
        channels: kinds[channels.kind]
        for kind in kinds
        for channels in whole.structure.cut_with(kind)
        if channels.group[-2:] != ".0"
    }
    variant = variant_of(whole.model, whole.structure, fewer)
    return dataclasses.replace(whole.model.spec, variant={**whole.model.spec.variant, **variant})


@torch.no_grad()
def silence(whole: Whole, spec: ModelSpec) -> Any:
    """A copy of the model in which the channels that a cut to `spec` leaves out are 0 where they are made."""
    silent = build(whole.model.spec).eval()
    silent.load_state_dict(whole.model.state_dict())
    sizes = [channels.size for channels in structure_of(build(spec)).channels()]
    left_out = {
        channels: np.argsort(whole.importance[channels], kind="stable")[: channels.size - size]
        for channels, size in zip(whole.structure.channels(), sizes, strict=True)
        if channels.tied is None
    }
    for tap in whole.structure.taps:
        module: Any = silent.get_submodule(tap.module)
        maker, first = getattr(module, "bn", module), 0
        for channels in tap.axis:
            rows = torch.from_numpy(first + left_out[channels.leader])
            if len(rows):
                maker.weight[rows] = 0
                maker.bias[rows] = 0
            first += channels.size
    if "width" not in whole.kinds():
        return silent
    last: Any = silent.head.get_submodule("classifier.bn")  # would say something of a mean of 0
    last.load_state_dict(_without(whole, left_out, last.state_dict()))
    return silent


def _without(whole: Whole, left_out: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
    use = next(use for use in whole.structure.uses if use.tensor == "head.classifier.bn.weight")
    first = 0
    for channels in use.axis:
        for key in ("weight", "bias"):
            values[key][torch.from_numpy(first + left_out[channels.leader])] = 0
        first += channels.size
    return values


@pytest.mark.parametrize(
    ("case", "kinds"),
    [(case, kinds) for case in CASES for kinds in CUTS if case != "plain" or kinds.keys() != {"width"}],
)
def test_it_computes_what_the_masked_model_does(case, kinds, wholes):
    whole = wholes[case]
    spec = fewer_of(whole, kinds)
    smaller = whole.cut_to(spec)
    assert smaller.spec == spec
    with torch.no_grad():
        torch.testing.assert_close(
            smaller(whole.images), silence(whole, spec)(whole.images), rtol=1e-4, atol=1e-6
        )
    assert not torch.allclose(smaller(whole.images), whole.logits(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("case", ["cascade", "single head", "plain"])
def test_dead_channels_are_found_and_leave_nothing_behind(case, wholes):
    alive = wholes[case]
    spec = fewer_of(alive, {"ffn": 6, "k": 4, "width": 2})
    dead = Whole.of(silence(alive, spec))
    torch.testing.assert_close(dead.cut_to(spec)(dead.images), dead.logits(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_without_a_cut_all_is_as_it_was(case, wholes):
    whole = wholes[case]
    assert whole.smaller(1.0) == whole.model.spec
    assert torch.equal(whole.cut_to(fewer_of(whole, {}))(whole.images), whole.logits())


def test_narrower_norms_over_channels_can_be_cut_too(randomise):
    whole = Whole.of(made("cascade", randomise, norm="layer"))
    smaller = whole.cut_to(whole.smaller(0.6))
    assert torch.isfinite(smaller(whole.images)).all()


@settings(max_examples=4, deadline=None)
@given(
    keep=st.floats(0.35, 0.99),
    case_of=st.sampled_from(
        [
            ("cascade", ("ffn", "qk", "width")),
            ("cascade", ("width",)),
            ("single head", ("width",)),
            ("plain", ("ffn", "qk")),
        ]
    ),
    cost=st.sampled_from(["macs", "params"]),
)
def test_it_costs_at_most_what_was_asked(whole_of, keep, case_of, cost):
    case, of = case_of
    whole = whole_of(case)
    try:
        spec = whole.smaller(keep, of, cost)
    except ConfigError as error:  # widths alone leave 0.4 to 0.5
        least = float(re.findall(r"leave (0\.\d+) of the", str(error))[0])
        assert keep < least < 0.5
        assert whole.smaller(least + 0.001, of, cost)
        return
    costs = []
    for model in (whole.model, whole.cut_to(spec)):
        sizes = {"macs": count_macs(model, spec), "params": sum(p.numel() for p in model.parameters())}
        costs.append(sizes[cost])
    assert costs[1] <= keep * costs[0]
    assert costs[1] > 0.7 * keep * costs[0], "cut much more than was asked"
    assert all(channels.size >= 1 for channels in structure_of(build(spec)).channels())


def test_only_what_was_named_is_cut(wholes):
    whole = wholes["cascade"]
    variant = whole.smaller(0.95, ["qk"]).variant
    assert variant["embed_dim"] == M0["embed_dim"]
    assert variant["ffn_dims"] == ((32, 32), (32, 48, 48, 48), (48, 48, 48, 48))
    assert [len(dims) for dims in variant["key_dims"]] == [1, 1, 1]
    assert sum(sum(dims) for dims in variant["key_dims"]) < 3 * 16
    assert min(min(dims) for dims in variant["key_dims"]) >= 1


@pytest.mark.parametrize("case", ["cascade", "single head", "plain"])
def test_it_is_an_ordinary_checkpoint(case, wholes, tmp_path):
    whole = wholes[case]
    spec = whole.smaller(0.7)
    smaller = whole.cut_to(spec)
    write_spec(spec, tmp_path / "small.json")
    assert spec_for(str(tmp_path / "small.json")) == spec
    save_weights(tmp_path / "small.safetensors", smaller)
    read, _ = load_checkpoint(tmp_path / "small.safetensors")
    assert read.spec == spec
    expected = smaller(whole.images).detach()
    assert torch.equal(read.eval()(whole.images), expected)
    torch.testing.assert_close(fold(smaller)(whole.images), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", ["cascade", "plain"])
def test_it_is_exported_like_any_other(case, wholes):
    whole = wholes[case]
    spec = fewer_of(whole, {"ffn": 9, "k": 5, "width": 2})
    smaller = whole.cut_to(spec)
    expected = smaller(whole.images).detach()
    session = onnxruntime.InferenceSession(
        to_onnx(fold(smaller), spec).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {session.get_inputs()[0].name: whole.images.numpy()})
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, "--keep: expected a share above 0, at most 1, got 0"),
        ({"keep": 1.2}, "--keep: expected a share above 0, at most 1, got 1.2"),
        ({"keep": 0.05}, r"--keep: these cuts leave 0\.\d+ of the macs at least, got 0.05"),
        ({"keep": 0.5, "cost": "ms"}, "--cost: expected macs or params, got 'ms'"),
        ({"keep": 0.5, "of": ["heads"]}, "--of: expected some of ffn, qk, width in this model, got 'heads'"),
        ({"keep": 0.5, "of": []}, "--of: expected some of ffn, qk, width in this model, got none"),
    ],
)
def test_what_cannot_be_is_refused(options, message, wholes):
    with pytest.raises(ConfigError, match=message):
        wholes["cascade"].smaller(**options)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"ffn_dims": ((32, 32),)}, "ffn_dims: expected 2, 4, 4 widths of 1 or more, stage by stage"),
        ({"ffn_dims": (32, 32, 32)}, "ffn_dims: expected 2, 4, 4 widths"),
        ({"key_dims": ((16,), (16,), (0,))}, "key_dims: expected 1, 1, 1 widths of 1 or more"),
        ({"key_dims": ((16,), (16,), (8.5,))}, "key_dims: expected 1, 1, 1 widths"),
    ],
)
def test_widths_that_fit_no_layer_are_refused(variant, message):
    with pytest.raises(ConfigError, match=message):
        build(ModelSpec(name="efficientvit_m0", image_size=(64, 64), variant=M0 | variant))


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"ffn_dims": ((32, 32),)}, "ffn_dims: expected 12 widths of 1 or more"),
        ({"key_dims": (16,) * 12}, "key_dims: expected 12 widths"),
        ({"depth": 0}, "depth: expected a whole number of 1 or more, got 0"),
        ({"num_heads": 5}, "num_heads: expected a divisor of the width 192, got 5"),
    ],
)
def test_widths_that_fit_no_plain_transformer_are_refused(variant, message):
    with pytest.raises(ConfigError, match=message):
        build(ModelSpec(name="vit_tiny_patch16", variant=variant))


def test_kinds_that_are_named_twice_count_once(wholes):
    whole = wholes["cascade"]
    once, twice = (cuttables(whole.structure, whole.importance, of) for of in (["qk"], ["qk", "qk"]))
    assert [cuttable.channels for cuttable in twice] == [cuttable.channels for cuttable in once]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 1.2}, "--keep: expected a share above 0, at most 1, got 1.2"),
        ({"cost": "ms"}, "--cost: expected macs or params, got 'ms'"),
        ({"of": ["heads"]}, "--of: expected some of ffn, qk, width in this model, got 'heads'"),
        ({"batch_size": 0}, "--batch-size: expected at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused_before_any_picture_is_read(options, message, wholes, tmp_path):
    save_weights(tmp_path / "mine.safetensors", wholes["cascade"].model)
    with pytest.raises(ConfigError, match=message):
        prune(str(tmp_path / "mine.safetensors"), tmp_path / "nowhere", tmp_path / "a.safetensors", **options)


def test_a_model_is_not_replaced_by_a_smaller_one(wholes, tmp_path):
    file = tmp_path / "mine.safetensors"
    save_weights(file, wholes["cascade"].model)
    with pytest.raises(ConfigError, match="--out: expected another file than the model's"):
        prune(str(file), tmp_path / "nowhere", tmp_path / "." / "mine.safetensors")


def test_importance_is_not_of_what_training_held_out(wholes, paint_classes, tmp_path):
    data = paint_classes(tmp_path / "data", per_class=10)
    kept, held_out = hold_out(open_source(data), HELD_OUT_SHARE, 0)
    metadata = {"class_names": ["blue", "green", "red"], "provenance": {"data": kept.fingerprint}}
    save_weights(tmp_path / "mine.safetensors", wholes["cascade"].model, metadata)
    pruned = prune(str(tmp_path / "mine.safetensors"), data, tmp_path / "small.safetensors", keep=1)
    assert (pruned.pictures, pruned.before.images) == (len(kept), len(held_out)) == (27, 3)


def test_other_models_are_refused(tmp_path: Path, paint_classes, randomise):
    data = str(paint_classes(tmp_path / "data", per_class=2))
    spec = ModelSpec(name="vit_tiny_patch16_tome", image_size=(32, 32), num_classes=3)
    save_weights(tmp_path / "vit.safetensors", build(spec))
    out = tmp_path / "out.safetensors"
    with pytest.raises(ConfigError, match=r"_tome: expected an EfficientViT \(MSRA\), SHViT or ViT to prune"):
        prune(str(tmp_path / "vit.safetensors"), data, out)
    plain = made("single head", randomise, partial_ratio=0.0)
    save_weights(tmp_path / "plain.safetensors", plain, {"class_names": ["blue", "green", "red"]})
    with pytest.raises(ConfigError, match="--of: expected some of ffn, width in this model, got 'qk'"):
        prune(str(tmp_path / "plain.safetensors"), data, out, of=["qk"])
    with pytest.raises(ConfigError, match=r"--out: expected a name ending in \.safetensors, got"):
        prune(str(tmp_path / "plain.safetensors"), data, tmp_path / "out.onnx")
    with pytest.raises(ConfigError, match="epochs=1: expected --recipe NAME beside it"):
        prune(str(tmp_path / "plain.safetensors"), data, out, overrides=["epochs=1"])
    assert not out.exists()
