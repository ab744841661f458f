"""The parts of the studies under benchmarks/ that could be wrong without anybody noticing."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vitesse.models.variants import read_spec

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    study = importlib.import_module("proportion")


@pytest.mark.parametrize("depth", [10, 20])
def test_the_share_of_attention_is_what_was_asked_and_spread_evenly(depth):
    for share in study.SHARES:
        attends = study.is_attention(depth, share)
        assert sum(attends) == round(depth * share)
        gaps = np.diff(np.flatnonzero([*attends, True]))
        assert gaps.max() - gaps.min() <= 1


def test_windows_attend_inside_themselves_and_put_everything_back():
    torch.manual_seed(0)
    x_BCHW = torch.randn(1, 8, 8, 8)
    for moved in (False, True):
        layer = study.Windows(8, 2, 4, moved)
        touched_BCHW = x_BCHW.clone()
        touched_BCHW[..., 0, 0] = torch.randn(8) * 3
        with torch.no_grad():
            changed_HW = (layer(x_BCHW) != layer(touched_BCHW)).any(1)[0]
        rows, columns = np.nonzero(changed_HW.numpy())
        expected = {0, 1, 6, 7} if moved else {0, 1, 2, 3}  # moved windows go around the edge
        assert set(rows) == set(columns) == expected
        layer.attention = nn.Identity()
        assert torch.equal(layer(x_BCHW), x_BCHW)


def test_the_width_of_a_time_is_found():
    tried = [48, 64, 96]
    assert study.fitting_width(tried, [width**1.7 for width in tried], 72**1.7) == 72


def test_widths_are_measured_once(tmp_path, monkeypatch):
    found = iter([{0.2: 48, 0.5: 64}])
    monkeypatch.setattr(study, "fitting_widths", lambda *args: next(found))
    once = study.kept_widths(tmp_path, "proportion_deit", 5)
    assert study.kept_widths(tmp_path, "proportion_deit", 5) == once == {0.2: 48, 0.5: 64}


def test_a_spec_file_of_a_sub_network_rebuilds_it(tmp_path):
    model = study.build(read_spec(study.spec_file(tmp_path, "proportion_swin", 0.2, 24)))
    layers = [module for module in model.modules() if isinstance(module, study.Windows)]
    assert len(layers) == 4
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 100)
