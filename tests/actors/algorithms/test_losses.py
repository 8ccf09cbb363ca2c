"""What must not change a loss: order, packing, micro-batches, ranks, junk; and what its gradient must be.

Hand values and twins are in `checks.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.algorithms import losses
from tests.actors.algorithms.batches import Batch, random_batch, random_split
from tests.actors.algorithms.comparing import same
from tests.actors.algorithms.loss_checks import POLICY_SETTINGS

Loss = Callable[[Batch, float, str], tuple[Tensor, dict[str, Tensor]]]


def _policy(setting: dict[str, Any]) -> Loss:
    def loss(batch: Batch, global_count: float, aggregation: str) -> tuple[Tensor, dict[str, Tensor]]:
        arrays = (batch["new"], batch["old"], batch["rollout"], batch["advantages"])
        how = setting | {"aggregation": aggregation, "global_count": global_count}
        return losses.policy_loss(*arrays, batch.loss_mask, batch.cu_lengths, **how)

    return loss


def _value(clip: float | None) -> Loss:
    def loss(batch: Batch, global_count: float, aggregation: str) -> tuple[Tensor, dict[str, Tensor]]:
        arrays = (batch["new"], batch["old_values"], batch["returns"])
        return losses.value_loss(*arrays, batch.loss_mask, clip=clip, global_count=global_count)

    return loss


def _kl(kind: str) -> Loss:
    def loss(batch: Batch, global_count: float, aggregation: str) -> tuple[Tensor, dict[str, Tensor]]:
        arrays = (batch["new"], batch["reference"], batch.loss_mask, batch.cu_lengths)
        return losses.kl_penalty_loss(*arrays, kind=kind, aggregation=aggregation, global_count=global_count), {}

    return loss


def _entropy(batch: Batch, global_count: float, aggregation: str) -> tuple[Tensor, dict[str, Tensor]]:
    place = (batch.loss_mask, batch.cu_lengths)
    return losses.entropy_bonus(batch["new"], *place, aggregation=aggregation, global_count=global_count), {}


def _next_token(batch: Batch, global_count: float, aggregation: str) -> tuple[Tensor, dict[str, Tensor]]:
    place = (batch.loss_mask, batch.cu_lengths)
    return losses.next_token_loss(batch["new"], *place, aggregation=aggregation, global_count=global_count), {}


# Each differentiates the array `new`.
BOTH: dict[str, Loss] = {
    **{f"policy{i}": _policy(setting) for i, setting in enumerate(POLICY_SETTINGS)},
    **{kind: _kl(kind) for kind in ("k1", "k2", "k3")},
    "entropy": _entropy,
    "next_token": _next_token,
}
CASES = [(name, loss, "token_mean") for name, loss in BOTH.items()]
CASES += [(name, loss, "sequence_mean") for name, loss in BOTH.items()]
CASES += [("value", _value(0.2), "token_mean"), ("value_unclipped", _value(None), "token_mean")]
each_loss = pytest.mark.parametrize(
    ("loss", "aggregation"), [case[1:] for case in CASES], ids=[f"{c[0]}-{c[2]}" for c in CASES]
)


def _count(batch: Batch, aggregation: str) -> int:
    return batch.num_tokens if aggregation == "token_mean" else batch.num


def _run(loss: Loss, batch: Batch, count: float, aggregation: str) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Value, metrics and gradient [T]."""
    new = batch["new"].clone().requires_grad_()
    value, metrics = loss(
        Batch(loss_mask=batch.loss_mask, cu_lengths=batch.cu_lengths, arrays=batch.arrays | {"new": new}),
        count,
        aggregation,
    )
    value.backward()
    assert new.grad is not None
    assert not any(metric.requires_grad for metric in metrics.values())
    return value.detach(), metrics, new.grad


@each_loss
@given(seed=st.integers(0, 10_000), num_parts=st.integers(1, 4))
@settings(deadline=None, derandomize=True, max_examples=5)
def test_contributions_of_any_split_add_up(loss: Loss, aggregation: str, seed: int, num_parts: int) -> None:
    """Trajectories in another order, dealt over ranks and micro-batches, some of them dummies: one number, one gradient."""
    batch = random_batch(seed)
    count = _count(batch, aggregation)
    value, metrics, gradient = _run(loss, batch, count, aggregation)
    parts = random_split(seed, batch.num, num_parts)
    outcomes = [_run(loss, batch.select(part), count, aggregation) for part in parts]

    same(torch.stack([outcome[0] for outcome in outcomes]).sum(), value, 1e-6)
    for name, metric in metrics.items():
        contributions = torch.stack([outcome[1][name] for outcome in outcomes])
        same(contributions.max() if name.startswith("max_") else contributions.sum(), metric, 1e-6)
    bounds = batch.cu_lengths.tolist()
    for part, outcome in zip(parts, outcomes, strict=True):
        expected = [gradient[bounds[b] : bounds[b + 1]] for b in part]
        same(outcome[2], torch.cat(expected) if expected else torch.zeros(1), 1e-6)


@each_loss
@given(seed=st.integers(0, 10_000))
@settings(deadline=None, derandomize=True, max_examples=5)
def test_junk_in_masked_places_changes_nothing(loss: Loss, aggregation: str, seed: int) -> None:
    batch = random_batch(seed)
    count = _count(batch, aggregation)
    clean, dirty = (_run(loss, b, count, aggregation) for b in (batch, batch.with_junk()))
    assert torch.equal(clean[0], dirty[0])
    assert all(torch.equal(clean[1][name], dirty[1][name]) for name in clean[1])
    assert torch.equal(clean[2], dirty[2])
    assert not bool(clean[2][~batch.loss_mask].any())
    assert bool(clean[2][batch.loss_mask].any())


@each_loss
def test_gradient_is_the_slope(loss: Loss, aggregation: str) -> None:
    batch = random_batch(11)
    count = _count(batch, aggregation)

    def value(new: Tensor) -> Tensor:
        arrays = batch.arrays | {"new": new}
        return loss(Batch(loss_mask=batch.loss_mask, cu_lengths=batch.cu_lengths, arrays=arrays), count, aggregation)[0]

    assert torch.autograd.gradcheck(value, batch["new"].clone().requires_grad_())


@each_loss
def test_a_dummy_batch_gives_zero_and_a_zero_gradient(loss: Loss, aggregation: str) -> None:
    value, metrics, gradient = _run(loss, random_batch(0).select([]).with_junk(), 3, aggregation)
    assert value == 0
    assert all(metric == 0 for metric in metrics.values())
    assert torch.equal(gradient, torch.zeros(1, dtype=gradient.dtype))


@each_loss
def test_a_trajectory_without_unmasked_tokens_adds_nothing(loss: Loss, aggregation: str) -> None:
    batch = random_batch(12)
    bounds = batch.cu_lengths.tolist()
    mask = batch.loss_mask.clone()
    mask[bounds[1] : bounds[2]] = False
    masked = Batch(loss_mask=mask, cu_lengths=batch.cu_lengths, arrays=batch.arrays)
    without = batch.select([b for b in range(batch.num) if b != 1])
    same(_run(loss, masked, 7, aggregation)[0], _run(loss, without, 7, aggregation)[0], 1e-6)


@each_loss
@pytest.mark.parametrize("count", [0, -1, math.nan])
def test_a_missing_global_count_is_refused(loss: Loss, aggregation: str, count: float) -> None:
    with pytest.raises(ValueError, match="global_count must be > 0"):
        loss(random_batch(0), count, aggregation)


def test_constants_get_no_gradient() -> None:
    """Old and rollout log-probabilities and advantages may come with a graph; none of it is used."""
    batch = random_batch(13)
    arrays = {name: batch[name].clone().requires_grad_() for name in batch.arrays}
    graph = Batch(loss_mask=batch.loss_mask, cu_lengths=batch.cu_lengths, arrays=arrays)
    for name, loss, aggregation in CASES:
        loss(graph, 5, aggregation)[0].backward()
        assert {key for key, array in arrays.items() if array.grad is not None} == {"new"}, name


def test_equal_policies_at_float32_have_ratio_exactly_one() -> None:
    batch = random_batch(14, dtype=torch.float32)
    arrays = batch.arrays | {"old": batch["new"], "rollout": batch["new"]}
    same_policies = Batch(loss_mask=batch.loss_mask, cu_lengths=batch.cu_lengths, arrays=arrays)
    _, metrics = BOTH["policy0"](same_policies, batch.num_tokens, "token_mean")
    assert metrics["max_ratio"] == 1 == metrics["max_importance_ratio"]
    assert metrics["approx_kl"] == 0 == metrics["clip_frac"]


def test_unknown_aggregation_is_refused() -> None:
    with pytest.raises(ValueError, match="aggregation must be one of token_mean, sequence_mean, got 'mean'"):
        _entropy(random_batch(0), 1, "mean")


def test_a_ranking_of_two_is_a_pair() -> None:
    scores = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    loss, metrics = losses.plackett_luce_loss(
        scores, torch.tensor([1, 2, 9, 3, 1, 2]), torch.tensor([0, 2, 4, 6]), global_count=3
    )
    lead = scores[[0, 3, 4]] - scores[[1, 2, 5]]
    pairs = -torch.nn.functional.logsigmoid(lead).mean()
    same(loss.detach(), pairs.detach())
    same(metrics["accuracy"], (lead > 0).double().mean())
    for a, b in zip(torch.autograd.grad(loss, scores), torch.autograd.grad(pairs, scores), strict=True):
        same(a, b)


RANKS = torch.tensor([2, 1, 1, 3, 2, 1, 2, 2, 1])
GROUPS = torch.tensor([0, 3, 5, 9])


def test_ranking_gradient_with_ties_and_padding() -> None:
    scores = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: losses.plackett_luce_loss(s, RANKS, GROUPS, global_count=3)[0], scores)


def test_ranking_adds_up_over_groups_and_ignores_order() -> None:
    scores = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    whole, metrics = losses.plackett_luce_loss(scores, RANKS, GROUPS, global_count=3)
    pieces = []
    for start, end in ((0, 3), (3, 5), (5, 9)):
        shuffled = torch.arange(end - 1, start - 1, -1)
        cu = torch.tensor([0, end - start])
        pieces.append(losses.plackett_luce_loss(scores[shuffled], RANKS[shuffled] * 7, cu, global_count=3))
    same(torch.stack([piece[0] for piece in pieces]).sum(), whole)
    same(torch.stack([piece[1]["accuracy"] for piece in pieces]).sum(), metrics["accuracy"])
    empty, _ = losses.plackett_luce_loss(scores[:0], RANKS[:0], torch.tensor([0]), global_count=3)
    assert empty == 0


def test_a_tie_pulls_scores_together() -> None:
    scores = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    loss, metrics = losses.plackett_luce_loss(scores, torch.tensor([1, 1]), torch.tensor([0, 2]), global_count=1)
    (slope,) = torch.autograd.grad(loss, scores)
    assert slope[0] > 0 > slope[1]
    assert metrics["accuracy"] == 0.5


def test_a_ranking_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 2 answers; groups \[1\]"):
        losses.plackett_luce_loss(torch.zeros(3), torch.tensor([1, 2, 1]), torch.tensor([0, 2, 3]), global_count=1)
