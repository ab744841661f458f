"""FLOPs, bytes and the roof, against figures worked out by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from vitesse.analyze import roofline
from vitesse.analyze.kinds import kind_of
from vitesse.analyze.profile import Operator, Profile, Shaped
from vitesse.analyze.report import LEGEND_SIZE, _draw_roofline
from vitesse.analyze.roofline import Machine, below_ridge_share, bytes_of, flops_of, place, stream_rate

MACHINE = Machine(threads=1, flops_per_s=100.0, bytes_per_s=10.0, cache_bytes_per_s=40.0)


def operator(type_: str, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]], **other) -> Operator:
    values = {"name": "x", "kind": kind_of(type_), "module": "", "seconds": 1.0, **other}
    return Operator(
        type=type_, inputs=tuple(map(Shaped, inputs)), outputs=tuple(map(Shaped, outputs)), **values
    )


@pytest.mark.parametrize(
    ("made", "flops"),
    [
        (operator("Conv", [(2, 6, 8, 8), (12, 6, 3, 3), (12,)], [(2, 12, 4, 4)]), 2 * 2 * 12 * 16 * 54),
        (operator("Conv", [(1, 8, 5, 5), (8, 1, 3, 3)], [(1, 8, 5, 5)]), 2 * 200 * 9),
        (operator("GroupConvolution", [(1, 8, 5, 5), (8, 1, 1, 3, 3)], [(1, 8, 5, 5)]), 2 * 200 * 9),
        (operator("QLinearConv", [(1, 6, 4, 4), (), (12, 6, 1, 1), (12,)], [(1, 12, 4, 4)]), 2 * 192 * 6),
        (operator("ConvTranspose", [(1, 6, 4, 4), (6, 3, 2, 2)], [(1, 3, 8, 8)]), 2 * 96 * 12),
        (operator("aten::conv2d", [(1, 6, 8, 8), (12, 6, 3, 3)], [(12 * 16,)]), 2 * 12 * 16 * 54),
        (operator("aten::linear", [(5, 7, 16), (32, 16), (32,)], [(5 * 7 * 32,)]), 2 * 5 * 7 * 16 * 32),
        (operator("aten::addmm", [(32,), (7, 16), (16, 32)], [(7 * 32,)]), 2 * 7 * 16 * 32),
        (operator("aten::baddbmm", [(7, 9), (3, 7, 16), (3, 16, 9)], [(3, 7, 9)]), 2 * 3 * 7 * 16 * 9),
        (operator("FusedMatMul", [(3, 4, 16, 7), (3, 4, 9, 16)], [(3, 4, 7, 9)]), 2 * 12 * 7 * 16 * 9),
        (operator("MatMul", [(5, 7, 16), (16, 32)], [(5, 7, 32)]), 2 * 5 * 7 * 16 * 32),
        (operator("Softmax", [(3, 7, 7)], [(3, 7, 7)]), 5 * 147),
        (operator("Add", [(3, 7, 7), (7,)], [(3, 7, 7)]), 147),
        (operator("Transpose", [(3, 7)], [(7, 3)]), 0),
        (operator("aten::view", [], []), 0),
    ],
)
def test_flops_are_those_worked_out_by_hand(made: Operator, flops: int) -> None:
    assert flops_of(made) == flops


def test_attention_s_flops_leave_the_mask_out() -> None:
    q, k, v, mask = (2, 3, 7, 16), (2, 3, 9, 16), (2, 3, 9, 20), (1, 1, 7, 9)
    flops = 2 * 6 * 7 * 9 * (16 + 20)
    assert flops_of(operator("aten::scaled_dot_product_attention", [q, k, v, mask], [(2, 3, 7, 20)])) == flops
    fused = operator("Subgraph", [q, k, mask, v], [(2, 3, 7, 20)], kind="attention")
    assert flops_of(fused) == flops


@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
)
def test_products_count_alike_however_their_operands_lie(
    batch: int, m: int, k: int, n: int, left_turned: bool, right_turned: bool
) -> None:
    left = (batch, k, m) if left_turned else (batch, m, k)
    right = (batch, n, k) if right_turned else (batch, k, n)
    assert flops_of(operator("FusedMatMul", [left, right], [(batch, m, n)])) == 2 * batch * m * k * n
    assert flops_of(operator("MatMul", [(batch, m, k), right[1:]], [(batch, m, n)])) == 2 * batch * m * k * n


def test_bytes_count_every_tensor_once_and_views_move_none() -> None:
    assert bytes_of(operator("Transpose", [(3, 7)], [(7, 3)])) == 2 * 21 * 4
    assert bytes_of(operator("Reshape", [(3, 7)], [(21,)])) == 0
    narrow = Operator(
        name="x",
        type="QLinearAdd",
        kind="elementwise",
        module="",
        seconds=1.0,
        inputs=(Shaped((5,), 1), Shaped((5,), 1)),
        outputs=(Shaped((5,), 1),),
    )
    assert bytes_of(narrow) == 15


def test_an_operator_is_bound_by_what_takes_longer_under_the_roof() -> None:
    assert MACHINE.ridge == 10
    product = operator("MatMul", [(64, 64), (64, 64)], [(64, 64)], seconds=10_000.0)
    found = place(product, MACHINE)
    assert found.bound == "compute"
    assert found.intensity == 2 * 64**3 / (3 * 4 * 64**2)
    assert found.attained == pytest.approx(2 * 64**3 / 100 / 10_000)
    turned = place(operator("Transpose", [(10, 10)], [(10, 10)], seconds=160.0), MACHINE)
    assert (turned.bound, turned.intensity, turned.attained) == ("memory", 0.0, pytest.approx(0.5))
    assert place(operator("Reshape", [(10, 10)], [(100,)]), MACHINE).attained is None
    profile = Profile(engine="e", operators=(product, product, product), plain_s=1.0, profiled_s=1.0)
    assert below_ridge_share(profile, MACHINE) == 0


def test_streaming_is_timed_by_the_median_of_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    slow = {5, 6, 40}
    now = [0.0]

    def clock() -> float:
        now[0] += 100.0 if next(ticks) in slow else 0.5
        return now[0]

    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(roofline, "MIN_PIECES", 50)
    assert stream_rate(roofline.PIECE_BYTES, 1) == pytest.approx(roofline.PIECE_BYTES / 0.5)


def test_a_measured_machine_is_of_this_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "MEMORY_BYTES", 30 * roofline.PIECE_BYTES)
    monkeypatch.setattr(roofline, "MIN_PIECES", 30)
    machine = roofline.measure_machine(1)
    assert 1e8 < machine.bytes_per_s < 1e13
    assert 1e8 < machine.flops_per_s < 1e14
    assert np.isfinite(machine.ridge)


def test_the_legend_s_points_are_not_as_large_as_the_largest_operator():
    axis = Figure().add_subplot()
    made = (operator("MatMul", [(64, 64), (64, 64)], [(64, 64)]), operator("Add", [(9,), (9,)], [(9,)]))
    _draw_roofline(axis, Profile(engine="e", operators=made, plain_s=1.0, profiled_s=1.0), MACHINE)
    assert max(float(points.get_sizes().max()) for points in axis.collections) > 500
    found = axis.get_legend().legend_handles
    assert [float(points.get_sizes().max()) for points in found[:2]] == [LEGEND_SIZE] * 2
