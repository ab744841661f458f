"""The page that explains a training run: one HTML file that needs nothing else."""

from vitesse.train.report.page import write_report
from vitesse.train.report.record import Predictions, RunRecord

__all__ = ["Predictions", "RunRecord", "write_report"]
