"""What a model says of labelled pictures, scored: torch models and artefacts by the same code."""

from vitesse.metrics.classes import with_classes
from vitesse.metrics.detection import BoxScorer, BoxScores
from vitesse.metrics.label_sets import read_label_sets, score_label_sets
from vitesse.metrics.run import Showing, outcomes, outcomes_in_groups, score
from vitesse.metrics.scores import Outcomes, Scores, calibration_error, label_ranks
from vitesse.metrics.segmentation import MapScorer, MapScores
from vitesse.metrics.tasks import DENSE_BATCH, EXAMINATIONS, Examination, Figures, Found, examine, open_for

__all__ = [
    "DENSE_BATCH",
    "EXAMINATIONS",
    "BoxScorer",
    "BoxScores",
    "Examination",
    "Figures",
    "Found",
    "MapScorer",
    "MapScores",
    "Outcomes",
    "Scores",
    "Showing",
    "calibration_error",
    "examine",
    "label_ranks",
    "open_for",
    "outcomes",
    "outcomes_in_groups",
    "read_label_sets",
    "score",
    "score_label_sets",
    "with_classes",
]
