"""From a finished run to a shipped model: an artefact, proven and scored, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.errors import require
from vitesse.export import export
from vitesse.publish import write_card

if TYPE_CHECKING:
    from vitesse.runtime.artefact import Artefact
    from vitesse.train import TrainResult


def check_tools() -> None:
    """To know before a training that its model can be shipped.

    Raises:
        MissingExtraError: a package that this takes is not installed.
    """
    for module in ("onnx", "onnxscript", "onnxslim"):
        require(module, "export")


def ship(result: TrainResult, folder: str | Path, precision: str = "fp32") -> Artefact:
    """Write `model.onnx` of a run's best weights to its folder, and `README.md`, the model's card.

    Parity and accuracy are measured on the run's held-out pictures; int8 is calibrated on those it was
    trained on.

    Args:
        result: of `vitesse.train`.
        precision: `fp32`, `fp16` or `int8`.

    Raises:
        ExportError: see `vitesse.export`.
    """
    folder = Path(folder)
    artefact = export(
        result.best,
        folder / "model.onnx",
        data=result.val_source,
        precision=precision,
        calibrate=result.train_source if precision == "int8" else None,
        trained_on=result.data,
    )
    write_card(artefact.path, folder)
    return artefact
