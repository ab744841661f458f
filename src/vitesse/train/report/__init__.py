"""The page that explains a training run: one HTML file that needs nothing else."""

from vitesse.train.report.page import write_report
from vitesse.train.report.record import TOP1, TOP5, ClassTable, Measure, Predictions, RunRecord, Shown

__all__ = [
    "TOP1",
    "TOP5",
    "ClassTable",
    "Measure",
    "Predictions",
    "RunRecord",
    "Shown",
    "write_report",
]
