"""Which token belongs to which trajectory, at the edges. Hand values are in `checks.py`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.algorithms.segments import last_unmasked, num_unmasked, unmasked_trajectories
from tests.actors.algorithms.batches import random_batch


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, derandomize=True, max_examples=15)
def test_rows_are_found_again(seed: int) -> None:
    batch = random_batch(seed)
    rows = batch.rows()
    positions, trajectories = unmasked_trajectories(batch.loss_mask, batch.cu_lengths)
    assert positions.tolist() == [t for row in rows for t in row]
    assert trajectories.tolist() == [b for b, row in enumerate(rows) for _ in row]
    assert num_unmasked(batch.loss_mask, batch.cu_lengths).tolist() == [len(row) for row in rows]
    assert last_unmasked(batch.loss_mask, batch.cu_lengths).tolist() == [row[-1] for row in rows]


def test_a_dummy_batch_has_no_trajectory() -> None:
    mask, cu = torch.zeros(1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    assert [x.tolist() for x in unmasked_trajectories(mask, cu)] == [[], []]
    assert num_unmasked(mask, cu).tolist() == last_unmasked(mask, cu).tolist() == []


def test_an_unmasked_token_needs_a_trajectory() -> None:
    with pytest.raises(AssertionError, match="belongs to no trajectory"):
        unmasked_trajectories(torch.tensor([False, True, True]), torch.tensor([0, 2]))
