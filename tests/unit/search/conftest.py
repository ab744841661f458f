"""What tests of searches share: a small space, and a machine and trainings that follow a law."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vitesse.search import latency, loop, samples
from vitesse.search.cost import Cost
from vitesse.search.latency import Measured
from vitesse.search.loop import Search
from vitesse.search.samples import Samples
from vitesse.search.settings import Settings
from vitesse.search.space import EfficientViTSpace, Space
from vitesse.search.trials import Journal
from vitesse.spec import ModelSpec

CLASSES = 5
EPOCHS = 2


def shape_of(spec: ModelSpec) -> dict[str, Any]:
    """A spec's widths, depths and so on, also of a hand-made one."""
    space = EfficientViTSpace(image_sizes=spec.image_size[:1])
    return dict(spec.variant) or space.variant(space.point_of(space.configs[spec.name]))


def size_of(spec: ModelSpec) -> int:
    """Depths times squared widths, in place of what a model computes."""
    shape = shape_of(spec)
    return sum(depth * dim**2 for depth, dim in zip(shape["depths"], shape["embed_dim"], strict=True))


UNIT = size_of(ModelSpec(name="efficientvit_m0", image_size=(32, 32)))


def law_of_latency(spec: ModelSpec) -> float:
    """Over that of M0: a call's overhead and the size."""
    return 0.1 + 0.9 * size_of(spec) / UNIT


def law_of_accuracy(spec: ModelSpec) -> float:
    """Best with heads of 24 values in the last stage, queries of 16, and a size as large as may be."""
    shape = shape_of(spec)
    width = shape["embed_dim"][2] // shape["num_heads"][2]
    return 0.6 - 0.01 * abs(width - 24) - 0.01 * abs(shape["key_dim"] - 16) + 0.1 * size_of(spec) / UNIT


class Machine:
    """Times and trains by the laws; counts what it is asked for, and breaks when told to."""

    def __init__(self) -> None:
        self.measured: list[ModelSpec] = []
        self.trained: list[tuple[ModelSpec, int]] = []
        self.break_at: int | None = None
        self.refuse: Callable[[ModelSpec], bool] = lambda spec: False
        self.law = law_of_accuracy

    def measure(self, specs: Sequence[ModelSpec]) -> list[Measured]:
        self.measured += specs
        return [Measured(spec=spec, ratio=law_of_latency(spec), reference_s=0.002) for spec in specs]

    def train(self, spec: ModelSpec, folder: Path, seed: int, watch: Callable[[int, float], bool]) -> float:
        if self.break_at is not None and len(self.trained) >= self.break_at:
            raise KeyboardInterrupt
        if self.refuse(spec):
            raise MemoryError("not enough memory: you tried to allocate 9 GB\nand more")
        self.trained.append((spec, seed))
        (folder / "checkpoints").mkdir(parents=True)
        for epoch in range(1, EPOCHS + 1):
            top1 = self.law(spec) * epoch / EPOCHS
            if watch(epoch, top1):
                break
        return top1


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def small_space() -> Space:
    """Some hundred architectures, M0 among them."""
    return EfficientViTSpace(
        image_sizes=(32,),
        depths=(range(1, 2), range(1, 3), range(1, 4)),
        num_heads=(range(4, 5), range(4, 5), range(2, 5)),
        head_widths=(range(16, 17, 8), range(32, 33, 8), range(16, 57, 8)),
        key_dims=range(8, 25, 8),
        kernels=("5555",),
        windows=(0,),
    )


@pytest.fixture
def make_search(
    tmp_path: Path, machine: Machine, small_space: Space, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Search]:
    """A function that opens a search of the small space on the machine; its keys are those of `Settings`."""

    def cost(spec: ModelSpec, batch_size: int = 1) -> Cost:
        return Cost(dense_macs=size_of(spec))

    for module in (latency, loop, samples):
        monkeypatch.setattr(module, "cost_of", cost)

    def make(**changes: Any) -> Search:
        asked = {"max_latency": "efficientvit_m0", "trials": 8, "image_sizes": (32,), "samples": 12}
        settings = Settings(**{**asked, "engine": "torch", "confirm": 1, **changes})
        conditions = {"reference": {"name": "efficientvit_m0"}}
        return Search(
            folder=tmp_path,
            settings=settings,
            journal=Journal(tmp_path, small_space, CLASSES, settings.identity()),
            samples=Samples.open(tmp_path / "latency.json", conditions, machine.measure),
            train=machine.train,
            measure=machine.measure,
            epochs=EPOCHS,
        )

    return make


@pytest.fixture
def change() -> Callable[..., Any]:
    """`dataclasses.replace`."""
    return dataclasses.replace
