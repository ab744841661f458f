"""Every family's modules have their part, and its operators their kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitesse.analyze.kinds import roles_of
from vitesse.analyze.profile import Profile, median_of
from vitesse.analyze.roofline import flops_of
from vitesse.analyze.torch_profile import TorchProfiler
from vitesse.bench.contenders import count_macs, folded, random_model
from vitesse.models import create_model, registered_models
from vitesse.models.create import spec_for

PARTS = {
    "efficientvit_m0": "stem mixer ffn subsampling head",
    "shvit_s1": "stem mixer ffn subsampling head",
    "efficientvit_b0": "stem mixer ffn subsampling head",
    "vit_tiny_patch16": "stem mixer ffn head",
    "vit_tiny_patch16_tome": "stem mixer ffn head",
    "concatplexer_tiny_n2": "stem mixer ffn subsampling head",
    "imagemux_tiny_n2": "stem mixer ffn subsampling head",
    "fcos_e2e_efficientvit_m0": "stem mixer ffn subsampling head",
    "retinanet_shvit_s1": "stem mixer ffn subsampling head",
    "mask_rcnn_efficientvit_b0": "stem mixer ffn subsampling head",
    "efficientvit_seg_b0_cityscapes": "stem mixer ffn subsampling head",
}
"""One of each family and task, with the parts that it has."""
CLASSIFIERS = [name for name in PARTS if name in registered_models()]


@pytest.mark.parametrize("name", [*PARTS, "efficientvit_l1"])
def test_every_module_with_weights_has_a_part(name: str) -> None:
    with torch.device("meta" if name == "efficientvit_l1" else "cpu"):
        model = create_model(name)
    weighted = [key for key, module in model.named_modules() if any(True for _ in module.parameters(False))]
    found, parts = set(roles_of(weighted)), set(PARTS.get(name, PARTS["efficientvit_b0"]).split())
    assert parts - {"subsampling"} <= found <= parts  # superposing tokens takes no weights


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_operator_of_a_classifier_has_a_kind_and_a_part(name: str) -> None:
    spec = spec_for(name, 64)
    model = random_model(spec)
    macs = count_macs(model, spec)
    profiler = TorchProfiler(folded(model))
    images = getattr(model, "mux_width", 1)
    profiler.run(np.zeros((images, 3, 64, 64), np.float32))
    operators = median_of(profiler.runs(), "torch")
    profile = Profile(engine="torch", operators=operators, plain_s=1.0, profiled_s=1.0)
    assert profile.by_role()["other"] == 0
    assert profile.by_kind()["other"] < 0.05, profile.other("operators")
    assert {role for role, share in profile.by_role().items() if share} == set(PARTS[name].split())
    assert sum(profile.by_kind().values()) == pytest.approx(1)
    products = sum(flops_of(o) for o in operators if o.kind in ("conv", "matmul", "attention"))
    assert products == pytest.approx(2 * macs * images, rel=0.03)
