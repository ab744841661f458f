"""From an fp32 file to an int8 one that is worth it: calibrated, and measured against what it replaces."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitesse.data.sources import Subset, open_source
from vitesse.errors import DataError, ExportError, ImageError
from vitesse.export.onnx import write_artefact
from vitesse.export.quantize import noise, quantize
from vitesse.metrics import Showing, outcomes_in_groups, score, with_classes
from vitesse.progress import say
from vitesse.runtime.artefact import Artefact, read_artefact
from vitesse.runtime.autoselect import seconds_a_picture
from vitesse.runtime.engines import available_engines, create_engine
from vitesse.runtime.imaging import load_tensor

if TYPE_CHECKING:
    from vitesse.data.sources import Source
    from vitesse.spec import PreprocessSpec

CALIBRATION_IMAGES, MIN_CALIBRATION_IMAGES = 128, 16
HELD_OUT_IMAGES = 1000
MAX_LOSS = 0.005
"""Of top-1 against fp32 on the same pictures, as a fraction of them."""

ATTEMPTS, FLOAT_SHARE = 4, 0.04
"""While top-1 falls too far, so often this share of the operators goes back to float, the noisiest first."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """int8, on the engine where it is worse, beside fp32 on the same pictures; and both speeds.

    `groups` is what the manifest says of a multiplexed model beside its accuracy.
    """

    fp32_top1: float
    int8_top1: float
    int8_top5: float
    images: int
    groups: Mapping[str, Any]
    img_per_s: Mapping[str, Mapping[str, float]]

    @property
    def loss(self) -> float:
        """Of top-1, as a fraction of the pictures."""
        return self.fp32_top1 - self.int8_top1

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
            f"top-1 {self.fp32_top1:.2%} in fp32, {self.int8_top1:.2%} in int8 on {self.images} pictures; "
            f"pictures a second here: {rates}"
        )


def to_int8(
    proto: Any,
    fp32: Artefact,
    calibrate: str | Path | Source,
    data: Source | None,
    *,
    dataset: Mapping[str, Any],
    force: bool = False,
) -> Artefact:
    """The int8 form of an fp32 artefact, in memory: its `path` is gone, its `data` is what to write.

    Args:
        proto: the fp32 model as `onnx.ModelProto`.
        fp32: the same as an artefact.
        calibrate: pictures as `open_source` reads them.
        data: labelled pictures to compare on; without them held-out ones of `calibrate`.
        dataset: how the manifest calls what is compared on.
        force: give it even if it loses accuracy or time.

    Raises:
        DataError: too few pictures, or none of the model's kind.
        ExportError: it loses more than `MAX_LOSS`, or is no faster, and not `force`; or cannot be quantised.
    """
    name = Path(calibrate).name if isinstance(calibrate, (str, Path)) else calibrate.fingerprint
    source = with_classes(open_source(calibrate, "train"), fp32.manifest.class_names)
    seen, unseen = _parted(source, hold_out=data is None)
    images_BCHW = calibration_images(seen, fp32.manifest.preprocess)
    if data is None:
        data, dataset = unseen, {"dataset": name, "split": "held out of calibration"}
    width = fp32.manifest.mux_width
    showing = Showing(preprocess=fp32.manifest.preprocess, mux_width=width)
    fp32_top1 = score(create_engine(fp32), data, showing).top1
    _check_comparable(fp32_top1, data, fp32.manifest.model.num_classes)
    floats: list[str] = []
    int8_proto = quantize(proto, images_BCHW, floats, width)
    for attempts_left in reversed(range(ATTEMPTS)):
        int8 = _read(int8_proto, replace(fp32.manifest, precision="int8"), fp32.path.name)
        found = _compare(fp32, int8, data, showing, fp32_top1)
        say(str(found))
        if found.loss <= MAX_LOSS or not attempts_left:
            break
        floats += _noisiest(noise(int8_proto, images_BCHW), floats, len(proto.graph.node))
        int8_proto = quantize(proto, images_BCHW, floats, width)
    _judge(found, force)
    manifest = replace(
        int8.manifest,
        accuracy={**dataset, "top1": found.int8_top1, "top5": found.int8_top5, "images": found.images}
        | {"fp32_top1": found.fp32_top1, **found.groups},
        calibration={"dataset": name, "images": len(images_BCHW), "ranges": "extremes"}
        | {"float_operators": floats, "img_per_s": {k: dict(v) for k, v in found.img_per_s.items()}},
    )
    return _read(int8_proto, manifest, fp32.path.name)


def calibration_images(source: Source, preprocess: PreprocessSpec) -> NDArray[np.float32]:
    """Preprocessed pictures of a source, those that can be read: (B, C, H, W).

    Raises:
        DataError: fewer than `MIN_CALIBRATION_IMAGES`.
    """
    tensors, refusal = [], ""
    for index in range(len(source)):
        try:
            tensors.append(load_tensor(source.read(index), preprocess))
        except (ImageError, OSError) as error:
            refusal = f"; {source.name(index)}: {error}"
    if len(tensors) < MIN_CALIBRATION_IMAGES:
        raise DataError(
            f"--calibrate: expected at least {MIN_CALIBRATION_IMAGES} pictures, got {len(tensors)}{refusal}"
        )
    return np.stack(tensors)


def _parted(source: Source, *, hold_out: bool) -> tuple[Source, Source]:
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
    return Subset(source, np.sort(seen)), Subset(source, np.sort(unseen))


def _check_comparable(fp32_top1: float, data: Source, num_classes: int) -> None:
    """Refuse pictures on which a loss could not be seen, and say so where a small one could not.

    Raises:
        DataError: fp32 is no better than chance on them.
    """
    if fp32_top1 <= 1 / num_classes:
        raise DataError(
            f"fp32 has {fp32_top1:.2%} of {len(data)} pictures right, no more than chance: these are not the "
            "model's classes, and int8 cannot be compared on them"
        )
    if len(data) * MAX_LOSS < 1:
        say(f"of {len(data)} pictures one is {1 / len(data):.1%}: a loss of {MAX_LOSS:.1%} needs more")


def _compare(fp32: Artefact, int8: Artefact, data: Source, showing: Showing, fp32_top1: float) -> Comparison:
    parts, rates = [], {}
    for name in available_engines():
        engines = {artefact.manifest.precision: create_engine(artefact, name) for artefact in (fp32, int8)}
        found, agreement = outcomes_in_groups(engines["int8"], data, showing)
        parts.append((found.scores(data), agreement))
        seconds = seconds_a_picture({key: engine.run for key, engine in engines.items()}, fp32)
        rates[name] = {precision: round(1 / took, 2) for precision, took in seconds.items()}
    worst, agreement = min(parts, key=lambda part: part[0].top1)
    return Comparison(
        fp32_top1=fp32_top1,
        int8_top1=worst.top1,
        int8_top5=worst.top5,
        images=worst.images,
        groups={} if agreement is None else {"slots": worst.slots, "agreement": agreement},
        img_per_s=rates,
    )


def _judge(found: Comparison, force: bool) -> None:
    faults = []
    if found.loss > MAX_LOSS:
        faults.append(f"loses {100 * found.loss:.2f} points of top-1, at most {100 * MAX_LOSS} are allowed")
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
