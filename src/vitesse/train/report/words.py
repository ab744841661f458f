"""Figures as sentences: what a person wants to know, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitesse.train.report.findings import Calibration, Ints, curve
from vitesse.train.report.record import TOP1, RunRecord

WAITING, UPDATING = 0.25, 0.4
"""Shares of the time from which on waiting for pictures and updating the weights are worth a change."""

FEW_STEPS, MANY_STEPS = 100, 500
"""In fewer steps of a run its start weighs too much; of so many in an epoch a larger batch leaves enough."""

CLEAR_DROP, CLEAR_RISE, CLEAR_GAP = 0.01, 0.02, 0.02
"""Of accuracy after its best, in its last fifth, and against confidence: less is not worth a word."""

OFTEN_LOST = 0.01
"""Share of the steps that may be lost without a word of advice: half precision begins with a few."""


def percent(share: float) -> str:
    """In per cent with one decimal."""
    return f"{100 * share:.1f}\u00a0%" if math.isfinite(share) else "unknown"


def duration(seconds: float) -> str:
    """In the two largest units that matter."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def several(number: int, noun: str) -> str:
    """`1 picture`, `2 pictures`."""
    plural = f"{noun}es" if noun.endswith("ss") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def main(record: RunRecord) -> str:
    """The key of the figure that decides."""
    return record.measures[0].key


def evaluated(record: RunRecord) -> list[Mapping[str, Any]]:
    """The epochs that were evaluated."""
    key = main(record)
    return [row for row in record.epochs if row.get(key) is not None and math.isfinite(row[key])]


def judged(record: RunRecord) -> int:
    """Held-out pictures that the latest figures are of."""
    if record.judged:
        return record.judged
    return len(record.predictions) if record.predictions else int(record.val_counts.sum())


def _steps_done(record: RunRecord) -> int:
    return int(record.steps[-1]["step"]) if record.steps else 0


def verdict(record: RunRecord) -> str:
    """The run in one sentence."""
    rows = evaluated(record)
    if not rows:
        return f"No held-out picture has been judged yet; {several(_steps_done(record), 'step')} done."
    last = rows[-1]
    time = f", {duration(last['seconds'])}" if last.get("seconds") is not None else ""
    pictures, share = several(judged(record), "held-out picture"), percent(last[main(record)])
    if record.measures[0] is TOP1:
        said = f"{share} of {pictures} right"
    else:
        name = record.measures[0].name
        said = f"{name[0].upper()}{name[1:]} {share} on {pictures}"
    return f"{said} after {several(int(last['epoch']), 'epoch')}{time}{_best(rows, main(record))}."


def _best(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    best = max(rows, key=lambda row: row[key])
    if len(rows) == 1:
        return ""
    if best is rows[-1]:
        return "; the last epoch is the best"
    return f"; best epoch {int(best['epoch'])} ({percent(best[key])})"


def trend(record: RunRecord) -> str:
    """Whether to change the number of epochs, where the accuracies tell.

    A level end tells nothing: a learning rate that falls to 0 always makes one. Nor does a run that goes on.
    """
    rows, key = evaluated(record), main(record)
    if len(rows) < 3 or record.status != "finished":
        return ""
    best, last = max(rows, key=lambda row: row[key]), rows[-1]
    lost = best[key] - last[key]
    if _is_clear(lost, CLEAR_DROP, best[key], judged(record)):
        return (
            f"{100 * lost:.1f} points below epoch {int(best['epoch'])}, whose weights are in "
            "checkpoints/best: fewer epochs= or stronger augmentation may serve better."
        )
    before = max(row[key] for row in rows[: -max(1, len(rows) // 5)])
    if _is_clear(last[key] - before, CLEAR_RISE, last[key], judged(record)):
        return "Still rising at the end: more epochs= may give more."
    return ""


def standard_error(share: float, number: int) -> float:
    """Of a share of so many pictures."""
    return math.sqrt(share * (1 - share) / max(number, 1))


def _is_clear(difference: float, least: float, share: float, number: int) -> bool:
    """Whether a share of so many pictures differs by more than `least`, and than chance makes likely."""
    return difference > max(least, 2 * standard_error(share, number))


def lost_steps(record: RunRecord) -> str:
    """Losses that are not finite, and steps that were skipped, with advice where they are many."""
    _, losses_S = curve(record.steps, "loss")
    broken = int((~np.isfinite(losses_S)).sum())
    skipped = sum(int(row.get("skipped") or 0) for row in record.epochs)
    said = [f"{several(broken, 'recorded loss')} not finite (crosses)"] if broken else []
    said += [f"{several(skipped, 'step')} skipped"] if skipped else []
    often = broken > OFTEN_LOST * len(losses_S) or skipped > OFTEN_LOST * _steps_done(record)
    advice = ": a lower lr= or precision=fp32 may help." if often else "."
    return " and ".join(said) + advice if said else ""


def advice_on_time(shares: Mapping[str, float], record: RunRecord) -> str:
    """What to change so that a step takes less time; empty after a few steps, which tell nothing."""
    if _steps_done(record) < FEW_STEPS:
        return ""
    workers, cores = record.recipe.get("workers"), record.provenance.get("cores")
    if shares["data"] >= WAITING:
        said = percent(shares["data"]) + " of the time the model waits for pictures: "
        if workers is not None and cores is not None and workers >= cores:
            return said + f"all {cores} cores decode already, so store smaller pictures or augment less."
        return said + "raise workers=" + (f" (now {workers})" if workers is not None else "") + "."
    if shares["update"] >= UPDATING and _steps_done(record) / record.steps[-1]["epoch"] >= MANY_STEPS:
        return f"{percent(shares['update'])} of the time goes into updating the weights: raise batch_size=."
    return f"{percent(1 - shares['data'])} of the time the model computes; pictures come fast enough."


def balance(record: RunRecord) -> str:
    """How evenly what is learnt from is spread over the classes."""
    counts = record.train_counts
    empty = np.flatnonzero(counts == 0).tolist()
    if empty:
        names = ", ".join(record.class_names[index] for index in empty[:5])
        more = ", …" if len(empty) > 5 else ""
        return f"{several(len(empty), 'class')} without any training {record.counted}: {names}{more}."
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[least] == counts[most]:
        return f"Every class has {several(int(counts[least]), f'training {record.counted}')}."
    return (
        f"{record.class_names[most]} has {counts[most] / counts[least]:.1f} times the {record.counted}s of "
        f"{record.class_names[least]} ({counts[most]:,} and {counts[least]:,})."
    )


def sureness(found: Calibration) -> str:
    """Whether the model's confidence can be believed, as far as so many pictures tell."""
    error = f"Expected calibration error {percent(found.ece)}. "
    gap = found.overconfidence
    if not _is_clear(abs(gap), CLEAR_GAP, found.accuracy, int(found.counts_G.sum())):
        return error + "On average it is as sure as it may be."
    more = "surer" if gap > 0 else "less sure"
    return error + f"On average it is {more} than it is right, by {abs(100 * gap):.1f} points."


def unsure_numbers(values: Ints | Any) -> str:
    """Of confidences that are not finite; empty where all are."""
    number = int((~np.isfinite(values)).sum())
    return f"{several(number, 'picture')} without a finite confidence left out." if number else ""
