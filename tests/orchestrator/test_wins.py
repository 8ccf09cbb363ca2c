"""Win rates by hand."""

from __future__ import annotations

import pytest

from orchestrator.wins import win_frac


def test_a_win_rate_by_hand() -> None:
    """First prompt: 2 beats 1, 2 ties 2, 3 beats 1 and 2: 3.5 of 4. Second: nothing is won. Together 3.5 of 8."""
    first, later = [[1, 2], [5, 5]], [[2, 3], [1, 0]]
    share, error = win_frac(first, later)
    assert share == 3.5 / 8
    # deviations of +-0.4375 from the mean: sqrt(2 * 0.4375^2 / 1 / 2)
    assert error == pytest.approx(0.4375)
    assert win_frac(later, first) == (1 - share, error)
    assert win_frac(first, first) == (0.5, 0.0)
    # within a margin of 1 the first prompt's 3 against 1 alone is a win
    assert win_frac(first, later, tie_margin=1)[0] == (2.5 + 0) / 8
    assert win_frac(first[:1], later[:1]) == (0.875, None)


def test_each_prompt_counts_the_same_however_many_answers_it_has() -> None:
    """The first prompt is won 2 of 2, the second 0 of 1."""
    assert win_frac([[0], [1]], [[1, 2], [0]])[0] == 0.5
