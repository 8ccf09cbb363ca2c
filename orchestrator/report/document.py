"""A whole HTML file that needs nothing else: no script, no network, no font."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from orchestrator.report.markup import Markup, element, joined
from orchestrator.report.style import CSS


def document(title: str, parts: Sequence[Markup], *, made_by: str, source: str) -> str:
    """The file's text. `made_by` the command, from `source`, as the footer says."""
    made = datetime.now(UTC).isoformat(sep=" ", timespec="minutes").removesuffix("+00:00")
    footer = element("footer", f"Made by {made_by} on {made} UTC from {source}")
    head = joined(
        [
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", title),
            element("style", Markup(CSS)),
        ]
    )
    body = element("body", element("main", *parts, footer))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>{body}</html>\n'


def tile(what: str, text: str, *, broad: bool = False) -> Markup:
    """One of the cards at the top: a figure, or where it is broad a line of text."""
    value = element("dd", text, class_="text" if broad else None)
    return element("div", element("dt", what), value, class_="card broad" if broad else "card")
