"""Charts as inline SVG; colours and text sizes are classes of the page's style sheet.

Lengths are in units of the drawing, which the page scales to the width at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vitesse.train.report.findings import Calibration, Floats, Ints, thinned
from vitesse.train.report.markup import Markup, join, tag

WIDTH, HEIGHT = 420.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 10.0, 14.0, 34.0
MOST_POINTS = 400
MOST_LETTERS = 17
STRONG = 0.25
"""Share of a class from which on a mistake has its full colour, where none is larger."""

MOST_DOTS = 60
"""A line of at most so many points shows each as a dot."""

Show = Callable[[float], str]


def plain(value: float) -> str:
    """A number as short as an axis wants it."""
    return f"{value:,.6g}"


def percent(share: float) -> str:
    """In per cent, without decimals."""
    return f"{share:.0%}".replace("%", "\u00a0%")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve. `look` is a class of the style sheet; `titles` are shown where the pointer is."""

    x_S: Floats
    y_S: Floats
    look: str = "first"
    titles: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to places along an axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values on the axis, about five."""
        if not self.log:
            return round_steps(self.low, self.high)
        exponents = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        return [10.0**exponent for exponent in exponents][:: math.ceil(len(exponents) / 6) or 1]


def round_steps(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within the limits, three to seven of them."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    show: Show = plain,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    peak: tuple[float, float, str] | None = None,
) -> Markup | None:
    """Curves over epochs; None where no value is finite.

    A value that is not finite is a cross at the upper edge, and the line is broken there.

    Args:
        label: what the drawing shows, for those who cannot see it.
        show: writes a value of the y axis.
        log: a logarithmic y axis, where all values are above 0.
        limits: values that the y axis never goes beyond.
        peak: (x, y, text) of a point to ring.
    """
    values = np.concatenate([line.y_S[np.isfinite(line.y_S)] for line in lines])
    if not len(values):
        return None
    x_low, x_high = _range(np.concatenate([line.x_S for line in lines]), pad=0.0)
    x = Scale(low=x_low, high=x_high, start=LEFT, end=WIDTH - RIGHT)
    y = _y_scale(values, log, limits)
    curves = [_curve(line, x, y) for line in lines]
    return _svg(label, WIDTH, HEIGHT, _axes(x, y, show), *curves, _peak(peak, x, y))


def _y_scale(values: Floats, log: bool, limits: tuple[float, float] | None) -> Scale:
    log = log and 0 < values.min() < values.max()
    low, high = (values.min() / 1.1, values.max() * 1.1) if log else _range(values, pad=0.06)
    if limits:
        low, high = max(low, limits[0]), min(high, limits[1])
    return Scale(low=float(low), high=float(high), start=HEIGHT - BOTTOM, end=TOP, log=log)


def _range(values: Floats, pad: float) -> tuple[float, float]:
    """Smallest and largest with some room, and with more where they are equal."""
    low, high = float(values.min()), float(values.max())
    room = (high - low) * pad if high - low > 1e-9 * abs(high) else max(abs(high) * 0.1, 1e-6)
    return low - room, high + room


def _axes(x: Scale, y: Scale, show: Show) -> Markup:
    below = [
        tag("text", plain(value), x=x(value), y=HEIGHT - BOTTOM + 16, text_anchor="middle")
        for value in x.ticks()
    ]
    floor = tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis")
    name = tag("text", "epoch", x=(x.start + x.end) / 2, y=HEIGHT - 3, text_anchor="middle", class_="dim")
    return join(_grid(y, y.ticks(), x.end, show), floor, *below, name)


def _grid(y: Scale, values: Sequence[float], right: float, show: Show) -> Markup:
    """A line across for each value, with the value to its left."""
    return join(
        *(
            join(
                tag("line", x1=LEFT, x2=right, y1=y(value), y2=y(value), class_="grid"),
                tag("text", show(value), x=LEFT - 6, y=y(value) + 4, text_anchor="end"),
            )
            for value in values
        )
    )


def _curve(line: Line, x: Scale, y: Scale) -> Markup:
    kept = thinned(line.y_S, MOST_POINTS).tolist()
    broken = np.cumsum(~np.isfinite(line.y_S))
    places = [(x(line.x_S[i]), y(line.y_S[i])) if np.isfinite(line.y_S[i]) else None for i in kept]
    commands: list[str] = []
    previous: int | None = None
    for i, place in zip(kept, places, strict=True):
        if place is None:
            continue
        joined = previous is not None and broken[i] == broken[previous]
        commands.append(f"{'L' if joined else 'M'}{place[0]:.1f} {place[1]:.1f}{'' if joined else 'h0'}")
        previous = i
    drawn = [tag("path", d="".join(commands), class_=f"line {line.look}")] if commands else []
    drawn += [_cross(x(line.x_S[i])) for i, place in zip(kept, places, strict=True) if place is None]
    if len(kept) <= MOST_DOTS:
        drawn += [
            tag("circle", cx=place[0], cy=place[1], r=3, class_=f"dot {line.look}")
            for place in places
            if place
        ]
    if line.titles:
        drawn += _strips([x(line.x_S[i]) for i in kept], [line.titles[i] for i in kept])
    return join(*drawn)


def _cross(at: float) -> Markup:
    return tag("path", d=f"M{at - 3:.1f} {TOP - 3:.1f}l6 6m0 -6l-6 6", class_="cross")


def _strips(places: list[float], titles: list[str]) -> list[Markup]:
    """Unseen areas from top to bottom, one a point, that hold its title."""
    middles = [(a + b) / 2 for a, b in pairwise(places)]
    edges = [places[0] - 4, *middles, places[-1] + 4]
    return [
        tag(
            "rect",
            tag("title", title),
            x=left,
            y=TOP,
            width=max(right - left, 0.1),
            height=HEIGHT - TOP - BOTTOM,
            class_="strip",
        )
        for left, right, title in zip(edges[:-1], edges[1:], titles, strict=True)
    ]


def _peak(peak: tuple[float, float, str] | None, x: Scale, y: Scale) -> Markup | None:
    if peak is None:
        return None
    at, height = x(peak[0]), y(peak[1])
    side = "end" if at > WIDTH / 2 else "start"
    ring = tag("circle", cx=at, cy=height, r=5.5, class_="ring")
    return join(ring, tag("text", peak[2], x=at, y=height + 20, text_anchor=side, class_="strong"))


def stacked_bar(shares: Sequence[tuple[str, float]], *, label: str) -> Markup:
    """One bar of named shares, each with its per cent where there is room."""
    drawn: list[Markup] = []
    left = 0.0
    for number, (name, share) in enumerate(shares):
        width = share * WIDTH
        title = tag("title", f"{name}: {share:.1%}")
        drawn.append(
            tag("rect", title, x=left, y=0.0, width=max(width - 2, 0.5), height=34.0, class_=f"part{number}")
        )
        if width > 32:
            text = {"x": left + width / 2 - 1, "y": 22.0, "text_anchor": "middle"}
            drawn.append(tag("text", percent(share), class_=f"on part{number}", **text))
        left += width
    return _svg(label, WIDTH, 34.0, *drawn)


def heat_map(shares_RC: Floats, counts_RC: Ints, names: Sequence[str], *, label: str, cell: float) -> Markup:
    """Square map of shares, rows true and columns predicted; a large cell has its count written in."""
    shorts = [name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…" for name in names]
    side, edge = len(names) * cell, 14.0 + 6.4 * max(map(len, shorts))
    wrong_RC = np.where(np.eye(len(names), dtype=bool), 0.0, shares_RC)
    strongest = max(float(wrong_RC.max()), STRONG)
    drawn = [tag("rect", x=edge, y=edge, width=side, height=side, class_="ground")]
    for number, (name, short) in enumerate(zip(names, shorts, strict=True)):
        middle = edge + (number + 0.5) * cell
        turn = f"translate({middle + 4:.1f} {edge - 6:.1f}) rotate(-60)"
        drawn.append(tag("text", tag("title", name), short, x=edge - 6, y=middle + 4, text_anchor="end"))
        drawn.append(tag("text", tag("title", name), short, transform=turn))
    for row, column in zip(*map(np.ndarray.tolist, np.nonzero(counts_RC)), strict=True):
        share, count = float(shares_RC[row, column]), int(counts_RC[row, column])
        said = "found" if row == column else f"taken for {names[column]}"
        title = tag("title", f"{names[row]} {said}: {count:,} ({percent(share)})")
        look = "right" if row == column else "wrong"
        strength = 0.1 + 0.9 * share / (1 if row == column else strongest)
        at = {"x": edge + column * cell + 0.5, "y": edge + row * cell + 0.5}
        box = {**at, "width": cell - 1, "height": cell - 1}
        drawn.append(tag("rect", title, **box, class_=look, fill_opacity=f"{strength:.2f}"))
        if cell >= 28:
            where = {"x": at["x"] + cell / 2, "y": at["y"] + cell / 2 + 3.5, "text_anchor": "middle"}
            drawn.append(tag("text", f"{count}", **where, class_="on" if strength > 0.5 else None))
    return _svg(label, edge + side + edge / 2, edge + side + 4, *drawn, natural=True)


def columns(values: Sequence[float], titles: Sequence[str], *, label: str) -> Markup:
    """One column a value, from 0; the titles are shown where the pointer is."""
    y = Scale(low=0.0, high=max(*values, 1.0), start=HEIGHT - 14.0, end=TOP)
    width = (WIDTH - LEFT - RIGHT) / len(values)
    drawn = [_grid(y, y.ticks(), WIDTH - RIGHT, plain)]
    for number, (value, title) in enumerate(zip(values, titles, strict=True)):
        bar = {"x": LEFT + number * width, "y": y(value), "width": width * (0.8 if width > 4 else 1.0)}
        drawn.append(tag("rect", tag("title", title), **bar, height=y.start - y(value), class_="part0"))
    return _svg(label, WIDTH, HEIGHT - 8, *drawn)


def reliability(found: Calibration, *, label: str) -> Markup:
    """Share that is right by confidence, against the diagonal; below it how many pictures each bin has."""
    x = Scale(low=0.0, high=1.0, start=LEFT, end=WIDTH - 22)
    y = Scale(low=0.0, high=1.0, start=TOP + 150, end=TOP)
    quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
    below = [tag("text", percent(q), x=x(q), y=y.start + 64, text_anchor="middle") for q in quarters]
    name = tag("text", "confidence", x=x(0.5), y=y.start + 80, text_anchor="middle", class_="dim")
    bins = [_bin(found, index, x, y) for index in np.flatnonzero(found.counts_G).tolist()]
    diagonal = tag("path", d=f"M{x(0)} {y(0)}L{x(1)} {y(1)}", class_="line diagonal")
    grid = _grid(y, quarters, x.end, percent)
    return _svg(label, WIDTH, y.start + 84, grid, *below, *bins, diagonal, name)


def _bin(found: Calibration, index: int, x: Scale, y: Scale) -> Markup:
    low, high = index / len(found.counts_G), (index + 1) / len(found.counts_G)
    accuracy, confidence = float(found.accuracy_G[index]), float(found.confidence_G[index])
    count, most = int(found.counts_G[index]), int(found.counts_G.max())
    title = tag("title", f"{percent(confidence)} sure: {percent(accuracy)} of {count:,} pictures right")
    box = {"x": x(low) + 1, "width": x(high) - x(low) - 2}
    tall = max(40.0 * count / most, 0.7)
    return join(
        tag("rect", title, **box, y=y(accuracy), height=max(y(0) - y(accuracy), 1.0), class_="part0"),
        tag(
            "line", x1=box["x"], x2=box["x"] + box["width"], y1=y(confidence), y2=y(confidence), class_="said"
        ),
        tag("rect", title, **box, y=y(0) + 46 - tall, height=tall, class_="faint"),
    )


def _svg(label: str, width: float, height: float, *children: object, natural: bool = False) -> Markup:
    """A drawing that fills the width at hand, or is as wide as drawn where it is `natural`."""
    style = f"width:{width:.0f}px" if natural else None
    shown = (child for child in children if child is not None)
    return tag(
        "svg", *shown, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=label, style=style
    )
