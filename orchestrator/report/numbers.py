"""Numbers for people."""

from __future__ import annotations

import math


def short(value: float | None) -> str:
    """Three significant digits: `0.123`, `12.3`, `12,345`, `1.2e-6`; nothing for None."""
    if value is None:
        return ""
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e6):
        return _scientific(value, decimals=2)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"


def percent(frac: float) -> str:
    """`62.5%`."""
    return f"{100 * frac:.1f}%"


def counted(number: int, what: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """About `most` round numbers, evenly spaced, the first at or below `low`, the last at or above `high` (low < high)."""
    step = _round_step((high - low) / (most - 1))
    # a hair's breadth of rounding must not add a tick
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [index * step for index in range(first, last + 1)]


def whole_ticks(first: int, last: int, *, most: int = 5) -> list[int]:
    """Round whole numbers from `first` to `last`."""
    step = max(1, round(_round_step((last - first) / (most - 1)))) if last > first else 1
    inside = list(range(-(-first // step) * step, last + 1, step))
    return inside or [first]


def tick_label(value: float, step: float) -> str:
    """As many decimals as neighbouring ticks need to differ."""
    if step < 1e-4 or max(abs(value), step) >= 1e6:
        return "0" if value == 0 else _scientific(value, decimals=1)
    decimals = 0
    while abs(round(step, decimals) - step) > 1e-6 * step:
        decimals += 1
    return f"{value:,.{decimals}f}"


def _round_step(least: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(least))
    return next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= least * (1 - 1e-9))


def _scientific(value: float, *, decimals: int) -> str:
    digits, _, power = f"{value:.{decimals}e}".partition("e")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return f"{digits}e{int(power)}"
