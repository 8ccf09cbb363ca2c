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
from tests.actors.algorithms.comparing import F64, same
from tests.actors.algorithms.loss_checks import LOSS_CHECKS
from tests.actors.algorithms.preference_checks import PREFERENCE_CHECKS


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
    "losses": LOSS_CHECKS,
    "preference": PREFERENCE_CHECKS,
    "logprobs": (check_logprobs, check_positions),
    "schedule": (check_schedule,),
    "calibration": (check_calibration,),
    "segments": (check_segments,),
}
"""Name of a module -> what it must pass."""
