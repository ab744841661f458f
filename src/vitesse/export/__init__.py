"""From a torch model to an artefact that runs without torch."""

from vitesse.export.artefact import export
from vitesse.export.fold import fold

__all__ = ["export", "fold"]
