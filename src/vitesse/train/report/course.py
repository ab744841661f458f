"""The sections on how the training went: curves, speed, where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitesse.train.report import words
from vitesse.train.report.charts import Line, line_chart, percent, plain, stacked_bar
from vitesse.train.report.findings import Floats, curve, smoothed, stage_seconds
from vitesse.train.report.markup import Markup, join, tag
from vitesse.train.report.record import RunRecord

STAGE_NAMES = {
    "data": "waiting for pictures",
    "forward": "forward",
    "backward": "backward",
    "update": "updating the weights",
}
SMOOTHING = 60
"""A smoothed point is the mean of this part of the curve, to either side."""


def sections(record: RunRecord) -> list[Markup | None]:
    """Learning and speed, as far as the run has come."""
    learning = [
        _loss(record),
        _accuracy(record),
        _steps_chart(record, "lr", "Learning rate", "{:.3g}"),
        _steps_chart(record, "grad_norm", "Gradient norm", "{:.3g}", log=True),
    ]
    speed = [_time(record), _steps_chart(record, "img_per_s", "Pictures a second", "{:,.0f}", median=True)]
    return [
        section("learning", "How it learned", [part for part in learning if part], after=_epochs(record)),
        section("speed", "Where the time goes", [part for part in speed if part]),
    ]


def section(name: str, heading: str, parts: Sequence[Markup], after: object = "") -> Markup | None:
    """A section with its parts side by side where there is room; None without parts."""
    if not parts:
        return None
    return tag("section", tag("h2", heading), tag("div", *parts, class_="grid"), after, id=name)


def figure(heading: str, *content: object, advice: str = "") -> Markup:
    """A drawing under its heading, with a sentence below."""
    said = tag("p", advice, class_="advice") if advice else ""
    return tag("figure", tag("h3", heading), *content, said)


def key(*names: tuple[str, str], solid: bool = False, look: str = "key") -> Markup:
    """What each look of a line, or of an area where it is `solid`, means."""

    def sample(of: str) -> Markup:
        shape = tag("rect", width=22, height=10, class_=of) if solid else tag("path", d="M1 5h20", class_=of)
        return tag("svg", shape, viewBox="0 0 22 10", aria_hidden="true")

    return tag("ul", *(tag("li", sample(of), name) for name, of in names), class_=look)


def _loss(record: RunRecord) -> Markup | None:
    x_S, y_S = curve(record.steps, "loss")
    titles = _titles(record.steps, "loss", "{:.4g}")
    if not len(x_S):
        x_S, y_S = curve(record.epochs, "loss")
        titles = _titles(record.epochs, "loss", "{:.4g}")
    lines = [Line(x_S=x_S, y_S=y_S, look="faint", titles=titles)]
    names = [("each record", "line faint")]
    if len(x_S) > SMOOTHING:
        lines.append(Line(x_S=x_S, y_S=smoothed(y_S, len(y_S) // SMOOTHING)))
        names.append(("smoothed", "line first"))
    chart = line_chart(lines, label=f"Training loss over epochs. {_ends(y_S)}", log=_spread(y_S) > 100)
    drawn = join(key(*names), chart) if chart else None
    lost = words.lost_steps(record)
    return figure("Training loss", drawn or "", advice=lost) if drawn or lost else None


def _accuracy(record: RunRecord) -> Markup | None:
    rows = words.evaluated(record)
    if not rows:
        return None
    first, second = record.measures[:2]
    x_S, first_S = curve(rows, first.key)
    best = int(first_S.argmax())
    titles = [
        f"epoch {row['epoch']}: "
        + ", ".join(
            f"{measure.short} {words.percent(row[measure.key])}"
            for measure in (first, second)
            if row.get(measure.key) is not None
        )
        for row in rows
    ]
    second_x_S, second_S = curve(rows, second.key)
    chart = line_chart(
        [Line(x_S=second_x_S, y_S=second_S, look="second"), Line(x_S=x_S, y_S=first_S, titles=titles)],
        label=f"Held-out pictures over epochs. Best {first.short} {words.percent(first_S[best])}",
        show=percent,
        limits=(0.0, 1.0),
        peak=(float(x_S[best]), float(first_S[best]), f"best {words.percent(first_S[best])}"),
    )
    names = [(f"{first.name} ({first.short})", "line first")]
    names += [(f"{second.name} ({second.short})", "line second")] if len(second_S) else []
    return figure("Held-out pictures", key(*names), chart, advice=words.trend(record))


def _steps_chart(
    record: RunRecord, name: str, heading: str, form: str, *, log: bool = False, median: bool = False
) -> Markup | None:
    x_S, y_S = curve(record.steps, name)
    chart = line_chart(
        [Line(x_S=x_S, y_S=y_S, titles=_titles(record.steps, name, form))],
        label=f"{heading} over epochs. {_ends(y_S)}",
        log=log and _spread(y_S) > 100,
        limits=(0.0, np.inf),
    )
    finite_S = y_S[np.isfinite(y_S)]
    said = f"Median {form.format(np.median(finite_S))}." if median and len(finite_S) else ""
    return figure(heading, chart, tag("p", said) if said else "") if chart else None


def _time(record: RunRecord) -> Markup | None:
    seconds = stage_seconds(record.steps)
    if not seconds:
        return None
    shares = {stage: value / sum(seconds.values()) for stage, value in seconds.items()}
    named = [(STAGE_NAMES[stage], share) for stage, share in shares.items()]
    parts = [
        (f"{name}: {words.percent(share)}, {1000 * value:.1f} ms a step", f"part{at}")
        for at, ((name, share), value) in enumerate(zip(named, seconds.values(), strict=True))
    ]
    bar = stacked_bar(named, label="Time of a step: " + "; ".join(text for text, _ in parts))
    advice = words.advice_on_time(shares, record)
    return figure("Time of a step", bar, key(*parts, solid=True, look="key rows"), advice=advice)


def _epochs(record: RunRecord) -> Markup | str:
    """The figures behind the curves, for those who want or need numbers."""
    if not record.epochs:
        return ""
    forms = {
        "epoch": "{:d}",
        "loss": "{:.4f}",
        **{measure.key: "{:.2%}" for measure in record.measures},
        "nll": "{:.4f}",
        "ece": "{:.2%}",
        "skipped": "{:d}",
    }
    names = [name for name in forms if any(row.get(name) is not None for row in record.epochs)]
    heads = {measure.key: measure.short for measure in record.measures}
    heads |= {"nll": "log loss", "ece": "calibration error"}
    head = tag("tr", *(tag("th", heads.get(name, name), scope="col", class_="number") for name in names))
    rows = [
        tag("tr", *(tag("td", _cell(row.get(name), forms[name]), class_="number") for name in names))
        for row in record.epochs
    ]
    table = tag("table", tag("thead", head), tag("tbody", *rows))
    return tag(
        "details",
        tag("summary", "Every epoch in numbers"),
        tag("div", table, class_="card scroll tall", tabindex="0"),
    )


def _cell(value: Any, form: str) -> str:
    return "" if value is None else form.format(value).replace("%", "\u00a0%")


def _titles(rows: Sequence[Mapping[str, Any]], name: str, form: str) -> list[str]:
    return [
        f"epoch {plain(row['epoch'])}"
        + (f", step {row['step']:,}" if "step" in row else "")
        + f": {form.format(row[name])}"
        for row in rows
        if row.get(name) is not None
    ]


def _ends(y_S: Floats) -> str:
    finite_S = y_S[np.isfinite(y_S)]
    return f"From {plain(finite_S[0])} to {plain(finite_S[-1])}" if len(finite_S) else ""


def _spread(y_S: Floats) -> float:
    """Largest over smallest finite value; 1 where not all are above 0."""
    finite_S = y_S[np.isfinite(y_S)]
    return float(finite_S.max() / finite_S.min()) if len(finite_S) and finite_S.min() > 0 else 1.0
