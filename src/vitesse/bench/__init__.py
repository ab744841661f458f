"""How fast is it, on this machine, beside what else one could take? Contenders timed interleaved."""

from vitesse.bench.goal import Goal
from vitesse.bench.measure import Contender, Timing, time_interleaved
from vitesse.bench.run import benchmark

__all__ = ["Contender", "Goal", "Timing", "benchmark", "time_interleaved"]
