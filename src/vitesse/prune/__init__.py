"""Smaller models out of trained ones: the channels that matter least are taken out, for good."""

from vitesse.prune.run import Pruned, prune

__all__ = ["Pruned", "prune"]
