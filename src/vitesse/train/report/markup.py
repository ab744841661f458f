"""HTML and SVG as text: every child and attribute is escaped, and what comes out is well-formed."""

from __future__ import annotations

import html
import re

_CHILDLESS = {"circle", "col", "img", "line", "meta", "path", "rect"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Text as markup that shows it; a character that no page may hold becomes U+FFFD."""
    return text if isinstance(text, Markup) else Markup(html.escape(_NOT_XML.sub("\ufffd", str(text))))


def join(*parts: object) -> Markup:
    """The parts one after the other, each escaped where it is not markup."""
    return Markup("".join(map(escape, parts)))


def tag(element: str, /, *children: object, **attributes: object) -> Markup:
    """An element. An attribute's `_` stands for `-` and is cut off its end; one that is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if element in _CHILDLESS and not children:
        return Markup(f"<{element}{written}/>")
    return Markup(f"<{element}{written}>{join(*children)}</{element}>")


def _value(value: object) -> object:
    """A number in at most one decimal, as fine as a drawing needs."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
