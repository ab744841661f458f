"""x"""
from __future__ import annotations
from typing import Any
from vitesse.search.latency import Meter
from vitesse.spec import to_mapping


def conditions_of(meter: Meter) -> dict[str, Any]:
    """What must agree between latencies that are compared."""
    return to_mapping(meter)
