"""The benchmark sees what it claims to see: rows of logits, bounded by the setting, and all of them without one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.logits_memory import Case, LogitsRows, most_rows


@pytest.mark.parametrize(
    ("num_tokens", "chunk", "rows"),
    [(40, 16, 16), (80, 16, 16), (40, 8, 8), (12, 16, 12), (40, None, 40), (80, None, 80)],
)
def test_rows_follow_the_setting_and_not_the_tokens(num_tokens: int, chunk: int | None, rows: int) -> None:
    assert most_rows(Case(vocab_size=97, num_tokens=num_tokens, chunk=chunk, hidden_size=4)) == rows


def test_the_bound_is_rows_times_vocabulary_times_four_bytes() -> None:
    assert Case(vocab_size=97, num_tokens=40, chunk=16).bound_bytes == 16 * 97 * 4
    assert Case(vocab_size=97, num_tokens=40, chunk=None).bound_bytes == 40 * 97 * 4


def test_a_view_of_an_input_is_no_logits() -> None:
    weight = torch.zeros(5, 3)
    with LogitsRows(5, (weight,)) as seen:
        _ = weight.t()  # [3, 5]
    assert seen.rows == 0
    with LogitsRows(5, (weight,)) as seen:
        _ = torch.zeros(2, 3) @ weight.t()
    assert seen.rows == 2
