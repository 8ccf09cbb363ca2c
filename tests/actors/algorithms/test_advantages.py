"""GAE, moments and whitening under everything that must not change them. Hand values are in `checks.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.algorithms.advantages import bootstrap_for, gae, moments_of, whiten
from actors.algorithms.moments import Moments, merge
from actors.algorithms.records import cumulative
from actors.algorithms.rewards import token_rewards
from tests.actors.algorithms import twins
from tests.actors.algorithms.batches import Batch, random_batch, random_split
from tests.actors.algorithms.comparing import same

few = settings(deadline=None, derandomize=True, max_examples=15)
seeds = st.integers(0, 10_000)


def _gae(batch: Batch, bootstrap: Tensor, gamma: float = 0.97, lam: float = 0.9) -> tuple[Tensor, Tensor]:
    return gae(batch["rewards"], batch["values"], batch.loss_mask, batch.cu_lengths, bootstrap, gamma=gamma, lam=lam)


@given(seed=seeds, gamma=st.sampled_from([0.0, 0.9, 1.0]), lam=st.sampled_from([0.0, 0.95, 1.0]))
@few
def test_gae_is_the_sum_of_the_paper(seed: int, gamma: float, lam: float) -> None:
    batch = random_batch(seed)
    bootstrap = torch.randn(batch.num, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    got = _gae(batch, bootstrap, gamma, lam)
    rewards, values = batch["rewards"].tolist(), batch["values"].tolist()
    wanted = twins.gae(rewards, values, batch.rows(), bootstrap.tolist(), gamma, lam)
    same(got[0], wanted[0])
    same(got[1], wanted[1])


@given(seed=seeds)
@few
def test_gae_does_not_know_order_packing_or_junk(seed: int) -> None:
    batch = random_batch(seed)
    bootstrap = torch.linspace(-1, 1, batch.num, dtype=torch.float64)
    whole = _gae(batch, bootstrap)
    assert all(torch.equal(a, b) for a, b in zip(whole, _gae(batch.with_junk(), bootstrap), strict=True))
    bounds = batch.cu_lengths.tolist()
    for part in random_split(seed, batch.num, 3):
        if part:
            for got, all_of_them in zip(_gae(batch.select(part), bootstrap[part]), whole, strict=True):
                assert torch.equal(got, torch.cat([all_of_them[bounds[b] : bounds[b + 1]] for b in part]))
    assert not bool(whole[0][~batch.loss_mask].any())
    assert not bool(whole[1][~batch.loss_mask].any())


def test_with_lambda_one_the_return_is_what_was_paid() -> None:
    """Gamma 1, lambda 1, ended: the values cancel, and every return is the sum of the rewards from there on."""
    batch = random_batch(21)
    _, returns = _gae(batch, torch.zeros(batch.num, dtype=torch.float64), 1.0, 1.0)
    for row in batch.rows():
        for i, t in enumerate(row):
            same(returns[t], sum(float(batch["rewards"][s]) for s in row[i:]))


def test_gae_skips_trajectories_without_an_unmasked_token() -> None:
    mask = torch.tensor([False, False, False, True, False])
    advantages, returns = gae(
        torch.ones(5), torch.zeros(5), mask, torch.tensor([0, 2, 4, 5]), torch.full((3,), 10.0), gamma=1.0, lam=1.0
    )
    assert advantages.tolist() == returns.tolist() == [0, 0, 0, 11, 0]


def test_gae_of_nothing_is_nothing() -> None:
    empty = torch.zeros(0)
    advantages, returns = gae(empty, empty, empty.bool(), torch.tensor([0]), empty, gamma=1.0, lam=1.0)
    assert advantages.shape == returns.shape == (0,)


def test_gae_of_a_long_answer_is_exact_in_float32() -> None:
    """20,000 tokens of reward 0.1 and value 0: the first return is 2000 to float32's rounding, which a float32 sum would miss by 0.1."""
    length = 20_000
    mask = torch.ones(length + 1, dtype=torch.bool)
    mask[0] = False
    zeros = torch.zeros(length + 1)
    _, returns = gae(zeros + 0.1, zeros, mask, torch.tensor([0, length + 1]), torch.zeros(1), gamma=1.0, lam=1.0)
    assert returns[1].item() == pytest.approx(length * float(torch.tensor(0.1)), abs=2e-4)


@pytest.mark.parametrize(("gamma", "lam"), [(1.1, 1.0), (1.0, -0.1)])
def test_gae_refuses_numbers_out_of_range(gamma: float, lam: float) -> None:
    batch = random_batch(0)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        _gae(batch, torch.zeros(batch.num), gamma, lam)


def test_bootstrap_modes() -> None:
    with pytest.raises(ValueError, match="truncation mode must be one of bootstrap, penalise, terminal, got 'none'"):
        bootstrap_for(torch.tensor([True]), torch.tensor([1.0]), mode="none")


def test_whitened_advantages_have_mean_zero_and_deviation_one() -> None:
    batch = random_batch(22, num=40)
    moments = moments_of(batch["advantages"], batch.loss_mask)
    whitened = whiten(batch["advantages"], batch.loss_mask, moments=moments)[batch.loss_mask]
    same(whitened.mean(), 0.0)
    same(whitened.std(correction=1), 1.0, 1e-7)


@given(seed=seeds, num_parts=st.integers(1, 5))
@few
def test_moments_of_ranks_are_the_moments_of_the_whole(seed: int, num_parts: int) -> None:
    batch = random_batch(seed)
    parts = [batch.select(part) for part in random_split(seed, batch.num, num_parts)]
    merged = merge(moments_of(part["advantages"], part.loss_mask) for part in parts)
    count, mean, m2 = twins.moments(batch["advantages"][batch.loss_mask].tolist())
    assert merged.count == count
    same(merged.mean, mean, 1e-12)
    same(merged.m2, m2, 1e-12)


def test_moments_survive_a_large_mean() -> None:
    """Deviations of 1 around 1e8: E[x^2] - E[x]^2 has no digit left of them."""
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) + 1e8
    moments = merge(
        [moments_of(x, torch.tensor([True, False, False])), moments_of(x, torch.tensor([False, True, True]))]
    )
    same(moments.unbiased_variance, 1.0)


@given(
    value=st.floats(-10, 10, width=32),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@few
def test_equal_numbers_whiten_to_exactly_zero(value: float, sizes: Sequence[int], dtype: torch.dtype) -> None:
    shards = [torch.full((size,), value / 3, dtype=dtype) for size in sizes]
    moments = merge(moments_of(shard, torch.ones(len(shard), dtype=torch.bool)) for shard in shards)
    assert moments.m2 == 0
    for shard in shards:
        assert not bool(whiten(shard, torch.ones(len(shard), dtype=torch.bool), moments=moments).any())


@pytest.mark.parametrize("reward", [0.7, 0.2, 1e-3, 1e4])
def test_equal_rewards_of_equal_answers_give_exactly_zero(reward: float) -> None:
    """Eight answers of one token and one reward, from score to whitened advantage, on two ranks."""
    cu = cumulative([2] * 4)
    mask = torch.tensor([False, True] * 4)
    zeros = torch.zeros(8)
    rewards = token_rewards(torch.full((4,), reward), zeros, zeros, mask, cu, kl_coef=0.0, kl_kind="k1")
    advantages, _ = gae(rewards, zeros, mask, cu, torch.zeros(4), gamma=1.0, lam=0.95)
    moments = merge([moments_of(advantages, mask)] * 2)
    assert not bool(whiten(advantages, mask, moments=moments).any())


def test_seven_equal_and_one_other_are_whitened_rightly() -> None:
    x = torch.tensor([0.7] * 7 + [0.2])
    mask = torch.ones(8, dtype=torch.bool)
    whitened = whiten(x, mask, moments=moments_of(x, mask))
    same(whitened[0], 1 / math.sqrt(8), 1e-5)
    same(whitened[7], -7 / math.sqrt(8), 1e-5)


def test_whitening_ignores_junk() -> None:
    batch = random_batch(23)
    dirty = batch.with_junk()
    moments = moments_of(batch["advantages"], batch.loss_mask)
    assert moments == moments_of(dirty["advantages"], dirty.loss_mask)
    whitened = whiten(dirty["advantages"], dirty.loss_mask, moments=moments)
    assert torch.equal(whitened, whiten(batch["advantages"], batch.loss_mask, moments=moments))
    assert not bool(whitened[~batch.loss_mask].any())


def test_a_number_that_is_none_stops_the_run() -> None:
    with pytest.raises(ValueError, match="1 of 2 numbers are not finite"):
        moments_of(torch.tensor([math.nan, 1.0]), torch.tensor([True, True]))


def test_moments_of_none() -> None:
    nothing = Moments(count=0, mean=0.0, m2=0.0)
    assert moments_of(torch.ones(2), torch.zeros(2, dtype=torch.bool)) == nothing
    assert merge([nothing, nothing]) == nothing
