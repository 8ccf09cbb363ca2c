"""Micro-batches of a token budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.algorithms.packing import pack


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=40), budget=st.integers(64, 200))
def test_packing_keeps_the_budget_and_everything(lengths: list[int], budget: int) -> None:
    batches = pack(dict(enumerate(lengths)), budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in batch) for batch in batches]
    assert max(sums) <= budget
    # first fit: at most one batch is half empty or less
    assert sum(2 * tokens <= budget for tokens in sums) <= 1


def test_packing_is_first_fit_longest_first() -> None:
    assert pack({"a": 3, "b": 6, "c": 5, "d": 4}, 10) == [("b", "d"), ("c", "a")]


def test_a_sequence_longer_than_the_budget_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="11 tokens, budget 10"):
        pack({0: 11}, 10)
