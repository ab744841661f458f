"""Photos to labels: is the pipeline as fast as its slower half, is memory flat, how fast does it start?

    python benchmarks/predict.py                       # bundled artefact, 1000 photos of data/in1k_samples
    python benchmarks/predict.py --install-size        # and a fresh core install (needs the network)
    python benchmarks/predict.py --model my.onnx --limit 200 --rounds 3

For each engine, interleaved in one process: decode and resize alone, the model alone, and the pipeline,
with the same workers, threads and batch size; the first round warms up. `ratio` is the time of the slower
half over the time of the pipeline, round by round: 1.0 means that the faster half costs nothing. Processor
seconds are kept beside wall seconds. Memory is this process's resident set along one pass of the pipeline.
Starts are whole processes: wall and processor seconds, peak resident MB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from common import DATA, rounded, summary, table, write_record
from vitesse.runtime.artefact import Artefact, bundled_artefact, read_artefact
from vitesse.runtime.engines import available_engines, usable_cpus
from vitesse.runtime.imaging import load_tensor
from vitesse.runtime.predictor import Predictor

DISTINCT_BATCHES = 8
LAUNCHER = """
import json, os, subprocess, sys, time
before = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
wall = time.perf_counter() - before
cpu = usage.ru_utime + usage.ru_stime
print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_rss_mb": usage.ru_maxrss / 1024}))
sys.exit(os.waitstatus_to_exitcode(status))
"""
Start = dict[str, float]
Samples = dict[str, list[float]]
REPOSITORY = Path(__file__).parents[1]


def measure_engine(
    artefact: Artefact, engine: str, photos: list[Path], args: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of each part by round, ratios, and memory along the way."""
    predictor = Predictor(
        artefact, engine=engine, threads=args.threads, workers=args.workers, batch_size=args.batch_size
    )
    spec = artefact.manifest.preprocess
    tensors = [load_tensor(path, spec) for path in photos[: args.batch_size * DISTINCT_BATCHES]]
    batches = [
        np.stack(tensors[first : first + args.batch_size])
        for first in range(0, len(tensors), args.batch_size)
    ]

    def decode() -> None:
        with ThreadPoolExecutor(args.workers) as pool:
            for _ in pool.map(lambda path: load_tensor(path, spec).shape, photos):
                pass

    def model() -> None:
        for batch_BCHW in itertools.islice(itertools.cycle(batches), len(photos) // args.batch_size):
            predictor.engine.run(batch_BCHW)

    def pipeline() -> None:
        refused = sum(record.error is not None for record in predictor.stream(photos))
        assert refused == 0, f"{refused} photos were refused"

    seconds, cpu_seconds = timed({"decode": decode, "model": model, "pipeline": pipeline}, args.rounds)
    ratios = [
        max(decoded, modelled) / piped
        for decoded, modelled, piped in zip(
            *(seconds[part] for part in ("decode", "model", "pipeline")), strict=True
        )
    ]
    return {
        "photos_per_s": {part: len(photos) / summary(taken)["median"] for part, taken in seconds.items()},
        "ratio": summary(ratios),
        "raw_ratio": rounded(ratios),
        "raw_s": {part: rounded(taken) for part, taken in seconds.items()},
        "raw_cpu_s": {part: rounded(taken) for part, taken in cpu_seconds.items()},
        "rss_mb_along": memory_along(predictor, photos),
    }


def timed(parts: dict[str, Callable[[], None]], rounds: int) -> tuple[Samples, Samples]:
    """Wall and processor seconds of each part, interleaved, without the first round."""
    wall: Samples = {name: [] for name in parts}
    cpu: Samples = {name: [] for name in parts}
    for turn in range(rounds + 1):
        for name, run in parts.items():
            before, before_cpu = time.perf_counter(), time.process_time()
            run()
            if turn:
                wall[name].append(time.perf_counter() - before)
                cpu[name].append(time.process_time() - before_cpu)
    return wall, cpu


def memory_along(predictor: Predictor, photos: list[Path], points: int = 10) -> list[float]:
    """Resident MB of this process after each tenth of the photos."""
    process, found = psutil.Process(), []
    step = max(1, len(photos) // points)
    for count, _ in enumerate(predictor.stream(photos), 1):
        if count % step == 0:
            found.append(round(process.memory_info().rss / 1e6, 1))
    return found


def measure_starts(photo: Path, model: Path, repeats: int) -> dict[str, Any]:
    """Whole processes, interleaved: wall seconds and peak resident MB; the first of each warms the disk."""
    command = [sys.executable, "-m", "vitesse"] if not _script().exists() else [str(_script())]
    starts = {
        "python alone": [sys.executable, "-c", "pass"],
        "vitesse --help": [*command, "--help"],
        "vitesse predict one.jpg": [*command, "predict", str(photo), "--model", str(model)],
        "vitesse predict one.jpg --engine onnxruntime": [
            *command, "predict", str(photo), "--model", str(model), "--engine", "onnxruntime",
        ],
    }  # fmt: skip
    found: dict[str, list[Start]] = {name: [] for name in starts}
    for turn in range(repeats + 1):
        for name, arguments in starts.items():
            sample = start(arguments)
            if turn:
                found[name].append(sample)
    return {
        name: {
            **{part: summary([sample[part] for sample in samples]) for part in samples[0]},
            "raw_wall_s": rounded(sample["wall_s"] for sample in samples),
        }
        for name, samples in found.items()
    }


def start(arguments: list[str]) -> Start:
    """Run a process to its end: wall and processor seconds, and its own peak resident MB.

    A small process starts it, because a child's peak begins at the size of its parent.
    """
    done = subprocess.run([sys.executable, "-c", LAUNCHER, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {done.stderr}")
    found: Start = json.loads(done.stdout)
    return found


def _script() -> Path:
    return Path(sys.executable).with_name("vitesse")


def install_size_mb() -> float:
    """MB on disk of `pip install .` into an empty folder: the package and all core dependencies."""
    with tempfile.TemporaryDirectory() as folder:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, str(REPOSITORY)]
        subprocess.run(install, check=True)
        blocks = (path.lstat().st_blocks for path in Path(folder).rglob("*"))
        return sum(blocks) * 512 / 1e6


def main() -> None:
    cpus = usable_cpus()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="an artefact; the bundled one by default")
    parser.add_argument("--engine", nargs="+", default=list(available_engines()))
    parser.add_argument("--threads", type=int, default=cpus)
    parser.add_argument("--workers", type=int, default=min(8, cpus))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--starts", type=int, default=7, help="repeats of each process start; 0 leaves them out"
    )
    parser.add_argument("--install-size", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    artefact = read_artefact(args.model or bundled_artefact())
    photos = sorted((DATA / "in1k_samples" / "images").iterdir())[: args.limit]
    manifest = artefact.manifest
    content: dict[str, Any] = {
        "artefact": {
            "name": manifest.model.name, "sha256": artefact.sha256, "precision": manifest.precision,
            "accuracy": manifest.accuracy, "image_size": manifest.preprocess.image_size,
        },
        "settings": {key: value for key, value in vars(args).items() if key not in ("model", "out")},
        "photos": len(photos),
        "engines": {engine: measure_engine(artefact, engine, photos, args) for engine in args.engine},
    }  # fmt: skip
    if args.starts:
        content["starts"] = measure_starts(photos[0], artefact.path, args.starts)
    if args.install_size:
        content["core_install_mb"] = install_size_mb()
    path = write_record("predict", content, args.out)

    rows: list[list[object]] = [
        ["engine", "decode/s", "model/s", "pipeline/s", "ratio", "RSS MB first..last"]
    ]
    for engine, found in content["engines"].items():
        memory = found["rss_mb_along"]
        rows.append(
            [engine, *found["photos_per_s"].values(), found["ratio"]["median"], f"{memory[0]}..{memory[-1]}"]
        )
    print(table(rows))
    starts: list[list[object]] = [["process", "wall s", "p95", "cpu s", "peak MB"]]
    for name, found in content.get("starts", {}).items():
        wall, cpu, peak = found["wall_s"], found["cpu_s"], found["peak_rss_mb"]
        starts.append([name, wall["median"], wall["p95"], cpu["median"], peak["median"]])
    print(
        "",
        table(starts),
        f"core install: {content.get('core_install_mb', 'not measured')} MB",
        path,
        sep="\n",
    )


if __name__ == "__main__":
    main()
