"""Architectures have as many parameters as their original definitions."""

from __future__ import annotations

import pytest

from vitesse.models import build
from vitesse.spec import ModelSpec

# Counted on the original definitions: with one head, with the distillation head.
PARAMS = {
    "efficientvit_m0": (2_349_436, 2_542_820),
    "efficientvit_m1": (2_980_560, 3_173_944),
    "efficientvit_m2": (4_187_554, 4_413_002),
    "efficientvit_m3": (6_900_722, 7_222_362),
    "efficientvit_m4": (8_804_228, 9_189_996),
    "efficientvit_m5": (12_473_772, 12_859_540),
    "shvit_s1": (6_330_808, 6_652_448),
    "shvit_s2": (11_483_072, 11_932_968),
    "shvit_s3": (14_245_273, 14_695_169),
    "shvit_s4": (16_588_484, 17_038_380),
}


@pytest.mark.parametrize("name", PARAMS)
def test_parameters_as_published(name):
    counts = [
        sum(parameter.numel() for parameter in build(ModelSpec(name=name, distilled=distilled)).parameters())
        for distilled in (False, True)
    ]
    assert tuple(counts) == PARAMS[name]
