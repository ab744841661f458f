"""Is training faster than with timm's train.py, what does its loader do, and what do two processes bring?

    python benchmarks/training.py loader             # pictures a second, ready for the model
    python benchmarks/training.py step               # whole steps: data loading, model, update, average
    python benchmarks/training.py scaling            # two gloo processes against one; checkpoints

Both sides augment alike (crop 0.08 to 1 bicubic, mirror, rand-m9-mstd0.5-inc1, mixup 0.8 or CutMix 1.0,
erasing 0.25, smoothing 0.1), in fp32, with the same batches, worker processes and threads, AdamW, adaptive
clipping at 0.02 and a moving average. `timm` is what train.py does by its defaults with these settings
(create_loader with its prefetcher, FastCollateMixup, create_optimizer_v2, dispatch_clip_grad, ModelEmaV3);
`timm_cl` adds its --channels-last, as ours has it. Interleaved in one process; a ratio is timm's seconds over
ours in the same round, its median over the rounds: above 1 ours is faster.

A round of `loader` is an epoch from asking for the first batch to the last, normalised, erased and mixed.
A round of `step` is `--steps` steps of a stream of batches that goes on from round to round; then the same on
one batch over and over. Beside wall seconds stand the processor seconds of the process and its workers, which
other work on the machine disturbs less. Memory is the peak of the proportional set size of the process and
its workers, each contender in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import timm
import torch
from PIL import Image
from timm.data import FastCollateMixup, create_dataset, create_loader, create_transform
from timm.loss import SoftTargetCrossEntropy
from timm.models import model_parameters
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor

from common import DATA, markdown, rounded, summary, write_record
from vitesse.data.loader import AugmentedPictures, Batch
from vitesse.data.sampler import Key
from vitesse.data.sources import Source, open_source
from vitesse.data.transforms import Augment
from vitesse.files import write_atomically
from vitesse.runtime.decode import DEFAULT_LIMITS, decode
from vitesse.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from vitesse.train.checkpoint import digest, gather_training
from vitesse.train.folder import RunFacts
from vitesse.train.loop import Trainer
from vitesse.train.recipe import Recipe
from vitesse.train.stopping import StopSignals
from vitesse.weights.load import load_weights

MODELS = ("efficientvit_m5", "shvit_s1")
SIDE = 224
SETTINGS: dict[str, Any] = {
    "crop_scale": (0.08, 1.0), "interpolation": "bicubic", "hflip": 0.5, "random_erase": 0.25,
    "rand_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1,
    "lr": 1e-3, "weight_decay": 0.025, "clip_grad": 0.02, "clip_mode": "agc", "ema": 0.9999,
    "ema_warmup": "none", "precision": "fp32", "image_size": SIDE, "trackers": (), "epochs": 300,
}  # fmt: skip
Samples = dict[str, dict[str, list[float]]]
"""Seconds of each round, by clock (wall, processor) and contender."""
Ready = tuple[Tensor, Tensor]
"""A batch for the model: pictures float32 (B, C, H, W), target shares (B, K)."""


class Ours:
    """The trainer as `vitesse train` builds it."""

    def __init__(
        self, model: str, args: argparse.Namespace, folder: Path, channels_last: bool = True
    ) -> None:
        source = photos()
        recipe = Recipe(
            **SETTINGS,
            batch_size=args.batch * int(os.environ.get("WORLD_SIZE", "1")),
            workers=args.workers,
            channels_last=channels_last,
            compile=args.compile,
        )
        spec = ModelSpec(name=model, image_size=(SIDE, SIDE), num_classes=len(source.class_names))
        facts = RunFacts(
            out=folder,
            data="in1k_samples",
            spec=spec,
            recipe=recipe,
            train_source=source,
            val_source=source,
        )
        self.trainer = Trainer(facts, StopSignals())
        self.steps = 0

    def ready(self) -> Iterator[Ready]:
        """An epoch of batches, as the step makes them ready."""
        loss: Any = self.trainer.step.loss
        for batch in self.batches():
            yield loss.mix(loss.transform(batch.images_BCHW), loss.targets.of(batch.indices_B))

    def batches(self) -> Iterator[Batch]:
        self.trainer.keys.start_at(self.steps)
        return iter(self.trainer.batches)

    def step(self, batches: Iterator[Batch]) -> None:
        self.trainer.model.train()
        self.trainer.step(batches, self.steps, 1.0, stop=False, save=False)
        self.steps += 1


class Timm:
    """What train.py builds and does."""

    def __init__(self, model: str, args: argparse.Namespace, folder: Path, channels_last: bool) -> None:
        self.channels_last = channels_last
        num_classes = len(photos().class_names)
        mixing = FastCollateMixup(0.8, 1.0, label_smoothing=0.1, num_classes=num_classes)
        self.loader = create_loader(
            create_dataset("", class_folders(folder)),
            (3, SIDE, SIDE), args.batch, is_training=True, re_prob=0.25, re_mode="pixel", scale=(0.08, 1.0),
            color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic",
            mean=IMAGENET_MEAN, std=IMAGENET_STD, num_workers=args.workers, collate_fn=mixing,
            device=torch.device("cpu"),
        )  # fmt: skip
        self.model = timm.create_model(model, num_classes=num_classes)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = create_optimizer_v2(self.model, "adamw", lr=1e-3, weight_decay=0.025)
        self.average = ModelEmaV3(self.model, decay=0.9999)
        self.forward = torch.compile(self.model) if args.compile else self.model
        self.loss, self.steps = SoftTargetCrossEntropy(), 0

    def ready(self) -> Iterator[Ready]:
        return iter(self.loader)

    batches = ready

    def step(self, batches: Iterator[Ready]) -> None:
        self.model.train()
        x_BCHW, targets_BK = next(batches)
        if self.channels_last:
            x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        loss = self.loss(self.forward(x_BCHW), targets_BK)
        loss.backward()
        dispatch_clip_grad(model_parameters(self.model, exclude_head=True), 0.02, mode="agc")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.average.update(self.model, step=self.steps)
        loss.item()


CONTENDERS: dict[str, Callable[[str, argparse.Namespace, Path], Ours | Timm]] = {
    "vitesse": Ours,
    "timm": lambda model, args, folder: Timm(model, args, folder, channels_last=False),
    "timm_cl": lambda model, args, folder: Timm(model, args, folder, channels_last=True),
}


def photos() -> Source:
    return open_source(DATA / "in1k_samples")


def class_folders(folder: Path) -> Path:
    """The photos as timm reads them, a folder a class."""
    root, source = folder / "classes", photos()
    for index, label in enumerate(source.labels):
        place = root / f"{label:04}" / Path(source.name(index)).name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source.name(index))
    return root


def built(names: tuple[str, ...], model: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Contenders by name, with equal weights."""
    sides = {}
    for name in names:
        (place := folder / name).mkdir()
        sides[name] = CONTENDERS[name](model, args, place)
    theirs = next(side.model for side in sides.values() if isinstance(side, Timm))
    load_weights(sides["vitesse"].trainer.plain, theirs.state_dict())
    return sides


def interleaved(sides: dict[str, Any], run: Callable[[Any], object], rounds: int) -> Samples:
    """Wall and processor seconds of every round after one that warms up; no side is always the first."""
    samples: Samples = {clock: {name: [] for name in sides} for clock in ("wall", "processor")}
    order = list(sides)
    for turn in range(rounds + 1):
        order.append(order.pop(0))
        for name in order:
            before, before_cpu = time.perf_counter(), processor_seconds()
            run(sides[name])
            if turn:
                samples["wall"][name].append(time.perf_counter() - before)
                samples["processor"][name].append(processor_seconds() - before_cpu)
    return samples


def processor_seconds() -> float:
    """Of this process and its children, those that ended and those that run."""
    running = [child.cpu_times() for child in psutil.Process().children()]
    return sum(os.times()[:4]) + sum(times.user + times.system for times in running)


def compared(samples: Samples) -> dict[str, Any]:
    """Each peer's seconds over ours, round by round, and the samples."""
    found: dict[str, Any] = {
        "raw_s": {clock: {k: rounded(v) for k, v in sides.items()} for clock, sides in samples.items()}
    }
    for clock, sides in samples.items():
        peers = {
            name: np.divide(taken, sides["vitesse"]) for name, taken in sides.items() if name != "vitesse"
        }
        found[f"{clock}_ratio"] = {name: summary(values) for name, values in peers.items()}
    return found


def time_loader(args: argparse.Namespace) -> dict[str, Any]:
    def epoch(side: Ours | Timm) -> None:
        assert sum(len(x_BCHW) for x_BCHW, _ in side.ready()) == images

    images = len(photos()) // args.batch * args.batch
    with tempfile.TemporaryDirectory() as folder:
        sides = built(("vitesse", "timm"), MODELS[1], args, Path(folder))
        samples = interleaved(sides, epoch, args.rounds)
    speeds = {name: images / summary(taken)["median"] for name, taken in samples["wall"].items()}
    return {"pictures_per_s": speeds, **compared(samples), "profile_ms_per_picture": profile()}


def profile(pictures: int = 400) -> dict[str, dict[str, float]]:
    """Processor milliseconds that a worker spends on a picture: decoding, the rest, RandAugment."""
    source, policy = photos(), SETTINGS["rand_augment"]
    encoded = [source.read(index) for index in range(pictures)]

    def ours(rand_augment: str) -> Callable[[int], object]:
        augment = Augment((SIDE, SIDE), crop_scale=(0.08, 1.0), rand_augment=rand_augment)
        chosen = AugmentedPictures(source, augment, 0)
        return lambda index: chosen[Key(0, index)]

    def theirs(auto_augment: str | None) -> Callable[[int], object]:
        transform = create_transform(
            SIDE, is_training=True, auto_augment=auto_augment, color_jitter=None, interpolation="bicubic",
            use_prefetcher=True,
        )  # fmt: skip
        return lambda index: transform(opened(index))

    def decoded(index: int) -> object:
        return decode(encoded[index], DEFAULT_LIMITS, lambda *_: None)

    def opened(index: int) -> Image.Image:
        with Path(source.name(index)).open("rb") as file:
            return Image.open(file).convert("RGB")

    parts = {
        "vitesse": (decoded, ours(""), ours(policy)),
        "timm": (opened, theirs(None), theirs(policy)),
    }  # fmt: skip
    found = {}
    for name, runs in parts.items():
        taken = [min(processor_ms(run, pictures) for _ in range(3)) for run in runs]
        steps = np.diff(taken, prepend=0.0)
        found[name] = dict(
            zip(("decode", "crop, mirror, resize", "rand_augment"), rounded(steps), strict=True)
        )
    return found


def processor_ms(run: Callable[[int], object], times: int) -> float:
    started = time.process_time()
    for index in range(times):
        run(index)
    return 1000 * (time.process_time() - started) / times


def time_steps(args: argparse.Namespace) -> dict[str, Any]:
    return {model: time_model(model, args) for model in args.models}


def time_model(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Whole steps, then steps on one batch over and over."""
    with tempfile.TemporaryDirectory() as folder:
        sides = built(tuple(CONTENDERS), model, args, Path(folder))
        streams = {side: endless(side) for side in sides.values()}
        same = {side: itertools.repeat(next(stream)) for side, stream in streams.items()}

        def loaded(side: Ours | Timm) -> None:
            steps(side, streams[side], args.steps)

        def unloaded(side: Ours | Timm) -> None:
            steps(side, same[side], args.steps)

        found = {
            "with_loading": compared(interleaved(sides, loaded, args.rounds)),
            "without_loading": compared(interleaved(sides, unloaded, args.rounds)),
        }
        phases = sides["vitesse"].trainer.clock.read()
    return {
        **found,
        "phases_of_ours_s": {name: round(value, 4) for name, value in phases.items()},
        "peak_mb": {name: peak_mb(name, model, args) for name in CONTENDERS},
    }


def endless(side: Ours | Timm) -> Iterator[Any]:
    """Batches of one epoch after the other."""
    while True:
        yield from side.batches()


def steps(side: Ours | Timm, batches: Iterator[Any], count: int) -> None:
    for _ in range(count):
        side.step(batches)


def peak_mb(contender: str, model: str, args: argparse.Namespace) -> float:
    """Of a process that trains a few steps, with its workers."""
    done = child("memory", "--contender", contender, "--models", model, args=args)
    return float(done["peak_mb"])


def child(*arguments: str, args: argparse.Namespace, launcher: tuple[str, ...] = ()) -> Any:
    """What this script says, as JSON in its last line, in another process."""
    sizes = ("--batch", str(args.batch), "--workers", str(args.workers), "--steps", str(max(4, args.steps)))
    command = [sys.executable, *launcher, __file__, *arguments, *sizes]
    threads = {"OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def watch_memory(args: argparse.Namespace) -> dict[str, float]:
    """Train and sample the memory of this process and its children."""
    peak, ended = [0.0], threading.Event()

    def sample() -> None:
        me = psutil.Process()
        while not ended.wait(0.05):
            peak[0] = max(peak[0], sum(map(set_size_mb, (me, *me.children(recursive=True)))))

    with tempfile.TemporaryDirectory() as folder:
        side = CONTENDERS[args.contender](args.models[0], args, Path(folder))
        watcher = threading.Thread(target=sample)
        watcher.start()
        steps(side, side.batches(), args.steps)
        ended.set()
        watcher.join()
    return {"peak_mb": round(peak[0], 1)}


def set_size_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 1e6
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return 0.0


def time_scaling(args: argparse.Namespace) -> dict[str, Any]:
    """Pictures a second of two processes of one thread over twice those of one; what bookkeeping costs."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    speeds: dict[str, list[float]] = {"one": [], "two": []}
    for turn in range(args.rounds):
        for name in ("one", "two") if turn % 2 else ("two", "one"):
            chosen = launcher if name == "two" else ()
            done = child("rank", "--models", args.models[0], args=args, launcher=chosen)
            speeds[name].append(done["pictures_per_s"])
    efficiency = np.divide(speeds["two"], np.multiply(2, speeds["one"]))
    return {
        "model": args.models[0],
        "efficiency": {**summary(efficiency), "raw": rounded(efficiency)},
        "raw_pictures_per_s": {name: rounded(values, 2) for name, values in speeds.items()},
        "costs": bookkeeping(args),
    }


def run_rank(args: argparse.Namespace) -> dict[str, float]:
    """Steps of this process' part of a batch, with loading in the same process."""
    args.workers = 0
    with tempfile.TemporaryDirectory() as folder:
        side = Ours(args.models[0], args, Path(folder))
        batches = side.batches()
        steps(side, batches, 2)
        seconds = timed(lambda: steps(side, batches, args.steps))
        world = side.trainer.accelerator.num_processes
        if world > 1:
            torch.distributed.destroy_process_group()
    return {"pictures_per_s": args.batch * args.steps * world / seconds}


def bookkeeping(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a checkpoint and its parts, its bytes, and of what every step does beside training."""
    with tempfile.TemporaryDirectory() as folder:
        side = Ours(args.models[0], args, Path(folder))
        trainer, batches = side.trainer, side.batches()
        steps(side, batches, 1)
        tensors = gather_training(trainer.model, trainer.optimizer.optimizer)
        checkpoints = trainer.folder.checkpoints
        parts = {
            "step": lambda: side.step(batches),
            "keep_buffers": trainer.step.buffers.keep,
            "gather": lambda: gather_training(trainer.model, trainer.optimizer.optimizer),
            "digest": lambda: digest(tensors),
            "state": lambda: checkpoints.save(trainer.progress, {}, lambda: None),
            "state_and_model": trainer._save,
        }
        seconds = {name: [timed(run) for _ in range(5)] for name, run in parts.items()}
        files = {path.name: path.stat().st_size for path in (checkpoints.folder / "last").iterdir()}
        parameters = sum(parameter.numel() for parameter in trainer.plain.parameters())
    medians = {name: summary(taken)["median"] for name, taken in seconds.items()}
    epoch = medians["step"] * 1_281_167 / args.batch
    return {
        "parameters": parameters,
        "bytes": files,
        "bytes_per_parameter": {name: round(size / parameters, 2) for name, size in files.items()},
        "median_s": {name: round(value, 5) for name, value in medians.items()},
        "steps_that_a_checkpoint_costs": round(medians["state_and_model"] / medians["step"], 3),
        "share_of_ten_minutes": round(medians["state_and_model"] / 600, 5),
        "share_of_an_imagenet_epoch": round(medians["state_and_model"] / epoch, 7),
        "raw_s": {name: rounded(taken, 5) for name, taken in seconds.items()},
    }


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def text(part: str, found: dict[str, Any]) -> str:
    """A record as Markdown."""
    return markdown({"loader": loader_rows, "step": step_rows, "scaling": scaling_rows}[part](found))


def loader_rows(found: dict[str, Any]) -> list[list[Any]]:
    rows = [["", "vitesse", "timm", "ratio"]]
    rows.append(["pictures a second", *found["pictures_per_s"].values(), median(found, "wall", "timm")])
    rows.append(["processor seconds", "", "", median(found, "processor", "timm")])
    ours, theirs = (found["profile_ms_per_picture"][side] for side in ("vitesse", "timm"))
    return rows + [
        [f"{part}, ms a picture", ours[part], theirs[part], theirs[part] / ours[part]] for part in ours
    ]


def step_rows(found: dict[str, Any]) -> list[list[Any]]:
    kinds, clocks = ("with_loading", "without_loading"), ("wall", "processor")
    rows = [
        [
            "model",
            "against",
            "with loading",
            "processor",
            "without loading",
            "processor",
            "peak MB",
            "of ours",
        ]
    ]
    for model, result in found["models"].items():
        for peer in ("timm", "timm_cl"):
            speedups = [median(result[kind], clock, peer) for kind in kinds for clock in clocks]
            peaks = [round(result["peak_mb"][side]) for side in (peer, "vitesse")]
            rows.append([model, peer, *speedups, *peaks])
    return rows


def scaling_rows(found: dict[str, Any]) -> list[list[Any]]:
    costs = found["costs"]
    return [
        [f"{found['model']}", "value"],
        ["efficiency of two processes", found["efficiency"]["median"]],
        *([f"{name}, ms", 1000 * value] for name, value in costs["median_s"].items()),
        *([f"{name}, MB", size / 1e6] for name, size in costs["bytes"].items()),
        ["a checkpoint in steps", costs["steps_that_a_checkpoint_costs"]],
    ]


def median(found: dict[str, Any], clock: str, peer: str) -> float:
    value: float = found[f"{clock}_ratio"][peer]["median"]
    return value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("loader", "step", "scaling", "memory", "rank"))
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch", type=int, default=32, help="pictures a step and process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="loading processes beside the one that trains")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="of a round")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--contender", choices=tuple(CONTENDERS), help="whose memory to watch")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.part in ("memory", "rank"):
        found = (watch_memory if args.part == "memory" else run_rank)(args)
        if os.environ.get("RANK", "0") == "0":  # lines of two processes may run into each other
            print(json.dumps(found))
        return
    run = {"loader": time_loader, "scaling": time_scaling, "step": lambda args: {"models": time_steps(args)}}
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "contender")}
    found = run[args.part](args)
    name = f"training_{args.part}"
    path = write_record(name, {"settings": settings, **found}, args.out)
    write_atomically(path.with_suffix(".md"), text(args.part, found).encode())
    print(text(args.part, found), path, sep="\n")


if __name__ == "__main__":
    main()
