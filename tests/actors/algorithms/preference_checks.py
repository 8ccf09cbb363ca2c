"""What a module of preference losses must pass, by hand. `module` is the real one, or a copy with a planted mistake."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.actors.algorithms.comparing import same


def check_answers(module: Any) -> None:
    """Junk in masked places, also not-a-number, says nothing. The reference gets no gradient."""
    logprobs = torch.tensor([math.nan, -1.0, -2.0, 9.0, -0.5, math.nan])
    mask = torch.tensor([False, True, True, False, True, False])
    cu_lengths = torch.tensor([0, 3, 6])
    same(module.answer_logprobs(logprobs, mask, cu_lengths, mean=False), [-3.0, -0.5], 1e-6)
    same(module.answer_logprobs(logprobs, mask, cu_lengths, mean=True), [-1.5, -0.5], 1e-6)
    own, reference = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    module.implicit_rewards(own, reference, beta=0.1).sum().backward()
    assert own.grad is not None and reference.grad is None


def check_pair(module: Any) -> None:
    """Log-probabilities -1 and -2, the reference's -1.5 and -1.5, beta 0.4: rewards 0.2 and -0.2, a lead of 0.4."""
    rewards = module.implicit_rewards(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.5]), beta=0.4)
    same(rewards, [0.2, -0.2], 1e-6)
    pair: dict[str, Any] = {"ranks": torch.tensor([0, 1]), "cu_groups": torch.tensor([0, 2]), "global_count": 1}
    loss, metrics = module.dpo_loss(rewards, kind="sigmoid", beta=0.4, label_smoothing=0.0, **pair)
    same(loss, math.log(1 + math.exp(-0.4)), 1e-6)
    same(metrics["accuracy"], 1.0)
    same(metrics["reward_gap"], 0.4, 1e-6)
    loss, _ = module.dpo_loss(rewards, kind="sigmoid", beta=0.4, label_smoothing=0.1, **pair)
    same(loss, 0.9 * math.log(1 + math.exp(-0.4)) + 0.1 * math.log(1 + math.exp(0.4)), 1e-6)
    loss, _ = module.dpo_loss(rewards, kind="ipo", beta=0.4, label_smoothing=0.0, **pair)
    same(loss, (1.0 - 1.25) ** 2, 1e-6)
    wrong, metrics = module.dpo_loss(rewards.flip(0), kind="sigmoid", beta=0.4, label_smoothing=0.0, **pair)
    same(wrong, math.log(1 + math.exp(0.4)), 1e-6)
    same(metrics["accuracy"], 0.0)


def check_groups(module: Any) -> None:
    """A pair that leads by 1 beside three answers of rewards 0, 0, 2 ranked 0, 1, 1, whose two pairs lead by 0 and -2: every group weighs
    the same, whatever its pairs, and a tie is no pair."""
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0])
    groups: dict[str, Any] = {"ranks": torch.tensor([3, 4, 0, 1, 1]), "cu_groups": torch.tensor([0, 2, 5])}
    loss, metrics = module.dpo_loss(rewards, kind="ipo", beta=0.5, label_smoothing=0.0, global_count=4, **groups)
    same(loss, ((2 - 1) ** 2 + ((0 - 1) ** 2 + (-4 - 1) ** 2) / 2) / 4, 1e-6)
    same(metrics["accuracy"], (1 + (0.5 + 0) / 2) / 4, 1e-6)
    same(metrics["reward_gap"], (1 + (0 - 2) / 2) / 4, 1e-6)


PREFERENCE_CHECKS = (check_answers, check_pair, check_groups)
