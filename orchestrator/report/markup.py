"""HTML and SVG from Python. What is not `Markup` already is escaped where it enters an element, so no caller can forget to."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, *children: str | None, **attributes: str | float | None) -> Markup:
    """`element("p", "a < b", class_="note")` gives `<p class="note">a &lt; b</p>`.

    Attributes: a trailing underscore is dropped, others become hyphens, numbers have two decimals at most, None is left out.
    """
    inside = "".join(_escaped(child) for child in children if child is not None)
    named = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{named}>{inside}</{name}>")


def joined(parts: Iterable[Markup]) -> Markup:
    """One after the other."""
    return Markup("".join(parts))


def _escaped(text: str) -> str:
    return text if isinstance(text, Markup) else html.escape(text)


def _value(value: str | float) -> str:
    return html.escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
