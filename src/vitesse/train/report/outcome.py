"""The sections on what the model can and cannot: mistakes, classes, confidence."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vitesse.errors import ImageError
from vitesse.runtime.imaging import read_for_display
from vitesse.train.report import words
from vitesse.train.report.charts import columns, heat_map, reliability
from vitesse.train.report.course import figure, key, section
from vitesse.train.report.findings import Ints, Judgement, Pair, calibration, judge
from vitesse.train.report.markup import Markup, tag
from vitesse.train.report.record import Predictions, RunRecord

WHOLE_MATRIX = 30
"""Classes up to which the confusion matrix shows all."""

WORST_MATRIX = 20
MOST_PAIRS = 12
MOST_PICTURES = 24
MOST_ROWS = 1000
MOST_COLUMNS = 400
THUMBNAIL = 96
"""Longer side of a thumbnail in pixels."""


def sections(record: RunRecord) -> list[Markup | None]:
    """Mistakes, classes and calibration; without predictions what was found, class by class."""
    if not record.predictions:
        return [_shown(record), _class_tables(record), section("balance", "Classes", [_balance(record)])]
    found = judge(record.predictions, len(record.class_names))
    names = record.class_names
    mistakes = [part for part in (_matrix(found, names), _pairs(found, names)) if part]
    sure = [part for part in (_calibration(found), _balance(record)) if part]
    return [
        section("mistakes", "What it takes for what", mistakes),
        _pictures(found, names),
        section("confidence", "Confidence and balance", sure),
        _classes(found, record),
    ]


def _shown(record: RunRecord) -> Markup | None:
    """Held-out pictures with what was found in them."""
    if not record.shown:
        return None
    pictures = [
        tag("li", tag("img", src=_embedded(one.jpeg), alt=one.text, loading="lazy"), tag("span", one.text))
        for one in record.shown
    ]
    heading = tag("h2", "What it sees")
    say = tag("p", "Held-out pictures, those first that went worst.")
    return tag("section", heading, say, tag("ul", *pictures, class_="shown"), id="shown")


def _class_tables(record: RunRecord) -> Markup | None:
    if not record.class_tables:
        return None
    heads = ("class", f"training {record.counted}s", f"held-out {record.counted}s")
    head = [
        tag("th", tag("button", name, type="button"), scope="col", class_="number" if at else None)
        for at, name in enumerate((*heads, *(table.name for table in record.class_tables)))
    ]
    first = [np.inf if value is None else value for value in record.class_tables[0].values]
    rows = [
        tag(
            "tr",
            tag("td", record.class_names[label]),
            *(
                tag("td", f"{counts_K[label]:,}", class_="number", data_value=int(counts_K[label]))
                for counts_K in (record.train_counts, record.val_counts)
            ),
            *(_share(np.nan if (v := table.values[label]) is None else v) for table in record.class_tables),
        )
        for label in np.argsort(first, kind="stable")[:MOST_ROWS].tolist()
    ]
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows), class_="sortable")
    say = " ".join(f"{table.name}: {table.explained}." for table in record.class_tables)
    card = tag("div", table, class_="card scroll tall", tabindex="0")
    return tag("section", tag("h2", "Class by class, worst first"), tag("p", say), card, id="classes")


def _embedded(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _matrix(found: Judgement, names: Sequence[str]) -> Markup:
    used = np.flatnonzero(found.shown_K + found.named_K)
    whole = len(used) <= WHOLE_MATRIX
    kept = used if whole else _most_confused(found)
    counts_RC = np.zeros((len(kept), len(kept)), np.int64)
    place = {label: row for row, label in enumerate(kept.tolist())}
    for pair in found.mistakes:
        if pair.label in place and pair.first in place:
            counts_RC[place[pair.label], place[pair.first]] = pair.pictures
    counts_RC[np.diag_indices(len(kept))] = found.hits_K[kept]
    shares_RC = counts_RC / np.maximum(found.shown_K[kept], 1)[:, None]
    what = "" if whole else f", the {len(kept)} most confused classes of {len(used):,}"
    drawing = heat_map(
        shares_RC,
        counts_RC,
        [names[label] for label in kept.tolist()],
        label=f"Confusion matrix of {len(kept)} classes; its largest mistakes stand in a table",
        cell=30.0 if len(kept) <= 12 else 17.0,
    )
    say = (
        "A row is what a picture is, a column what it was taken for. Stronger colours are larger shares of "
        "the row; mistakes have a scale of their own."
    )
    return figure(
        f"Confusion matrix{what}",
        key(("right (diagonal)", "right"), ("wrong", "wrong"), solid=True),
        tag("div", drawing, class_="scroll", tabindex="0"),
        tag("p", say, class_="small"),
    )


def _most_confused(found: Judgement) -> Ints:
    """Classes of the most frequent mistakes, in the order of the classes."""
    chosen: dict[int, None] = {}
    for pair in found.mistakes:
        if len(chosen | {pair.label: None, pair.first: None}) > WORST_MATRIX:
            break
        chosen |= {pair.label: None, pair.first: None}
    return np.asarray(sorted(chosen), np.int64)


def _pairs(found: Judgement, names: Sequence[str]) -> Markup:
    if not found.mistakes:
        return tag("div", tag("h3", "Most frequent mistakes"), tag("p", "None."), class_="card")
    rows = [
        tag(
            "tr",
            tag("td", names[pair.label]),
            tag("td", names[pair.first]),
            tag("td", f"{pair.pictures:,} of {found.shown_K[pair.label]:,}", class_="number"),
        )
        for pair in found.mistakes[:MOST_PAIRS]
    ]
    heads = [
        tag("th", "is", scope="col"),
        tag("th", "taken for", scope="col"),
        tag("th", "pictures", scope="col", class_="number"),
    ]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows))
    return tag("div", tag("h3", "Most frequent mistakes"), tag("div", table, class_="scroll"), class_="card")


def _pictures(found: Judgement, names: Sequence[str]) -> Markup | None:
    wrong = found.surest_mistakes[:MOST_PICTURES].tolist()
    if not wrong:
        return None
    tiles = [_tile(found.predictions, at, names) for at in wrong]
    say = "The mistakes it is surest of. Where it seems right, look at the label."
    card = tag("div", tag("ul", *tiles, class_="pictures"), class_="card")
    return tag("section", tag("h2", "Wrong and sure of it"), tag("p", say), card, id="hardest")


def _tile(shown: Predictions, at: int, names: Sequence[str]) -> Markup:
    label, first = names[shown.labels_N[at]], names[shown.firsts_N[at]]
    picture = int(shown.pictures_N[at])
    sure, own = words.percent(float(shown.confidences_N[at])), words.percent(float(shown.label_probs_N[at]))
    image = tag(
        "img",
        src=_embedded(_thumbnail(shown, picture)),
        alt=f"{label}, taken for {first}",
        title=shown.source.name(picture),
        width=THUMBNAIL,
        height=THUMBNAIL,
        loading="lazy",
    )
    return tag(
        "li",
        image,
        tag("span", "is ", tag("b", label), f" ({own})"),
        tag("span", "taken for ", tag("b", first), f" ({sure})"),
    )


def _thumbnail(shown: Predictions, picture: int) -> bytes:
    """A small JPEG; grey where the picture cannot be read."""
    try:
        image = read_for_display(shown.source.read(picture))
    except (ImageError, OSError):
        image = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "#8a8f98")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _classes(found: Judgement, record: RunRecord) -> Markup:
    taken_for = {pair.label: pair for pair in reversed(found.mistakes)}
    order = np.argsort(found.recall_K, kind="stable")[:MOST_ROWS].tolist()
    rows = [_class_row(found, record, label, taken_for.get(label)) for label in order]
    heads = ("class", "training", "held out", "found", "right when named", "most taken for")
    titles = ("", "pictures", "pictures", "recall", "precision", "")
    head = [
        tag(
            "th",
            tag("button", name, type="button", title=title or None),
            scope="col",
            class_="number" if 0 < number < 5 else None,
            aria_sort="ascending" if name == "found" else None,
        )
        for number, (name, title) in enumerate(zip(heads, titles, strict=True))
    ]
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows), class_="sortable")
    more = (
        f"The worst {MOST_ROWS:,} of {len(record.class_names):,}. "
        if len(record.class_names) > MOST_ROWS
        else ""
    )
    say = (
        f"{more}Found is the share of a class's held-out pictures that were recognised (recall); right when "
        "named, how often the model is right when it says this class (precision). A heading sorts."
    )
    card = tag("div", table, class_="card scroll tall", tabindex="0")
    return tag("section", tag("h2", "Class by class, worst first"), tag("p", say), card, id="classes")


def _class_row(found: Judgement, record: RunRecord, label: int, pair: Pair | None) -> Markup:
    return tag(
        "tr",
        tag("td", record.class_names[label]),
        *(
            tag("td", f"{counts_K[label]:,}", class_="number", data_value=int(counts_K[label]))
            for counts_K in (record.train_counts, record.val_counts)
        ),
        _share(float(found.recall_K[label])),
        _share(float(found.precision_K[label])),
        tag("td", f"{record.class_names[pair.first]} ({pair.pictures:,})" if pair else ""),
    )


def _share(share: float) -> Markup:
    if not np.isfinite(share):
        return tag("td", "none", class_="number", data_value="")
    bar = tag("span", tag("i", style=f"width:{100 * share:.0f}%"), class_="bar", aria_hidden="true")
    return tag("td", bar, words.percent(share), class_="number", data_value=f"{share:.4f}")


def _calibration(found: Judgement) -> Markup | None:
    confidences_N = found.predictions.confidences_N
    bins = calibration(confidences_N, found.right_N)
    if bins is None:
        return None
    drawing = reliability(bins, label=f"Share of right pictures by confidence. {words.sureness(bins)}")
    return figure(
        "Sure and right",
        key(("share that is right", "part0"), solid=True),
        key(("how sure it was", "said"), ("as it should be", "line diagonal")),
        drawing,
        tag("p", "Below: how many pictures it was so sure of.", class_="small"),
        tag("p", words.unsure_numbers(confidences_N)) if words.unsure_numbers(confidences_N) else "",
        advice=words.sureness(bins),
    )


def _balance(record: RunRecord) -> Markup:
    order = np.argsort(-record.train_counts, kind="stable")
    if len(order) > MOST_COLUMNS:
        order = order[np.linspace(0, len(order) - 1, MOST_COLUMNS).astype(int)]
    drawing = columns(
        record.train_counts[order].tolist(),
        [
            f"{record.class_names[label]}: {record.train_counts[label]:,} {record.counted}s for training, "
            f"{record.val_counts[label]:,} held out"
            for label in order.tolist()
        ],
        label=f"Training {record.counted}s of each class. {words.balance(record)}",
    )
    say = tag("p", "One column a class, the largest first.", class_="small")
    return figure(f"Training {record.counted}s a class", drawing, say, advice=words.balance(record))
