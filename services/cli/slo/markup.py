"""HTML and SVG as values: whatever is not made here is text, and is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Content: TypeAlias = "str | int | float | Iterable[Content] | None"
_ALONE = frozenset({"meta", "line", "rect", "circle", "path", "polyline", "br"})


def tag(element: str, /, *content: Content, **attributes: str | int | float | None) -> Markup:
    """One element. Attributes that are None are left out; "_" in their names stands for "-", and one at the end for nothing."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(printable(_text(value)), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if element in _ALONE and not content:
        return Markup(f"<{element}{said}/>")
    return Markup(f"<{element}{said}>{joined(*content)}</{element}>")


def joined(*content: Content) -> Markup:
    """Content one after the other."""
    return Markup("".join(map(_part, content)))


def _part(content: Content) -> str:
    if content is None:
        return ""
    if isinstance(content, Markup):
        return content
    if isinstance(content, str | int | float):
        return html.escape(printable(_text(content)), quote=True)
    return "".join(map(_part, content))


def _text(value: str | int | float) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def printable(text: str) -> str:
    """Without characters that change how others are shown: controls, and marks that turn the direction of text."""
    return "".join(char if char.isprintable() or char == " " else "·" for char in text)
