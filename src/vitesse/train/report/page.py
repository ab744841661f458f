"""A run's record as one HTML page: styles, script, drawings and thumbnails inside, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from vitesse.files import write_atomically
from vitesse.train.report import course, outcome
from vitesse.train.report.findings import curve
from vitesse.train.report.markup import Markup, join, tag
from vitesse.train.report.record import TOP1, RunRecord
from vitesse.train.report.words import duration, evaluated, judged, percent, several, standard_error, verdict


def write_report(record: RunRecord, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        OSError: the file cannot be written; an older page stays.
    """
    write_atomically(path, render(record).encode())


def render(record: RunRecord) -> Markup:
    """The whole page."""
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", record.title),
        tag("style", Markup(_asset("page.css"))),
    )
    sections = [
        *course.sections(record),
        *outcome.sections(record),
        _notes(record),
        _origin(record),
    ]
    main = tag("main", *(section for section in sections if section))
    body = tag("body", _header(record), main, tag("script", Markup(script)))
    return join(Markup("<!doctype html>\n"), tag("html", head, body, lang="en"), Markup("\n"))


def _header(record: RunRecord) -> Markup:
    done = record.status == "finished"
    return tag(
        "header",
        tag("h1", record.title),
        tag("p", verdict(record), class_="verdict"),
        tag(
            "p",
            tag("span", f"{'✓' if done else '●'} {record.status}", class_=f"status{' done' if done else ''}"),
        ),
        tag("p", _described(record), class_="dim"),
        tag("dl", *_tiles(record), class_="tiles"),
    )


def _described(record: RunRecord) -> str:
    """Model and data in one line."""
    model = record.model
    side = model["image_size"]
    size = " by ".join(map(str, side)) if isinstance(side, (tuple, list)) else f"{side} by {side}"
    parts = [
        str(model["name"]),
        f"{model['params'] / 1e6:.1f} M parameters",
        f"{model['macs'] / 1e6:,.0f} M MACs" if model.get("macs") else "",
        f"{size} pixels",
        several(int(model["num_classes"]), "class"),
        several(int(record.train_counts.sum()), f"training {record.counted}"),
    ]
    return " · ".join(filter(None, parts))


def _tiles(record: RunRecord) -> Iterator[Markup]:
    """The few figures to know."""
    rows = evaluated(record)
    if rows:
        for measure in record.measures:
            value, more = rows[-1].get(measure.key), ""
            if measure is TOP1:
                error = standard_error(rows[-1][measure.key], judged(record))
                more = f"± {100 * error:.1f} points (standard error)"
            if value is not None:
                yield _tile(measure.name, percent(value), more)
    _, losses_S = curve(record.steps, "loss")
    if np.isfinite(losses_S).any():
        yield _tile("training loss", f"{losses_S[np.isfinite(losses_S)][-1]:.3f}")
    _, speeds_S = curve(record.steps, "img_per_s")
    if np.isfinite(speeds_S).any():
        yield _tile("pictures a second", f"{np.median(speeds_S[np.isfinite(speeds_S)]):,.0f}")
    if record.epochs and record.epochs[-1].get("seconds") is not None:
        yield _tile("time in training", duration(record.epochs[-1]["seconds"]))


def _tile(name: str, value: str, more: str = "") -> Markup:
    return tag("div", tag("dt", name), tag("dd", value), tag("dd", more, class_="small") if more else "")


def _notes(record: RunRecord) -> Markup | None:
    if not record.notes:
        return None
    lines = tag("ul", *(tag("li", note) for note in record.notes), class_="card")
    return tag("section", tag("h2", "Notes"), lines, id="notes")


def _origin(record: RunRecord) -> Markup:
    folds = {"Recipe": record.recipe, "Where it came from": record.provenance, "Model": record.model}
    tables = [
        tag("details", tag("summary", name), tag("div", _table(values), class_="card scroll"))
        for name, values in folds.items()
    ]
    return tag("section", tag("h2", "To make it again"), *tables, id="origin")


def _table(values: Mapping[str, Any]) -> Markup:
    """Names and values; a mapping inside is a table of its own."""
    rows = [
        tag("tr", tag("th", name, scope="row"), tag("td", _written(value))) for name, value in values.items()
    ]
    return tag("table", tag("tbody", *rows))


def _written(value: Any) -> Markup:
    if isinstance(value, Mapping):
        return _table(value)
    if isinstance(value, (list, tuple)):
        return tag("code", ", ".join(map(str, value)))
    return tag("code", "none" if value is None else value)


def _asset(name: str) -> str:
    return (resources.files("vitesse.train.report") / name).read_text(encoding="utf-8")
