"""Hand values and twins for each module of formulas, as functions of the module: run on the real one and on its mutants.

A check takes the module's namespace, so that `test_mutations.py` can hand it a copy of the module with one formula changed.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.algorithms.moments import Moments
from tests.actors.algorithms import twins
from tests.actors.algorithms.batches import random_batch

F64 = torch.float64


def same(got: Tensor | float, wanted: Any, tolerance: float = 1e-9) -> None:
    got = torch.as_tensor(got, dtype=F64)
    torch.testing.assert_close(got, torch.as_tensor(wanted, dtype=F64), rtol=tolerance, atol=tolerance)


def check_gae(module: Any) -> None:
    """The worked example with a masked middle, one with a bootstrap, and the twin."""
    mask = torch.tensor([True, True, False, False, True])
    rewards = torch.tensor([0.0, 0, 0, 0, 1])
    values = torch.tensor([0.5, 0.4, 9, 9, 0.3])
    cu = torch.tensor([0, 5])
    advantages, returns = module.gae(rewards, values, mask, cu, torch.zeros(1), gamma=1.0, lam=0.95)
    same(advantages, [0.43675, 0.565, 0, 0, 0.7], 1e-6)
    same(returns, [0.93675, 0.965, 0, 0, 1.0], 1e-6)
    # Cut off, and the critic says 0.8 is still to come: delta 1 + 0.9 * 0.8 - 0.3 = 1.42, then 0.9 * 0.3 - 0.4 + 0.45 * 1.42 = 0.509.
    advantages, _ = module.gae(rewards, values, mask, cu, torch.tensor([0.8]), gamma=0.9, lam=0.5)
    same(advantages[1:], [0.509, 0, 0, 1.42], 1e-6)
    batch = random_batch(1)
    bootstrap = torch.linspace(-1, 1, batch.num, dtype=F64)
    got = module.gae(
        batch["rewards"], batch["values"], batch.loss_mask, batch.cu_lengths, bootstrap, gamma=0.97, lam=0.9
    )
    wanted = twins.gae(batch["rewards"].tolist(), batch["values"].tolist(), batch.rows(), bootstrap.tolist(), 0.97, 0.9)
    same(got[0], wanted[0])
    same(got[1], wanted[1])


def check_bootstrap(module: Any) -> None:
    truncated = torch.tensor([True, False])
    last = torch.tensor([0.7, math.nan])
    same(module.bootstrap_for(truncated, last, mode="bootstrap"), [0.7, 0.0], 1e-6)
    for mode in ("penalise", "terminal"):
        same(module.bootstrap_for(truncated, torch.tensor([0.7, 0.4]), mode=mode), [0.0, 0.0])


def check_whiten(module: Any) -> None:
    """Numbers 1, 2, 6 beside junk: mean 3, m2 14, unbiased variance 7."""
    x = torch.tensor([1.0, math.nan, 2.0, 6.0], dtype=F64)
    mask = torch.tensor([True, False, True, True])
    moments = module.moments_of(x, mask)
    assert (moments.count, moments.mean) == (3, 3.0)
    same(moments.m2, 14.0)
    root = math.sqrt(7 + 1e-8)
    same(module.whiten(x, mask, moments=moments), [-2 / root, 0, -1 / root, 3 / root], 1e-12)
    # The epsilon stands beside the variance: a deviation of 1e-4 is halved in square, 1e-8 / (1e-8 + 1e-8).
    small = torch.tensor([-1e-4, 0.0, 1e-4], dtype=F64)
    whitened = module.whiten(small, torch.ones(3, dtype=torch.bool), moments=Moments(count=3, mean=0.0, m2=2e-8))
    same(whitened, [-math.sqrt(0.5), 0, math.sqrt(0.5)], 1e-9)
    single = module.whiten(torch.tensor([5.0]), torch.tensor([True]), moments=Moments(count=1, mean=3.0, m2=0.0))
    same(single, [2.0])


def check_moments(module: Any) -> None:
    """1, 2 | 6 | nothing: count 3, mean 3, m2 14, variance 7."""
    parts = [
        module.Moments(count=2, mean=1.5, m2=0.5),
        module.Moments(count=0, mean=0.0, m2=0.0),
        module.Moments(count=1, mean=6.0, m2=0.0),
    ]
    merged = module.merge(parts)
    assert merged.count == 3
    same(merged.mean, 3.0)
    same(merged.m2, 14.0)
    same(merged.unbiased_variance, 7.0)
    assert module.Moments(count=1, mean=3.0, m2=0.0).unbiased_variance == 0.0
    assert module.merge([]) == module.Moments(count=0, mean=0.0, m2=0.0)


def check_kl(module: Any) -> None:
    logprobs, reference = torch.tensor([-1.0, -2.0], dtype=F64), torch.tensor([-1.5, -1.8], dtype=F64)
    same(module.kl_estimate(logprobs, reference, kind="k1"), [0.5, -0.2])
    same(module.kl_estimate(logprobs, reference, kind="k2"), [0.125, 0.02])
    same(module.kl_estimate(logprobs, reference, kind="k3"), [math.exp(-0.5) - 0.5, math.exp(0.2) - 1.2])
    # Beyond the clamp: e^20 - 21 and not infinity, and the other side e^-20 + 19.
    far = module.kl_estimate(torch.tensor([-200.0, 0.0], dtype=F64), torch.tensor([0.0, -200.0], dtype=F64), kind="k3")
    same(far, [math.exp(20) - 21, math.exp(-20) + 19])


def check_controller(module: Any) -> None:
    """Target 6, horizon 1000, 100 trajectories: KL 6.6 gives * 1.01; KL 60 and 0 are clipped to * 1.02 and * 0.98."""
    controller = module.AdaptiveKLController(0.05, 6.0, 1000)
    controller.update(6.6, 100)
    same(controller.coef, 0.0505)
    controller.update(60.0, 100)
    same(controller.coef, 0.0505 * 1.02)
    controller.update(0.0, 100)
    same(controller.coef, 0.0505 * 1.02 * 0.98)
    resumed = module.AdaptiveKLController(0.05, 6.0, 1000)
    resumed.load(controller.state())
    assert resumed.coef == controller.coef
    fixed = module.FixedKLController(0.05)
    fixed.update(60.0, 100)
    assert fixed.coef == 0.05


def check_token_rewards(module: Any) -> None:
    """The docstring's example beside a second trajectory whose masked last token must not take the score; then the twin."""
    mask = torch.tensor([False, True, True, False, True, False])
    old = torch.tensor([9.0, -1.0, -2.0, 9.0, -1.0, math.nan])
    reference = torch.tensor([7.0, -1.5, -1.8, 7.0, -4.0, 7.0])
    arguments = (torch.tensor([1.0, 2.0]), old, reference, mask, torch.tensor([0, 3, 6]))
    rewards = module.token_rewards(*arguments, kl_coef=0.1, kl_kind="k1")
    same(rewards, [0, -0.05, 1.02, 0, 1.7, 0], 1e-6)
    batch = random_batch(2)
    scores = torch.linspace(-2, 2, batch.num, dtype=F64)
    for kind in ("k1", "k2", "k3"):
        got = module.token_rewards(
            scores,
            batch["old"],
            batch["reference"],
            batch.loss_mask,
            batch.cu_lengths,
            kl_coef=0.3,
            kl_kind=kind,
        )
        old_list, reference_list = batch["old"].tolist(), batch["reference"].tolist()
        same(got, twins.token_rewards(scores.tolist(), old_list, reference_list, batch.rows(), 0.3, kind))


def check_scores(module: Any) -> None:
    scores = torch.tensor([3.0, -1.0, 100.0])
    same(module.normalise_scores(scores, mean=1.0, std=4.0), [0.5, -0.5, 24.75], 1e-6)
    sources = (torch.tensor([1.0, -2.0, 4.0]), torch.tensor([3.0, -1.0, -8.0]))
    same(module.combine_scores(sources, (1.0, 0.5), clip=None), [2.5, -2.5, 0.0], 1e-6)
    same(module.combine_scores(sources, (1.0, 0.5), clip=1.5), [1.5, -1.5, 0.0], 1e-6)
    penalties = module.answer_penalties(
        torch.tensor([6, 8, 10, 12, 10]),
        torch.tensor([False, False, False, False, True]),
        missing_end_penalty=0.25,
        length_penalty=2.0,
        soft_limit=6,
        hard_limit=10,
    )
    same(penalties, [0, -1, -2, -2, -2.25], 1e-6)


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


def check_bradley_terry(module: Any) -> None:
    """Gaps ln 3 and 0: -ln(3/4), -ln(1/2); with margins ln 3 and -ln 3 the probabilities are 1/2 and 3/4."""
    chosen, rejected = torch.tensor([math.log(3) + 1, 2.0], dtype=F64), torch.tensor([1.0, 2.0], dtype=F64)
    loss, metrics = module.bradley_terry_loss(chosen, rejected, global_count=2)
    same(loss, -(math.log(3 / 4) + math.log(1 / 2)) / 2)
    same(metrics["accuracy"], 0.75)
    same(metrics["score_gap"], math.log(3) / 2)
    margin = torch.tensor([math.log(3), -math.log(3)], dtype=F64)
    loss, _ = module.bradley_terry_loss(chosen, rejected, global_count=2, margin=margin)
    same(loss, -(math.log(1 / 2) + math.log(3 / 4)) / 2)


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


def head_problem(seed: int = 0, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states [7, 5], weight [11, 5], bias [11] and targets [7], the first three with gradient."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=F64).to(dtype).requires_grad_()
        for shape in ((7, 5), (11, 5), (11,))
    )
    return hidden, weight, bias, torch.randint(0, 11, (7,), generator=generator)


def whole_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """All logits at once, by autograd."""
    logits = hidden @ weight.T / temperature if bias is None else (hidden @ weight.T + bias) / temperature
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return p.gather(-1, targets[:, None]).squeeze(-1).log(), -(p * p.log()).sum(-1)


def check_logprobs(module: Any) -> None:
    """Probabilities 1/10, 3/10, 6/10 at temperature 1 (by hand), then values and gradients against all logits at once."""
    weight = torch.tensor([1.0, 3.0, 6.0], dtype=F64).log()[:, None]
    logprobs, entropy = module.token_logprobs(
        torch.ones(1, 1, dtype=F64),
        weight,
        torch.tensor([1]),
        temperature=1.0,
        chunk_tokens=4,
        with_entropy=True,
    )
    same(logprobs, [math.log(0.3)])
    same(entropy, [-sum(p * math.log(p) for p in (0.1, 0.3, 0.6))])
    hidden, weight, bias, targets = head_problem()
    how: dict[str, Any] = {"temperature": 0.7, "chunk_tokens": 3, "with_entropy": True, "head_bias": bias}
    got = module.token_logprobs(hidden, weight, targets, **how)
    wanted = whole_logprobs(hidden, weight, bias, targets, 0.7)
    factors = torch.linspace(-1, 2, 14, dtype=F64).view(2, 7)
    for a, b in zip(got, wanted, strict=True):
        same(a.detach(), b.detach())
    for chosen in ((0,), (1,), (0, 1)):
        totals = [torch.stack([factors[i] * pair[i] for i in chosen]).sum() for pair in (got, wanted)]
        gradients = [torch.autograd.grad(total, (hidden, weight, bias), retain_graph=True) for total in totals]
        for a, b in zip(*gradients, strict=True):
            same(a, b)


def check_positions(module: Any) -> None:
    mask = torch.tensor([False, True, True, False, True])
    positions = module.response_positions(mask)
    assert positions.tolist() == [1, 2, 4]
    same(module.scatter_to_tokens(torch.tensor([7.0, 8.0, 9.0]), positions, 5), [0, 7, 8, 0, 9])


def check_schedule(module: Any) -> None:
    how: dict[str, Any] = {"peak": 4.0, "warmup_steps": 2, "total_steps": 10, "final_frac": 0.5}
    rates = {d: [module.learning_rate(s, decay=d, **how) for s in (0, 1, 2, 4, 6, 10, 99)] for d in module.DECAYS}
    same(torch.tensor(rates["constant"]), [2, 4, 4, 4, 4, 4, 4], 1e-6)
    same(torch.tensor(rates["linear"]), [2, 4, 4, 3.5, 3, 2, 2], 1e-6)
    same(torch.tensor(rates["cosine"]), [2, 4, 4, 3 + math.sqrt(0.5), 3, 2, 2], 1e-6)


def check_calibration(module: Any) -> None:
    same(module.pair_accuracy(torch.tensor([2.0, 1.0, 0.0, 3.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])), 2.5 / 4)
    # Bins [0, .5) and [.5, 1]: |0.2 - 0.5| * 2/5 and |2.4/3 - 1/3| * 3/5.
    prob = torch.tensor([0.1, 0.3, 0.5, 0.9, 1.0], dtype=F64)
    outcome = torch.tensor([0, 1, 0, 0, 1])
    same(module.expected_calibration_error(prob, outcome, num_bins=2), 0.3 * 2 / 5 + (2.4 - 1) / 5)
    bins = module.calibration_bins(prob, outcome, num_bins=4)
    assert [one.count for one in bins] == [1, 1, 1, 2]
    same(torch.tensor([one.mean_prob for one in bins], dtype=F64), [0.1, 0.3, 0.5, 0.95])
    assert [one.observed_frac for one in bins] == [0, 1, 0, 0.5]
    empty = module.calibration_bins(prob[:1], outcome[:1], num_bins=2)[1]
    assert (empty.count, empty.mean_prob, empty.observed_frac) == (0, None, None)
    # Deviations -1 0 1 and -2 1 1 give 3 / sqrt(2 * 6).
    same(module.pearson_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 3, 3])), 3 / math.sqrt(12))


def check_segments(module: Any) -> None:
    mask = torch.tensor([False, True, True, False, False, True, False])
    cu = torch.tensor([0, 3, 7])
    positions, trajectories = module.unmasked_trajectories(mask, cu)
    assert (positions.tolist(), trajectories.tolist()) == ([1, 2, 5], [0, 0, 1])
    assert module.num_unmasked(mask, cu).tolist() == [2, 1]
    assert module.last_unmasked(mask, cu).tolist() == [2, 5]
    # A trajectory's first token is its own, and not the last of the one before.
    assert module.num_unmasked(torch.ones(7, dtype=torch.bool), cu).tolist() == [3, 4]
    with pytest.raises(ValueError, match=r"\[1\]"):
        module.last_unmasked(torch.tensor([False, True, False, False]), torch.tensor([0, 2, 4]))


CHECKS = {
    "advantages": (check_gae, check_bootstrap, check_whiten),
    "moments": (check_moments,),
    "kl": (check_kl,),
    "kl_controller": (check_controller,),
    "rewards": (check_token_rewards, check_scores),
    "losses": (
        check_policy_loss,
        check_policy_gradient,
        check_policy_clamp,
        check_value_loss,
        check_means,
        check_bradley_terry,
        check_plackett_luce,
    ),
    "logprobs": (check_logprobs, check_positions),
    "schedule": (check_schedule,),
    "calibration": (check_calibration,),
    "segments": (check_segments,),
}
"""Name of a module -> what it must pass."""
