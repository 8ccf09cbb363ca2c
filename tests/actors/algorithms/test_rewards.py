"""Rewards per token: where the score lands, what is refused. Hand values are in `checks.py`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.algorithms.kl import kl_estimate
from actors.algorithms.rewards import answer_penalties, combine_scores, normalise_scores, token_rewards
from tests.actors.algorithms.batches import Batch, random_batch, random_split
from tests.actors.algorithms.comparing import same

PENALTIES: dict[str, Any] = {"missing_end_penalty": 1.0, "length_penalty": 1.0, "soft_limit": 4, "hard_limit": 8}


def _rewards(batch: Batch, scores: Tensor, kind: str = "k3") -> Tensor:
    how: dict[str, Any] = {"kl_coef": 0.1, "kl_kind": kind}
    return token_rewards(scores, batch["old"], batch["reference"], batch.loss_mask, batch.cu_lengths, **how)


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["k1", "k2", "k3"]))
@settings(deadline=None, derandomize=True, max_examples=15)
def test_rewards_do_not_know_order_packing_or_junk(seed: int, kind: str) -> None:
    batch = random_batch(seed)
    scores = torch.linspace(-1, 1, batch.num, dtype=torch.float64)
    whole = _rewards(batch, scores, kind)
    assert torch.equal(whole, _rewards(batch.with_junk(), scores, kind))
    bounds = batch.cu_lengths.tolist()
    for part in random_split(seed, batch.num, 3):
        if part:
            expected = torch.cat([whole[bounds[b] : bounds[b + 1]] for b in part])
            assert torch.equal(_rewards(batch.select(part), scores[part], kind), expected)
    assert not bool(whole[~batch.loss_mask].any())


def test_without_kl_all_that_is_paid_is_the_score() -> None:
    batch = random_batch(31)
    scores = torch.linspace(1, 2, batch.num, dtype=torch.float64)
    rewards = token_rewards(
        scores,
        batch["old"],
        batch["reference"],
        batch.loss_mask,
        batch.cu_lengths,
        kl_coef=0.0,
        kl_kind="k1",
    )
    for b, row in enumerate(batch.rows()):
        assert rewards[row[-1]] == scores[b]
    assert int((rewards != 0).sum()) == batch.num


def test_a_trajectory_without_a_response_is_named() -> None:
    mask = torch.tensor([False, True, False, False, False, True])
    zeros = torch.zeros(6)
    with pytest.raises(ValueError, match=r"without an unmasked token: \[1\]"):
        token_rewards(torch.ones(3), zeros, zeros, mask, torch.tensor([0, 2, 4, 6]), kl_coef=0.1, kl_kind="k1")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    batch = random_batch(32)
    scores = torch.zeros(batch.num, dtype=torch.float64)
    scores[2] = bad
    with pytest.raises(ValueError, match=r"scores of trajectories \[2\] are not finite"):
        _rewards(batch, scores)
    with pytest.raises(ValueError, match=r"scores of trajectories \[2\] are not finite"):
        normalise_scores(scores, mean=0.0, std=1.0)
    with pytest.raises(ValueError, match=r"scores of trajectories \[2\] are not finite"):
        # a weight of 0 or a clip would hide it
        combine_scores([torch.zeros_like(scores), scores], [1.0, 0.0], clip=1.0)


@pytest.mark.parametrize("std", [0.0, math.nan])
def test_normalising_by_nothing_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="std must be > 0"):
        normalise_scores(torch.zeros(2), mean=0.0, std=std)


def test_clipping_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="clip must be > 0 or None, got 0"):
        combine_scores([torch.zeros(2)], [1.0], clip=0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"soft_limit": 8},
        {"soft_limit": None},
        {"soft_limit": -1},
        {"length_penalty": -1.0},
        {"missing_end_penalty": -1.0},
    ],
)
def test_penalties_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"penalties must be >= 0|soft_limit < hard_limit"):
        answer_penalties(torch.tensor([5]), torch.tensor([True]), **PENALTIES | change)


def test_no_penalty_needs_no_limit() -> None:
    off = {"missing_end_penalty": 0.0, "length_penalty": 0.0, "soft_limit": None}
    assert answer_penalties(torch.tensor([5, 900]), torch.tensor([True, False]), **PENALTIES | off).tolist() == [0, 0]


def test_kl_gradients_are_slopes() -> None:
    batch = random_batch(33)
    for kind in ("k1", "k2", "k3"):
        logprobs, reference = batch["old"].clone().requires_grad_(), batch["reference"].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda p, q, kind=kind: kl_estimate(p, q, kind=kind), (logprobs, reference))


def test_kl_estimates_average_to_the_kl() -> None:
    """Over all tokens of a small vocabulary, weighted by p: k1 and k3 give the KL itself, and k3 is never negative."""
    p, q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    kl = float((p * (p / q).log()).sum())
    for kind in ("k1", "k3"):
        same((p * kl_estimate(p.log(), q.log(), kind=kind)).sum(), kl)
    assert bool((kl_estimate(p.log(), q.log(), kind="k3") >= 0).all())
    assert abs(float((p * kl_estimate(p.log(), q.log(), kind="k2")).sum()) - kl) < 0.1 * kl


def test_k3_stays_finite_in_float32() -> None:
    log_ratio = torch.tensor([-1e4, 1e4], requires_grad=True)
    estimate = kl_estimate(log_ratio, torch.zeros(2), kind="k3")
    estimate.sum().backward()
    assert bool(estimate.isfinite().all())
    assert log_ratio.grad is not None
    assert not bool(log_ratio.grad.any())


def test_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="kl kind must be one of k1, k2, k3, got 'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), kind="k4")
