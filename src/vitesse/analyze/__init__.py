"""Where does the time go? Profiles of every engine in one format, by operator and by module."""

from vitesse.analyze.runtime import RuntimeAnalysis, analyze_runtime

__all__ = ["RuntimeAnalysis", "analyze_runtime"]
