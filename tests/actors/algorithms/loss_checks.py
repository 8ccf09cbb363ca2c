"""Hand values and twins of the losses, as functions of the module: see `checks`."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.actors.algorithms import twins
from tests.actors.algorithms.batches import random_batch
from tests.actors.algorithms.comparing import F64, same

POLICY_SETTINGS: tuple[dict[str, Any], ...] = (
    {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None, "importance_cap": 2.0, "aggregation": "token_mean"},
    {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 1.3, "importance_cap": None, "aggregation": "token_mean"},
    {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 1.5, "importance_cap": 1.5, "aggregation": "sequence_mean"},
)


def check_policy_loss(module: Any) -> None:
    """By hand: four ratios around the bounds, weights 1, 2 (capped from 3), 0.5 and 1; then the twin in three settings."""
    mask = torch.tensor([False, True, True, True, True])
    old = torch.full((5,), -1.0, dtype=F64)
    new = old + torch.tensor([1.0, 1.5, 0.5, 1.1, 0.5], dtype=F64).log()
    rollout = old - torch.tensor([1.0, 1.0, 3.0, 0.5, 1.0], dtype=F64).log()
    advantages = torch.tensor([9.0, 1.0, 1.0, 2.0, -1.0], dtype=F64)
    loss, metrics = module.policy_loss(
        new,
        old,
        rollout,
        advantages,
        mask,
        torch.tensor([0, 5]),
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=None,
        importance_cap=2.0,
        aggregation="token_mean",
        global_count=4,
    )
    # min(1.5, 1.2) * 1, min(0.5, 0.8) * 2, 2.2 * 0.5, min(-0.5, -0.8) * 1
    same(loss, -(1.2 + 1.0 + 1.1 - 0.8) / 4)
    same(metrics["clip_frac"], 0.5)
    same(metrics["ratio"], 0.9)
    same(metrics["importance_weight"], 4.5 / 4)
    same(metrics["importance_capped_frac"], 0.25)
    same(metrics["max_importance_ratio"], 3.0)
    batch = random_batch(3, num=8)
    arrays = (batch["new"], batch["old"], batch["rollout"], batch["advantages"])
    lists = tuple(array.tolist() for array in arrays)
    for setting in POLICY_SETTINGS:
        count = batch.num_tokens if setting["aggregation"] == "token_mean" else batch.num
        loss, metrics = module.policy_loss(*arrays, batch.loss_mask, batch.cu_lengths, global_count=count, **setting)
        wanted = twins.policy(lists, batch.rows(), **setting)
        for name, number in (metrics | {"loss": loss}).items():
            same(number, wanted.pop(name), 1e-6)
        assert not wanted


def check_policy_gradient(module: Any) -> None:
    """At new = old the slope of -ratio A w is -A w with w = min(3, 2) and 1/2, of the new log-probabilities alone; masked NaN stay out."""
    old = torch.tensor([math.nan, -1.0, -2.0], dtype=F64, requires_grad=True)
    new = old.detach().clone().requires_grad_()
    rollout = (old.detach() - torch.tensor([1.0, 3.0, 0.5], dtype=F64).log()).requires_grad_()
    advantages = torch.tensor([math.inf, 1.5, -1.0], dtype=F64)
    mask = torch.tensor([False, True, True])
    how: dict[str, Any] = POLICY_SETTINGS[0] | {"global_count": 2}
    loss, _ = module.policy_loss(new, old, rollout, advantages, mask, torch.tensor([0, 3]), **how)
    same(loss.detach(), -(1.5 * 2 - 1.0 * 0.5) / 2)
    loss.backward()
    assert new.grad is not None
    same(new.grad, [0, -1.5 * 2 / 2, 1.0 * 0.5 / 2])
    assert old.grad is None
    assert rollout.grad is None


def check_policy_clamp(module: Any) -> None:
    """A log-ratio of 200 must give e^20 and a finite loss."""
    mask = torch.tensor([False, True])
    far, near = torch.tensor([0.0, 0.0]), torch.tensor([0.0, -200.0])
    loss, metrics = module.policy_loss(
        far,
        near,
        near,
        torch.tensor([0.0, -1.0]),
        mask,
        torch.tensor([0, 2]),
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=None,
        importance_cap=None,
        aggregation="token_mean",
        global_count=1,
    )
    same(loss / math.exp(20), 1.0, 1e-5)
    same(metrics["max_ratio"] / math.exp(20), 1.0, 1e-5)


def check_value_loss(module: Any) -> None:
    """By hand: unclipped 1 -> R 0 but clipped only to 1.5 (larger, 2.25); a value that moved the wrong way keeps its own error (4)."""
    mask = torch.tensor([False, True, True])
    values = torch.tensor([9.0, 1.0, 2.0], dtype=F64)
    old_values = torch.tensor([9.0, 1.7, 0.5], dtype=F64)
    returns = torch.zeros(3, dtype=F64)
    loss, metrics = module.value_loss(values, old_values, returns, mask, clip=0.2, global_count=2)
    same(loss, 0.5 * (2.25 + 4.0) / 2)
    same(metrics["squared_error"], 2.5)
    same(metrics["value_clip_frac"], 0.5)
    batch = random_batch(4)
    for clip in (0.2, None):
        values, old_values, returns = batch["values"], batch["old_values"], batch["returns"]
        loss, metrics = module.value_loss(
            values, old_values, returns, batch.loss_mask, clip=clip, global_count=batch.num_tokens
        )
        wanted = twins.value(values.tolist(), old_values.tolist(), returns.tolist(), batch.rows(), clip)
        for name, number in (metrics | {"loss": loss}).items():
            same(number, wanted.pop(name), 1e-6)
        assert not wanted


def check_means(module: Any) -> None:
    """Entropy, KL and likelihood, under both aggregations."""
    batch = random_batch(5)
    place = (batch.loss_mask, batch.cu_lengths)
    for aggregation, count in (("token_mean", batch.num_tokens), ("sequence_mean", batch.num)):
        how: dict[str, Any] = {"aggregation": aggregation, "global_count": count}
        got = module.entropy_bonus(batch["entropy"], *place, **how)
        same(got, twins.mean(batch["entropy"].tolist(), batch.rows(), aggregation), 1e-6)
        got = module.next_token_loss(batch["new"], *place, **how)
        same(got, -twins.mean(batch["new"].tolist(), batch.rows(), aggregation), 1e-6)
        for kind in ("k1", "k2", "k3"):
            estimates = [twins.kl(x, kind) for x in (batch["new"] - batch["reference"]).tolist()]
            got = module.kl_penalty_loss(batch["new"], batch["reference"], *place, kind=kind, **how)
            same(got, twins.mean(estimates, batch.rows(), aggregation), 1e-6)


def check_pairs(module: Any) -> None:
    """Bradley and Terry's pairs, gaps ln 3 and 0: -ln(3/4), -ln(1/2). 1000 nats the wrong way: the loss is the gap, its slope -1."""
    scores, pairs = torch.tensor([math.log(3) + 1, 1.0, 2.0, 2.0], dtype=F64), torch.tensor([0, 2, 4])
    loss, metrics = module.plackett_luce_loss(scores, torch.tensor([1, 2, 1, 2]), pairs, global_count=2)
    same(loss, -(math.log(3 / 4) + math.log(1 / 2)) / 2)
    same(metrics["accuracy"], 0.75)
    far = torch.tensor([-1000.0, 0.0], requires_grad=True)
    loss, _ = module.plackett_luce_loss(far, torch.tensor([1, 2]), pairs[:2], global_count=1)
    loss.backward()
    same(loss.detach(), 1000.0)
    assert far.grad is not None
    same(far.grad, torch.tensor([-1.0, 1.0]))


def check_plackett_luce(module: Any) -> None:
    """Strengths 1, 2, 3, ranked b a c: 2/6 * 1/4; then a tie of two ahead of one, 1/6 * 2/6 by Breslow; then the twins."""
    scores = torch.tensor([1.0, 2.0, 3.0], dtype=F64).log()
    one = torch.tensor([0, 3])
    loss, metrics = module.plackett_luce_loss(scores, torch.tensor([2, 1, 3]), one, global_count=1)
    same(loss, -math.log(2 / 6 * 1 / 4))
    same(metrics["accuracy"], 1 / 3)
    loss, metrics = module.plackett_luce_loss(scores, torch.tensor([0, 0, 5]), one, global_count=1)
    same(loss, -math.log(1 / 6 * 2 / 6))
    same(metrics["accuracy"], 0.0)
    scores = torch.tensor([0.3, -1.0, 0.5, 0.1, 2.0, -0.7, 0.4], dtype=F64)
    cu = torch.tensor([0, 2, 7])
    ranks = torch.tensor([2, 1, 3, 1, 5, 4, 2])
    loss, _ = module.plackett_luce_loss(scores, ranks, cu, global_count=2)
    pieces = [(scores[a:b].tolist(), ranks[a:b].tolist()) for a, b in ((0, 2), (2, 7))]
    same(loss, sum(twins.plackett_luce(*piece) for piece in pieces) / 2)
    ties = torch.tensor([1, 1, 3, 1, 3, 1, 7])
    loss, _ = module.plackett_luce_loss(scores, ties, cu, global_count=2)
    same(loss, sum(twins.breslow(scores[a:b].tolist(), ties[a:b].tolist()) for a, b in ((0, 2), (2, 7))) / 2)


LOSS_CHECKS = (
    check_policy_loss,
    check_policy_gradient,
    check_policy_clamp,
    check_value_loss,
    check_means,
    check_pairs,
    check_plackett_luce,
)
