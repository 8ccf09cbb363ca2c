"""Direct preference optimisation by slow twins, by slopes, and under other packings. By hand: `preference_checks`."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.algorithms.preference import answer_logprobs, dpo_loss, implicit_rewards
from tests.actors.algorithms.comparing import same

F64 = torch.float64
SIGMOID: dict[str, Any] = {"kind": "sigmoid", "beta": 0.1, "label_smoothing": 0.0}
SETTINGS: tuple[dict[str, Any], ...] = (
    SIGMOID,
    {"kind": "sigmoid", "beta": 0.5, "label_smoothing": 0.2},
    {"kind": "ipo", "beta": 0.25, "label_smoothing": 0.0},
)


def twin(
    rewards: list[float], ranks: list[int], sizes: list[int], *, kind: str, beta: float, label_smoothing: float
) -> float:
    """Mean loss over groups, answer by answer."""
    losses, at = [], 0
    for size in sizes:
        r, k = rewards[at : at + size], ranks[at : at + size]
        at += size
        gaps = [r[i] - r[j] for i in range(size) for j in range(size) if k[i] < k[j]]
        if kind == "ipo":
            losses.append(sum((gap / beta - 0.5 / beta) ** 2 for gap in gaps) / len(gaps))
        elif label_smoothing:
            e = label_smoothing
            each = [(1 - e) * math.log1p(math.exp(-gap)) + e * math.log1p(math.exp(gap)) for gap in gaps]
            losses.append(sum(each) / len(gaps))
        else:
            rest = [math.log(sum(math.exp(r[j]) for j in range(size) if k[j] >= k[i])) - r[i] for i in range(size)]
            losses.append(sum(rest))
    return sum(losses) / len(losses)


def groups(seed: int) -> tuple[Tensor, Tensor, list[int]]:
    """Rewards [G], ranks [G] with ties, answers of each group."""
    generator = random.Random(seed)
    sizes = [generator.randint(2, 4) for _ in range(generator.randint(1, 5))]
    ranks = []
    for size in sizes:
        of_group = [generator.randrange(3) for _ in range(size)]
        ranks += [0, *of_group[1:-1], 2] if len(set(of_group)) == 1 else of_group
    return torch.tensor([generator.gauss(0, 2) for _ in ranks], dtype=F64), torch.tensor(ranks), sizes


def bounds(sizes: list[int]) -> Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def test_a_policy_that_is_the_reference_loses_log_2() -> None:
    logprobs = torch.tensor([-3.0, -7.0])
    rewards = implicit_rewards(logprobs, logprobs, beta=0.1)
    loss, metrics = dpo_loss(rewards, torch.tensor([1, 0]), torch.tensor([0, 2]), global_count=1, **SIGMOID)
    same(loss, math.log(2), 1e-6)
    assert float(metrics["accuracy"]) == 0.5


@pytest.mark.parametrize("how", SETTINGS)
@given(seed=st.integers(0, 10_000))
@settings(deadline=None, derandomize=True, max_examples=20)
def test_the_loss_is_its_twins_and_its_gradient_a_slope(how: dict[str, Any], seed: int) -> None:
    rewards, ranks, sizes = groups(seed)
    rewards.requires_grad_()
    loss, _ = dpo_loss(rewards, ranks, bounds(sizes), global_count=len(sizes), **how)
    same(loss.detach(), twin(rewards.tolist(), ranks.tolist(), sizes, **how))
    assert torch.autograd.gradcheck(
        lambda r: dpo_loss(r, ranks, bounds(sizes), global_count=len(sizes), **how)[0], (rewards,)
    )


@pytest.mark.parametrize("how", SETTINGS)
def test_micro_batches_add_up(how: dict[str, Any]) -> None:
    rewards, ranks, sizes = groups(7)
    whole, metrics = dpo_loss(rewards, ranks, bounds(sizes), global_count=len(sizes), **how)
    cut = sum(sizes[:2])
    first = dpo_loss(rewards[:cut], ranks[:cut], bounds(sizes[:2]), global_count=len(sizes), **how)
    second = dpo_loss(rewards[cut:], ranks[cut:], bounds(sizes[2:]), global_count=len(sizes), **how)
    same(first[0] + second[0], float(whole))
    for name, value in metrics.items():
        same(first[1][name] + second[1][name], float(value))


def test_masked_places_get_no_gradient() -> None:
    logprobs = torch.tensor([math.nan, -1.0, -2.0, 9.0, -0.5, math.nan], requires_grad=True)
    mask = torch.tensor([False, True, True, False, True, False])
    answer_logprobs(logprobs, mask, torch.tensor([0, 3, 6]), mean=False).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "hinge"}, "dpo kind must be sigmoid or ipo, got 'hinge'"),
        ({"label_smoothing": 0.5}, r"label_smoothing must be in \[0, 0.5\), got 0.5"),
        ({"global_count": 0}, "global_count must be > 0, got 0"),
        ({"ranks": torch.tensor([1, 1])}, r"groups \[0\] rank no answer above another"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"ranks": torch.tensor([0, 1]), "cu_groups": torch.tensor([0, 2]), "global_count": 1, **SIGMOID}
    with pytest.raises(ValueError, match=message):
        dpo_loss(torch.zeros(2), **{**arguments, **change})
