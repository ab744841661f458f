"""Do the papers' speed ratios hold when both sides run on their fastest engine?

    python benchmarks/headline.py
    python benchmarks/headline.py --rounds 5 --out /tmp/headline.json

One thread, batches of 1 and 16; each of our models is interleaved with its peers in one process. Ours is the
fastest of int8 and fp32 on every engine. A peer is taken twice: at its fastest fp32 (engines, eager and
compiled torch), which is what its published accuracy belongs to, and at its fastest of fp32 and int8, whose
accuracy nobody has measured here. timm's own version of our models is taken in fp32, as its users export it.
The last row compares whole ways from JPEG files to labels, with two threads: ours, and Pillow, torchvision's
transforms as timm composes them and eager torch in batches of 16. Needs VITESSE_DATA for that row.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import DATA, table, write_record
from vitesse.bench import Timing, benchmark
from vitesse.bench.limits import gemm_rates
from vitesse.bench.measure import best_by_model
from vitesse.models import build, list_models
from vitesse.spec import ModelSpec

ROWS = (  # ours, peer, batch, the aim
    ("efficientvit_m5", "timm:mobilenetv3_large_100", 16, 1.80),
    ("efficientvit_m5", "timm:mobilenetv3_large_100", 1, 1.20),
    ("efficientvit_m2", "timm:mobilevit_xxs", 16, 7.4),
    ("shvit_s4", "timm:mobilevitv2_100", 16, 8.1),
    ("efficientvit_b1", "timm:efficientnet_b1", 16, 3.0),
    *((name, f"timm:{name}", 16, 2.6) for name in ("efficientvit_m5", "shvit_s4", "efficientvit_b1")),
    *((name, f"timm:{name}", 1, 2.0) for name in ("efficientvit_m5", "shvit_s4", "efficientvit_b1")),
)
GROUPS = [  # of what is compared with each other; all at once would not fit into memory
    list(dict.fromkeys(name for row in ROWS for name in row[:2] if row[0] == ours))
    for ours in dict.fromkeys(row[0] for row in ROWS)
]
SAME_MODEL = {f"timm:{name}" for name in list_models()}
LIMIT_AIM, PIPELINE_AIM = 0.55, 5.0
ENGINES = "onnxruntime,openvino,torch,torch-compile"
PIPELINE_MODEL = "efficientvit_m5"
USUAL_LOOP = (f"timm:{PIPELINE_MODEL}", "torch")


def ratios(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """One entry for each of `ROWS`: ours over the peer's fp32, and over the peer's best."""
    best, fp32 = best_by_model(timings), best_by_model(timings, "fp32")
    rows = []
    for ours, peer, batch, aim in ROWS:
        mine, float_peer, any_peer = best[ours, batch], fp32[peer, batch], best[peer, batch]
        rows.append(
            {
                "ours": f"{ours} {mine.contender.precision} {mine.contender.engine}",
                "peer": f"{peer} fp32 {float_peer.contender.engine}",
                "batch": batch,
                "image_sizes": [mine.contender.image_size, float_peer.contender.image_size],
                "ratio": round(float_peer.median_s / mine.median_s, 3),
                "peer_best": f"{any_peer.contender.precision} {any_peer.contender.engine}",
                "ratio_to_best": None if peer in SAME_MODEL else round(any_peer.median_s / mine.median_s, 3),
                "aim": aim,
            }
        )
    return rows


def share_of_limit(timings: Sequence[Timing], limits: Mapping[str, float]) -> float:
    """M5 in int8 at batch 16: multiply-accumulates a second over those of large matrix products."""
    timing = best_by_model(timings, "int8")["efficientvit_m5", 16]
    return round((timing.contender.macs or 0) / timing.median_s / limits["int8"], 3)


def pipeline(rounds: int) -> dict[str, Any]:
    """Photos to labels with two threads: the usual loop of timm's model over ours on its fastest engine."""
    timings = benchmark(
        [PIPELINE_MODEL, f"timm:{PIPELINE_MODEL}"],
        engines="onnxruntime,torch",  # beside idle threads of OpenVINO eager torch runs at half its speed
        batch_sizes=(16,),
        threads=2,
        rounds=rounds,
        stage="end-to-end",
        data=DATA / "in1k_samples" / "images",
    )
    ours = best_by_model(timings)[PIPELINE_MODEL, 16]
    (usual,) = (t for t in timings if (t.contender.model, t.contender.engine) == USUAL_LOOP)
    return {
        "speedup": round(usual.median_s / ours.median_s, 3),
        "ours": f"{ours.contender.precision} {ours.contender.engine}",
        "timings": [timing.to_dict() for timing in timings],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engines", default=ENGINES, help="compiling for torch-compile takes ten minutes")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    build(ModelSpec(name=PIPELINE_MODEL))  # imports what the timing must not wait for
    timings = [
        timing for group in GROUPS for timing in benchmark(group, engines=args.engines, rounds=args.rounds)
    ]
    limits = gemm_rates(1)
    found = ratios(timings)
    share, photos = share_of_limit(timings, limits), pipeline(args.rounds)
    content = {
        "rows": found,
        "int8_limit_share": share,
        "limits_macs_per_s": limits,
        "pipeline": photos,
        "timings": [timing.to_dict() for timing in timings],
    }
    path = write_record("headline", content, args.out)
    rows: list[list[object]] = [["ours", "peer", "batch", "ratio", "aim", "to peer's best", ""]]
    for row in found:
        to_best = "-" if row["ratio_to_best"] is None else f"{row['ratio_to_best']:.2f} ({row['peer_best']})"
        verdict = "met" if row["ratio"] >= row["aim"] else "short"
        cells = [row["ours"], row["peer"], row["batch"], f"{row['ratio']:.2f}", f"{row['aim']:.2f}"]
        rows.append([*cells, to_best, verdict])
    print(table(rows))
    print(f"M5 int8, batch 16: {share:.0%} of the int8 GEMM limit, aim {LIMIT_AIM:.0%}")
    print(
        f"photos to labels, two threads, {photos['ours']}: {photos['speedup']:.2f} times the usual loop, "
        f"aim {PIPELINE_AIM}"
    )
    print(path)


if __name__ == "__main__":
    main()
