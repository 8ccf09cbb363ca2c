"""Numbers of an estimate for people."""

from __future__ import annotations

GIB = 1024**3


def duration_text(seconds: float) -> str:
    """With the unit that suits it: `0.42 s`, `330 s`, `31 min`, `7.5 h`, `3.2 days`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    if seconds < 3 * 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def number_text(number: float) -> str:
    """Three digits that count, no power of ten: `0.42`, `95.3`, `12,300`."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def count_text(number: float) -> str:
    """`8.19e9`"""
    return f"{number:.3g}" if number < 1e5 else f"{number:.2e}".replace("e+0", "e").replace("e+", "e")


def gib_text(num_bytes: float) -> str:
    """`71.2 GiB`."""
    return f"{num_bytes / GIB:.1f} GiB"
