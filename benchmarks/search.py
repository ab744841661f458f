"""How well does `vitesse search` predict latencies of models that it has not measured?

    python benchmarks/search.py latency
    python benchmarks/search.py latency --family shvit --engine openvino --models 20 --out /tmp/latency

Models drawn at random from a family's design space are timed in the same rounds as its smallest published
one. A predictor is fitted on the first three quarters of them and tested on the rest, which are timed once
more later: no prediction can be nearer to a measurement than another measurement is. An interrupted run goes
on by the same command: what was measured is kept in `--out`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from common import RECORDS, markdown, write_record
from vitesse.files import write_atomically
from vitesse.search.cost import cost_of
from vitesse.search.latency import ENGINES, Meter, Predictor
from vitesse.search.run import conditions_of
from vitesse.search.samples import GROUP, Samples
from vitesse.search.space import SPACES, space_for
from vitesse.spec import to_mapping

FITTED_SHARE = 0.75


def latency(arguments: argparse.Namespace) -> None:
    """Measure, fit, test; write the record and its table."""
    space = space_for(arguments.family, (arguments.image_size,))
    _, first = space.hand_made()[0]
    meter = Meter(
        reference=space.spec(first, arguments.classes), engine=arguments.engine, rounds=arguments.rounds
    )
    samples = Samples.open(arguments.out / "latency.json", conditions_of(meter), meter.measure)
    drawn = samples.draw(space, arguments.models, arguments.classes, arguments.seed)
    rows = [sample for sample in drawn if sample.ratio is not None]
    fitted = round(FITTED_SHARE * len(rows))
    later = Samples.open(arguments.out / "again.json", conditions_of(meter), meter.measure)
    specs = [row.spec for row in rows[fitted:]]
    for start in range(0, len(specs), GROUP):
        later.of(specs[start : start + GROUP])
    content = tested(rows, samples, fitted, [sample.ratio for sample in later.of(specs)])
    path = write_record("search_latency", content)
    write_atomically(path.with_suffix(".md"), table(content).encode())
    print(table(content), end="")


def tested(rows: list[Any], samples: Samples, fitted: int, again: list[Any]) -> dict[str, Any]:
    """A fit on the first models, its prediction for each, and how far apart two measurements are."""
    costs, ratios = [cost_of(row.spec, samples.batch_size) for row in rows], [row.ratio for row in rows]
    predictor = Predictor.fit(costs[:fitted], ratios[:fitted], samples.batch_size)
    errors = predictor.errors(costs[fitted:], ratios[fitted:])
    return {
        "conditions": dict(samples.conditions),
        "reference_ms": samples.reference_s * 1000,
        "fitted_on": fitted,
        "held_out": to_mapping(errors),
        "again": again,
        "again_median": float(np.median(np.abs(np.array(again) / ratios[fitted:] - 1))),
        "weights": predictor.weights,
        "models": [
            {
                "spec": to_mapping(row.spec),
                "macs": cost.macs,
                "measured": row.ratio,
                "predicted": predictor.of_cost(cost),
                "held_out": index >= fitted,
            }
            for index, (row, cost) in enumerate(zip(rows, costs, strict=True))
        ],
    }


def table(content: dict[str, Any]) -> str:
    """The held-out models and the errors, as Markdown."""
    rows: list[list[Any]] = [["MMACs", "measured", "predicted", "error"]]
    for model in content["models"]:
        if model["held_out"]:
            error = model["predicted"] / model["measured"] - 1
            rows.append(
                [f"{model['macs'] / 1e6:.1f}", model["measured"], model["predicted"], f"{error:+.1%}"]
            )
    held_out, where = content["held_out"], content["conditions"]
    return (
        f"Latency over that of {where['reference']['name']} on {where['engine']}, {where['threads']} thread, "
        f"batch {where['batch_size']}: fitted on {content['fitted_on']} models, and of "
        f"{held_out['models']} others the median error is {held_out['median']:.1%}, p90 "
        f"{held_out['p90']:.1%}. Timed once more, they differ from the first time by "
        f"{content['again_median']:.1%} (median).\n\n{markdown(rows)}"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["latency"])
    parser.add_argument("--family", choices=list(SPACES), default="efficientvit_m")
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RECORDS.parent / "out" / "search")
    latency(parser.parse_args())


if __name__ == "__main__":
    main()
