"""Ours against timm's same models on a GPU: eager, channels last, compiled, CUDA graph; fp16 and bf16.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --models efficientvit_m5 shvit_s4 --batch-sizes 1 256 --rounds 20
    python benchmarks/gpu.py --device cpu --models efficientvit_m0 --batch-sizes 1     # a try without a GPU

All ways to run a model, ours and timm's, take turns in one process, on pictures that are already on the
device; a run ends when the device has finished. Ours are folded, timm's are as its users get them. A model's
figure is its fastest way; `ratio` is timm's time over ours. Weights are random.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import table, write_record
from vitesse.bench import Contender, Timing, time_interleaved
from vitesse.bench.measure import best_by_model
from vitesse.export import fold
from vitesse.models import build
from vitesse.spec import ModelSpec

MODELS = ("efficientvit_m1", "efficientvit_m5", "shvit_s1", "shvit_s4", "efficientvit_b1", "efficientvit_l1")
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
WAYS = ("eager", "channels-last", "compiled", "cuda-graph")


def contenders(models: list[str], device: torch.device) -> Iterator[Contender]:
    """Every way to run ours, then timm's, of each model."""
    ways = WAYS if device.type == "cuda" else WAYS[:2]
    for name in models:
        spec = ModelSpec(name=name)
        for model, make in {
            name: lambda s=spec: fold(build(s)),
            f"timm:{name}": lambda s=spec: theirs(s),
        }.items():
            for precision in PRECISIONS:
                for way in ways:
                    yield Contender(
                        model=model,
                        engine=way,
                        precision=precision,
                        image_size=spec.image_size,
                        start=starter(make, way, PRECISIONS[precision], device),
                        feed=feeder(spec, way, PRECISIONS[precision], device),
                    )


def theirs(spec: ModelSpec) -> nn.Module:
    """timm's model of the same name."""
    return build(ModelSpec(name=f"timm:{spec.name}", image_size=spec.image_size)).eval()


def memory_format(way: str) -> torch.memory_format:
    return torch.contiguous_format if way == "eager" else torch.channels_last


def feeder(
    spec: ModelSpec, way: str, dtype: torch.dtype, device: torch.device
) -> Callable[[int], torch.Tensor]:
    """Batches (B, C, H, W) on the device, each made once."""
    made: dict[int, torch.Tensor] = {}

    def feed(batch_size: int) -> torch.Tensor:
        if batch_size not in made:
            noise_BCHW = torch.randn(batch_size, spec.in_chans, *spec.image_size)
            made[batch_size] = noise_BCHW.to(device, dtype, memory_format=memory_format(way))
        return made[batch_size]

    return feed


def starter(
    make: Callable[[], nn.Module], way: str, dtype: torch.dtype, device: torch.device
) -> Callable[[], Callable[[torch.Tensor], None]]:
    """Gives a function that runs a batch and waits for the device."""

    def start() -> Callable[[torch.Tensor], None]:
        torch.manual_seed(0)
        model: Any = make().to(device, dtype, memory_format=memory_format(way)).eval()
        if way == "compiled":
            model = torch.compile(model)
        if way == "cuda-graph":
            model = Graphed(model)

        @torch.inference_mode()
        def run(batch_BCHW: torch.Tensor) -> None:
            model(batch_BCHW)
            if device.type == "cuda":
                torch.cuda.synchronize()

        return run

    return start


class Graphed:
    """A model whose kernels are recorded once for each batch and replayed."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def __call__(self, batch_BCHW: torch.Tensor) -> None:
        address = batch_BCHW.data_ptr()
        if address not in self._graphs:
            self._graphs[address] = self._record(batch_BCHW)
        self._graphs[address].replay()

    def _record(self, batch_BCHW: torch.Tensor) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._model(batch_BCHW)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._model(batch_BCHW)
        return graph


def ratios(timings: list[Timing]) -> list[dict[str, Any]]:
    """timm's time over ours, each at its fastest way, by model, precision and batch size."""
    rows = []
    for precision in PRECISIONS:
        best = best_by_model(timings, precision)
        for (model, batch_size), ours in best.items():
            theirs = best.get((f"timm:{model}", batch_size))
            if theirs is not None:
                rows.append(
                    {
                        "model": model,
                        "precision": precision,
                        "batch": batch_size,
                        "ours": ours.contender.engine,
                        "timm": theirs.contender.engine,
                        "ratio": round(theirs.median_s / ours.median_s, 3),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=(1, 256))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("expected a CUDA device, this torch sees none; --device cpu tries the script without")
    timings = []
    for name in args.models:  # one after the other: all graphs at once would fill the memory
        timings += time_interleaved(
            list(contenders([name], device)), args.batch_sizes, rounds=args.rounds, threads=1
        )
    rows = ratios(timings)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    content = {"device": device_name, "rows": rows, "timings": [timing.to_dict() for timing in timings]}
    path = write_record("gpu", content, args.out)
    keys = ["model", "precision", "batch", "ours", "timm", "ratio"]
    print(table([keys, *([row[key] for key in keys] for row in rows)]))
    for timing in timings:
        if timing.error:
            who = timing.contender
            print(f"{who.model} {who.engine} {who.precision} batch {timing.batch_size}: {timing.error}")
    print(path)


if __name__ == "__main__":
    main()
