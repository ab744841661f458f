"""Latencies: measured against a reference, predicted from costs, kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitesse.bench.measure import Timing
from vitesse.errors import ConfigError
from vitesse.search import latency
from vitesse.search.cost import Cost
from vitesse.search.latency import Meter, Predictor, held_out_errors
from vitesse.search.samples import GROUP, Samples
from vitesse.search.space import Space, space_for
from vitesse.spec import ModelSpec


def random_costs(count: int, seed: int = 0) -> list[Cost]:
    rng = np.random.default_rng(seed)
    calls, macs = rng.integers(5, 200, (count, 4)), rng.integers(10**4, 10**7, (count, 5))
    return [
        Cost(**dict(zip(vars(Cost()), map(int, (*c, *m)), strict=True)))
        for c, m in zip(calls, macs, strict=True)
    ]


def law(cost: Cost) -> float:
    return 0.05 + 2e-3 * cost.dense_convs + 3e-8 * cost.dense_macs + 2e-7 * cost.matrix_macs


def test_a_linear_law_is_recovered() -> None:
    costs = random_costs(40)
    predictor = Predictor.fit(costs[:30], [law(cost) for cost in costs[:30]])
    for cost in costs[30:]:
        assert predictor.of_cost(cost) == pytest.approx(law(cost), rel=1e-6)
    weights = dict(zip(("constant", *vars(Cost())), predictor.weights, strict=True))
    assert weights["dense_macs"] == pytest.approx(3e-8, rel=1e-6)
    assert weights["depthwise_macs"] == pytest.approx(0, abs=1e-12)


def test_predictions_are_never_negative() -> None:
    costs = random_costs(12)
    falling = [1e6 / cost.dense_macs for cost in costs]
    assert min(Predictor.fit(costs, falling).weights) >= 0


def test_the_errors_are_those_of_the_predictions() -> None:
    predictor = Predictor(weights=(1.0, *[0.0] * 9))
    errors = predictor.errors([Cost()] * 5, [1.0, 0.8, 1.25, 2.0, 1.0])
    assert errors.median == pytest.approx(0.2)
    assert errors.p90 == pytest.approx(np.quantile([0, 0.25, 0.2, 0.5, 0], 0.9))
    assert errors.explain() == "median error 20.0%, p90 40.0% on 5 models not fitted on"


def test_held_out_models_are_not_fitted_on() -> None:
    costs = random_costs(20)
    ratios = [law(cost) for cost in costs]
    assert held_out_errors(costs, ratios).p90 < 1e-6
    ratios[7] *= 3  # an outlier: predicted by the others, it is off by two thirds
    errors = held_out_errors(costs, ratios)
    assert errors.models == 20
    assert np.isclose(
        max(
            abs(
                Predictor.fit(
                    [c for i, c in enumerate(costs) if i % 5 != 2],
                    [r for i, r in enumerate(ratios) if i % 5 != 2],
                ).of_cost(costs[7])
                / ratios[7]
                - 1
            ),
            0,
        ),
        2 / 3,
    )


def test_too_few_measurements_are_refused() -> None:
    costs = random_costs(7)
    with pytest.raises(ConfigError, match="at least 8 models to fit on, got 7"):
        Predictor.fit(costs, [1.0] * 7)


def test_models_are_timed_beside_the_reference() -> None:
    space = space_for("efficientvit_m", (32,))
    small = space.spec(space.smallest(), 5)
    large = space.spec({**space.smallest(), "depth3": 6, "heads3": 4, "head_width3": 120}, 5)
    broken = ModelSpec(name="efficientvit_m0", image_size=(32, 32), variant={"num_heads": (3, 3, 5)})
    meter = Meter(reference=small, engine="torch", rounds=3)
    again, slow, failed = meter.measure([small, large, broken])
    assert again.ratio == 1
    assert slow.ratio is not None
    assert slow.ratio > 1.5
    assert failed.ratio is None
    assert "expected" in failed.error
    assert 0 < again.reference_s < 1


def test_trainings_have_the_threads_that_they_had(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []

    def timed(contenders: Any, *args: Any, **kwargs: Any) -> list[Timing]:
        seen.append(torch.get_num_threads())
        return [Timing(contender=c, batch_size=1, threads=3, samples_s=(1.0,)) for c in contenders]

    monkeypatch.setattr(latency, "time_interleaved", timed)
    spec = ModelSpec(name="efficientvit_m0", image_size=(32, 32))
    torch.set_num_threads(2)
    try:
        Meter(reference=spec, engine="torch", threads=3).measure([spec])
        assert (seen, torch.get_num_threads()) == ([3], 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "batch_size"), [("onnxruntime", 1), ("openvino", 3)])
def test_models_are_exported_for_engines(engine: str, batch_size: int) -> None:
    space = space_for("shvit", (32,))
    small = space.spec(space.smallest(), 5)
    (sample,) = Meter(reference=small, engine=engine, rounds=2, batch_size=batch_size).measure([small])
    assert (sample.ratio, sample.error) == (1, "")


def opened(path: Path, machine: Any, conditions: dict[str, Any] | None = None) -> Samples:
    return Samples.open(path / "latency.json", conditions or {"threads": 1}, machine.measure)


def test_samples_are_measured_once_in_groups(tmp_path: Path, machine: Any, small_space: Space) -> None:
    first = opened(tmp_path, machine).draw(small_space, 6, 5, seed=1)
    assert len(set(machine.measured)) == len(machine.measured) == 6
    again = opened(tmp_path, machine)
    assert again.reference_s == 0.002
    assert again.draw(small_space, 10, 5, seed=1)[:6] == first
    assert len(set(machine.measured)) == len(machine.measured) == 10
    assert GROUP < 6


def test_samples_of_other_conditions_are_refused(tmp_path: Path, machine: Any, small_space: Space) -> None:
    opened(tmp_path, machine).draw(small_space, 1, 5, seed=1)
    with pytest.raises(ConfigError, match=r"latency\.json was measured with threads 1, now 2 is asked for"):
        opened(tmp_path, machine, {"threads": 2})
    for text in ("{}", '{"measured": []}', "[]", "{"):
        (tmp_path / "latency.json").write_text(text)
        with pytest.raises(ConfigError, match="expected measured latencies"):
            opened(tmp_path, machine)


def test_models_that_cannot_be_timed_are_not_fitted_on(tmp_path: Path, small_space: Space) -> None:
    from vitesse.search.latency import Measured

    def refuse(specs: Any) -> list[Measured]:
        return [Measured(spec=spec, ratio=None, reference_s=1.0, error="no") for spec in specs]

    samples = Samples.open(tmp_path / "latency.json", {}, refuse)
    samples.draw(small_space, 3, 5, seed=1)
    assert samples.table() == ([], [])
