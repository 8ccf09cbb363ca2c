"""Whose answers are better: the share of pairs that the later of two models wins, from numbers that a judge gave.

Legend: `P` prompts, `K` answers of one model to a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence


def win_frac(
    first: Sequence[Sequence[float]], later: Sequence[Sequence[float]], *, tie_margin: float = 0.0
) -> tuple[float, float | None]:
    """Share of all pairs of answers to the same prompt in which the later one has the higher number, half for those that lie no further
    apart than `tie_margin`; and its standard error, with prompts as what was drawn at random (None for a single one).

    Args:
        first, later: [P] of [K], the same prompts in the same order, at least one. K may differ.
    """
    of_prompts = [
        sum(_win(b - a, tie_margin) for a in before for b in after) / (len(before) * len(after))
        for before, after in zip(first, later, strict=True)
    ]
    number = len(of_prompts)
    mean = sum(of_prompts) / number
    if number == 1:
        return mean, None
    variance = sum((share - mean) ** 2 for share in of_prompts) / (number - 1)
    return mean, (variance / number) ** 0.5


def _win(lead: float, tie_margin: float) -> float:
    if abs(lead) <= tie_margin:
        return 0.5
    return 1.0 if lead > 0 else 0.0
