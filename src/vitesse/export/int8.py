"""From an fp32 file to an int8 one that is worth it: calibrated, and measured against what it replaces."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.subset import part_of
from vitesse.errors import DataError, ExportError, ImageError
from vitesse.export.onnx import write_artefact
from vitesse.export.quantize import last_layers, noise, quantize
from vitesse.metrics import EXAMINATIONS, Figures, examine, open_for
from vitesse.progress import say
from vitesse.runtime.artefact import Artefact, read_artefact
from vitesse.runtime.autoselect import seconds_a_picture
from vitesse.runtime.engines import available_engines, create_engine
from vitesse.runtime.imaging import load_tensor

if TYPE_CHECKING:
    from vitesse.data.contract import Pictures
    from vitesse.spec import PreprocessSpec, Task

CALIBRATION_IMAGES, MIN_CALIBRATION_IMAGES = 128, 16
HELD_OUT_IMAGES = 1000
MAX_LOSS = 0.005
"""Of top-1, AP or mean IoU against fp32 on the same pictures, 0 to 1."""

ATTEMPTS, FLOAT_SHARE = 4, 0.04
"""While accuracy falls too far: attempts, and the share of operators that each gives back to float."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """int8, on the engine where it is worse, beside fp32 on the same pictures; and both speeds.

    `groups` is what the manifest says of a multiplexed model beside its accuracy.
    """

    fp32: Figures
    int8: Figures
    groups: Mapping[str, Any]
    img_per_s: Mapping[str, Mapping[str, float]]

    @property
    def loss(self) -> float:
        """Of the figure that counts, 0 to 1."""
        return self.fp32.best_by - self.int8.best_by

    @property
    def accuracy(self) -> dict[str, Any]:
        """For the manifest: the figures of int8, and the one that counts of fp32."""
        key = next(iter(self.fp32.brief()))
        known = {**self.int8.brief(), "images": self.int8.images, f"fp32_{key}": self.fp32.brief()[key]}
        return known | dict(self.groups)

    @property
    def speedup(self) -> float:
        """int8 on its fastest engine over fp32 on its own."""
        fastest = {
            precision: max(rates[precision] for rates in self.img_per_s.values())
            for precision in ("fp32", "int8")
        }
        return fastest["int8"] / fastest["fp32"]

    def __str__(self) -> str:
        rates = ", ".join(
            f"{engine} {rate['fp32']:.0f} to {rate['int8']:.0f}" for engine, rate in self.img_per_s.items()
        )
        return (
            f"fp32: {self.fp32.explain()}; int8: {self.int8.explain()}; on {self.int8.images} pictures; "
            f"pictures a second here: {rates}"
        )


def to_int8(
    proto: Any,
    fp32: Artefact,
    calibrate: str | Path | Pictures,
    data: Any,
    *,
    dataset: Mapping[str, Any],
    force: bool = False,
) -> Artefact:
    """The int8 form of an fp32 artefact, in memory: its `path` is gone, its `data` is what to write.

    Args:
        proto: the fp32 model as `onnx.ModelProto`.
        fp32: the same as an artefact.
        calibrate: pictures as `open_for` reads them.
        data: labelled pictures of the model's classes to compare on; without it held-out ones of `calibrate`.
        dataset: how the manifest calls what is compared on.
        force: give it even if it loses accuracy or time.

    Raises:
        DataError: too few pictures, or none of the model's kind.
        ExportError: it loses more than `MAX_LOSS`, or is no faster, and not `force`; or cannot be quantised.
    """
    manifest = fp32.manifest
    name = Path(calibrate).name if isinstance(calibrate, (str, Path)) else calibrate.fingerprint
    found = open_for(manifest.task, calibrate, "train")
    source = EXAMINATIONS[manifest.task].of_classes(found, manifest.class_names)
    seen, unseen = _parted(source, hold_out=data is None)
    images_BCHW = calibration_images(seen, manifest.preprocess)
    if data is None:
        data, dataset = unseen, {"dataset": name, "split": "held out of calibration"}
    fp32_figures, _ = examine(create_engine(fp32), fp32, data)
    _check_comparable(fp32_figures, manifest.task, len(data), manifest.model.num_classes)
    floats = [] if manifest.task == "classify" else last_layers(proto)
    int8_proto = quantize(proto, images_BCHW, floats, manifest.mux_width)
    for attempts_left in reversed(range(ATTEMPTS)):
        int8 = _read(int8_proto, replace(manifest, precision="int8"), fp32.path.name)
        compared = _compare(fp32, int8, data, fp32_figures)
        say(str(compared))
        if compared.loss <= MAX_LOSS or not attempts_left:
            break
        floats += _noisiest(noise(int8_proto, images_BCHW), floats, len(proto.graph.node))
        int8_proto = quantize(proto, images_BCHW, floats, manifest.mux_width)
    _judge(compared, force)
    rates = {engine: dict(rate) for engine, rate in compared.img_per_s.items()}
    calibration = {"dataset": name, "images": len(images_BCHW), "ranges": "extremes"}
    worth = replace(
        int8.manifest,
        accuracy={**dataset, **compared.accuracy},
        calibration={**calibration, "float_operators": floats, "img_per_s": rates},
    )
    return _read(int8_proto, worth, fp32.path.name)


def calibration_images(source: Pictures, preprocess: PreprocessSpec) -> NDArray[np.float32]:
    """Preprocessed pictures of a source, those that can be read: (B, C, H, W).

    Raises:
        DataError: fewer than `MIN_CALIBRATION_IMAGES`.
    """
    tensors, refusal = [], ""
    for index in range(len(source)):
        try:
            tensors.append(load_tensor(source.read(index), preprocess.of_one_size))
        except (ImageError, OSError) as error:
            refusal = f"; {source.name(index)}: {error}"
    if len(tensors) < MIN_CALIBRATION_IMAGES:
        raise DataError(
            f"--calibrate: expected at least {MIN_CALIBRATION_IMAGES} pictures, got {len(tensors)}{refusal}"
        )
    return np.stack(tensors)


def _parted(source: Any, *, hold_out: bool) -> tuple[Any, Any]:
    """Pictures to calibrate on and others, drawn by seed 0; with `hold_out` at least half are others.

    Raises:
        DataError: too few.
    """
    wanted = MIN_CALIBRATION_IMAGES * (1 + hold_out)
    if len(source) < wanted:
        half = ", half of them to compare on" if hold_out else ""
        raise DataError(f"--calibrate: expected at least {wanted} pictures{half}, got {len(source)}")
    order = np.random.default_rng(0).permutation(len(source))
    first = min(CALIBRATION_IMAGES, len(source) // 2 if hold_out else len(source))
    seen, unseen = order[:first], order[first:][:HELD_OUT_IMAGES]
    return part_of(source, np.sort(seen)), part_of(source, np.sort(unseen))


def _check_comparable(fp32: Figures, task: Task, images: int, num_classes: int) -> None:
    """Refuse pictures on which a loss could not be seen, and say so where a small one could not.

    Raises:
        DataError: fp32 is no better than chance on them.
    """
    chance = 0 if task == "detect" else 1 / num_classes
    if fp32.best_by <= chance:
        raise DataError(
            f"fp32 has {fp32.explain()} on {images} pictures, no more than chance: these are not the "
            "model's classes, and int8 cannot be compared on them"
        )
    if task == "classify" and images * MAX_LOSS < 1:
        say(f"of {images} pictures one is {1 / images:.1%}: a loss of {MAX_LOSS:.1%} needs more")


def _compare(fp32: Artefact, int8: Artefact, data: Any, fp32_figures: Figures) -> Comparison:
    parts, rates = [], {}
    for name in available_engines():
        engines = {artefact.manifest.precision: create_engine(artefact, name) for artefact in (fp32, int8)}
        parts.append(examine(engines["int8"], int8, data))
        seconds = seconds_a_picture({key: engine.run for key, engine in engines.items()}, fp32)
        rates[name] = {precision: round(1 / took, 2) for precision, took in seconds.items()}
    worst, groups = min(parts, key=lambda part: part[0].best_by)
    return Comparison(fp32=fp32_figures, int8=worst, groups=groups, img_per_s=rates)


def _judge(found: Comparison, force: bool) -> None:
    faults = []
    if found.loss > MAX_LOSS:
        faults.append(f"loses {100 * found.loss:.2f} points, at most {100 * MAX_LOSS} are allowed")
    if found.speedup <= 1:
        faults.append(f"is {found.speedup:.2f} times as fast as fp32")
    if faults and not force:
        raise ExportError(
            f"int8 {' and '.join(faults)}: {found}; nothing was written, --force writes it anyway"
        )


def _noisiest(ratios: Mapping[str, float], known: list[str], num_nodes: int) -> list[str]:
    """The operators, not yet float, whose inputs eight bits hold worst."""
    ranked = sorted((name for name in ratios if name not in known), key=lambda name: ratios[name])
    return ranked[: max(1, round(FLOAT_SHARE * num_nodes))]


def _read(proto: Any, manifest: Any, name: str) -> Artefact:
    with tempfile.TemporaryDirectory() as folder:
        write_artefact(proto, manifest, Path(folder) / name)
        return read_artefact(Path(folder) / name)
