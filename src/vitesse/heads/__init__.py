"""Heads for other tasks than classification; none knows a backbone."""
