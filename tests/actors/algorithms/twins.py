"""The formulas once more: plain Python numbers, one token at a time, nothing shared with the code under test.

Legend: `rows` are the flat positions of each trajectory's unmasked tokens, in order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Row = Sequence[int]
Numbers = Sequence[float]


def gae(
    rewards: Numbers, values: Numbers, rows: Sequence[Row], bootstrap: Numbers, gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """As the sum of the paper's eq. 16, not as its recursion."""
    advantages, returns = [0.0] * len(rewards), [0.0] * len(rewards)
    for b, row in enumerate(rows):
        following = [values[t] for t in row[1:]] + [bootstrap[b]]
        deltas = [rewards[t] + gamma * after - values[t] for t, after in zip(row, following, strict=True)]
        for i, t in enumerate(row):
            advantages[t] = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(row)))
            returns[t] = advantages[t] + values[t]
    return advantages, returns


def kl(log_ratio: float, kind: str) -> float:
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return log_ratio**2 / 2
    return math.exp(-log_ratio) - 1 + log_ratio


def token_rewards(
    scores: Numbers, old: Numbers, reference: Numbers, rows: Sequence[Row], coef: float, kind: str
) -> list[float]:
    rewards = [0.0] * len(old)
    for b, row in enumerate(rows):
        for t in row:
            rewards[t] -= coef * kl(old[t] - reference[t], kind)
        rewards[row[-1]] += scores[b]
    return rewards


def mean(numbers: Numbers, rows: Sequence[Row], aggregation: str) -> float:
    """Over all unmasked tokens, or over trajectories of each one's mean."""
    if aggregation == "token_mean":
        chosen = [numbers[t] for row in rows for t in row]
        return sum(chosen) / len(chosen)
    return sum(sum(numbers[t] for t in row) / len(row) for row in rows) / len(rows)


def policy(
    arrays: tuple[Numbers, ...],
    rows: Sequence[Row],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    importance_cap: float | None,
    aggregation: str,
) -> dict[str, float]:
    """`arrays` are new, old and rollout log-probabilities and advantages."""
    new, old, rollout, advantages = arrays
    names = ("loss", "clip_frac", "dual_clip_frac", "approx_kl", "ratio", "importance_weight", "importance_capped_frac")
    tokens = {name: [math.nan] * len(new) for name in (*names, "rollout_kl")}
    ratios, raw_weights = [], []
    for t in (t for row in rows for t in row):
        ratio = math.exp(min(max(new[t] - old[t], -20), 20))
        a = advantages[t]
        bounded = min(max(ratio, 1 - clip_low), 1 + clip_high)
        objective = min(ratio * a, bounded * a)
        dual = dual_clip is not None and a < 0 and objective < dual_clip * a
        if dual_clip is not None and dual:
            objective = dual_clip * a
        raw = math.exp(min(max(old[t] - rollout[t], -20), 20))
        weight = 1.0 if importance_cap is None else min(raw, importance_cap)
        tokens["loss"][t] = -weight * objective
        tokens["clip_frac"][t] = float(bounded * a < ratio * a)
        tokens["dual_clip_frac"][t] = float(dual)
        tokens["approx_kl"][t] = kl(old[t] - new[t], "k3")
        tokens["ratio"][t] = ratio
        tokens["importance_weight"][t] = weight
        tokens["importance_capped_frac"][t] = float(importance_cap is not None and raw > importance_cap)
        tokens["rollout_kl"][t] = kl(rollout[t] - old[t], "k3")
        ratios.append(ratio)
        raw_weights.append(raw)
    result = {name: mean(numbers, rows, aggregation) for name, numbers in tokens.items()}
    return result | {"max_ratio": max(ratios), "max_importance_ratio": max(raw_weights)}


def value(
    values: Numbers, old_values: Numbers, returns: Numbers, rows: Sequence[Row], clip: float | None
) -> dict[str, float]:
    tokens = [t for row in rows for t in row]
    total = clipped_more = squared = 0.0
    for t in tokens:
        plain = (values[t] - returns[t]) ** 2
        worst = plain
        if clip is not None:
            near = min(max(values[t], old_values[t] - clip), old_values[t] + clip)
            worst = max(plain, (near - returns[t]) ** 2)
        total += 0.5 * worst
        squared += plain
        clipped_more += worst > plain
    n = len(tokens)
    return {
        "loss": total / n,
        "squared_error": squared / n,
        "value_clip_frac": clipped_more / n,
        "value": sum(values[t] for t in tokens) / n,
        "return": sum(returns[t] for t in tokens) / n,
    }


def plackett_luce(scores: Numbers, ranks: Sequence[int]) -> float:
    """Of one ranking without ties: the product of the draws, best first."""
    order = sorted(range(len(scores)), key=lambda i: ranks[i])
    probability = 1.0
    for i, drawn in enumerate(order):
        probability *= math.exp(scores[drawn]) / sum(math.exp(scores[j]) for j in order[i:])
    return -math.log(probability)


def breslow(scores: Numbers, ranks: Sequence[int]) -> float:
    """Of one ranking with ties: every member of a tied set is drawn from the set and all behind it."""
    loss = 0.0
    for _, tied in itertools.groupby(sorted(range(len(scores)), key=lambda i: ranks[i]), key=lambda i: ranks[i]):
        members = list(tied)
        there = sum(math.exp(scores[j]) for j in range(len(scores)) if ranks[j] >= ranks[members[0]])
        loss -= sum(math.log(math.exp(scores[i]) / there) for i in members)
    return loss


def moments(numbers: Numbers) -> tuple[int, float, float]:
    centre = math.fsum(numbers) / len(numbers)
    return len(numbers), centre, math.fsum((x - centre) ** 2 for x in numbers)
