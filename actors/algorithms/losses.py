"""What the optimizers minimise.

Legend: `B` trajectories, `T` tokens of a micro-batch, flat, `N` pairs or groups, `G` answers of all groups, flat, `K` most answers of one
group.

Every loss and metric here is a contribution: the caller passes the count of the whole minibatch, over all micro-batches and ranks, and
the contributions of all micro-batches and ranks add up to the minibatch's mean, however it was split. Metrics named `max_*` are not
added: the largest counts. Masked places are selected away before anything is computed from them, so that neither a NaN nor an infinity
there reaches a loss or a gradient. A micro-batch without an unmasked token gives 0 and a gradient of 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from actors.algorithms.kl import LOG_RATIO_LIMIT, kl_estimate
from actors.algorithms.segments import num_unmasked, unmasked_trajectories

Metrics = dict[str, Tensor]
"""Name -> 0-d, detached."""


def _token_mean(loss_mask: Tensor, _: Tensor) -> Tensor:
    return loss_mask.to(torch.float32)


def _sequence_mean(loss_mask: Tensor, cu_lengths: Tensor) -> Tensor:
    positions, trajectories = unmasked_trajectories(loss_mask, cu_lengths)
    shares = num_unmasked(loss_mask, cu_lengths).to(torch.float32).reciprocal()[trajectories]
    return torch.zeros(loss_mask.shape, device=loss_mask.device).index_copy(0, positions, shares)


AGGREGATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "token_mean": _token_mean,
    "sequence_mean": _sequence_mean,
}
"""Name -> weight of each token [T] before the division by the global count: 1 each, or 1 / (unmasked tokens of its trajectory)."""


def token_weights(loss_mask: Tensor, cu_lengths: Tensor, *, aggregation: str, global_count: float) -> Tensor:
    """What each token weighs in a mean over the minibatch: float32 [T], 0 where masked.

    Args:
        loss_mask: bool [T]
        cu_lengths: int64 [B + 1]
        aggregation: `token_mean`, all unmasked tokens alike, or `sequence_mean`, all trajectories alike.
        global_count: unmasked tokens (`token_mean`) or trajectories (`sequence_mean`) of the minibatch, over all ranks.

    Raises:
        ValueError: for another aggregation, or a count that is not > 0.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation must be one of {', '.join(AGGREGATIONS)}, got {aggregation!r}")
    return AGGREGATIONS[aggregation](loss_mask, cu_lengths) / _require_count(global_count)


def policy_loss(  # noqa: PLR0913 - one array per record and one number per config field
    new_logprobs: Tensor,
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    cu_lengths: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    importance_cap: float | None,
    aggregation: str,
    global_count: float,
) -> tuple[Tensor, Metrics]:
    """The clipped surrogate (Schulman et al. 2017, eq. 7), to be minimised: 0-d.

    Beyond the paper: the log-ratio is clamped to +-20 before exp; the two clip bounds may differ (Yu et al. 2025, DAPO);
    `dual_clip` c > 1 keeps the objective of a negative advantage above c A (Ye et al. 2020, dual-clip PPO), so that a huge ratio cannot
    blow it up; every token is weighted by min(exp(old - rollout), importance_cap), without gradient, for the difference between the engine
    that sampled and the policy that trains (truncated importance sampling, Yao et al. 2025).

    Args:
        new_logprobs: [T], with gradient.
        old_logprobs, rollout_logprobs, advantages: [T], taken as constants.
        loss_mask: bool [T]
        cu_lengths: int64 [B + 1]
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        dual_clip: c, or None.
        importance_cap: None weighs every token 1.
        aggregation, global_count: see `token_weights`.

    Returns:
        The loss and, as means under the same weights: `clip_frac` (clipped and therefore without gradient), `dual_clip_frac`,
        `approx_kl` (k3 of old against new), `ratio`, `importance_weight` (as applied), `importance_capped_frac`, `rollout_kl` (k3 of
        rollout against old), and `max_ratio`, `max_importance_ratio` (before the cap).

    Raises:
        ValueError: see `token_weights`.
    """
    weights = token_weights(loss_mask, cu_lengths, aggregation=aggregation, global_count=global_count)
    new, old, rollout, advantage = _select(
        loss_mask, new_logprobs, old_logprobs.detach(), rollout_logprobs.detach(), advantages.detach()
    )
    ratio = _ratio(new, old)
    unclipped = ratio * advantage
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage
    objective = torch.minimum(unclipped, clipped)
    dual_clipped = torch.zeros_like(loss_mask)
    if dual_clip is not None:
        floor = dual_clip * advantage
        dual_clipped = (advantage < 0) & (objective < floor)
        objective = torch.where(dual_clipped, floor, objective)

    importance_ratio = _ratio(old, rollout)
    capped = torch.zeros_like(loss_mask) if importance_cap is None else importance_ratio > importance_cap
    importance = torch.ones_like(ratio) if importance_cap is None else importance_ratio.clamp(max=importance_cap)
    loss = -(objective * importance.detach() * weights).sum()

    means = {
        "clip_frac": clipped < unclipped,
        "dual_clip_frac": dual_clipped,
        "approx_kl": kl_estimate(old, new, kind="k3"),
        "ratio": ratio,
        "importance_weight": importance,
        "importance_capped_frac": capped,
        "rollout_kl": kl_estimate(rollout, old, kind="k3"),
    }
    metrics = {name: (x.detach() * weights).sum() for name, x in means.items()}
    metrics["max_ratio"] = _max(ratio, loss_mask)
    metrics["max_importance_ratio"] = _max(importance_ratio, loss_mask)
    return loss, metrics


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, loss_mask: Tensor, *, clip: float | None, global_count: float
) -> tuple[Tensor, Metrics]:
    """0.5 max((v - R)^2, (v_clipped - R)^2), v_clipped within +-clip of the old value: 0-d, mean over the minibatch's unmasked tokens.

    Args:
        values: [T], with gradient.
        old_values, returns: [T], taken as constants.
        loss_mask: bool [T]
        clip: >= 0; None leaves only the first term.
        global_count: unmasked tokens of the minibatch, over all ranks.

    Returns:
        The loss and, as means: `value`, `return`, `squared_error`, `value_clip_frac` (the clipped term is the larger).

    Raises:
        ValueError: if the count is not > 0.
    """
    weights = loss_mask.to(torch.float32) / _require_count(global_count)
    value, old, target = _select(loss_mask, values, old_values.detach(), returns.detach())
    error = (value - target).square()
    worst, clipped = error, torch.zeros_like(loss_mask)
    if clip is not None:
        worst = torch.maximum(error, (old + (value - old).clamp(-clip, clip) - target).square())
        # within the range both terms are the same but for their rounding, which clips nothing
        clipped = (worst > error) & ((value - old).abs() > clip)
    loss = 0.5 * (worst * weights).sum()
    means = {"value": value, "return": target, "squared_error": error, "value_clip_frac": clipped}
    return loss, {name: (x.detach() * weights).sum() for name, x in means.items()}


def entropy_bonus(
    entropy: Tensor, loss_mask: Tensor, cu_lengths: Tensor, *, aggregation: str, global_count: float
) -> Tensor:
    """Mean entropy of the distributions that the unmasked tokens were drawn from, `entropy` [T], with gradient: 0-d.

    It is to be maximised: a caller subtracts it, times its coefficient, from the loss. See `token_weights` for the rest.
    """
    return _mean(entropy, loss_mask, cu_lengths, aggregation=aggregation, global_count=global_count)


def kl_penalty_loss(
    new_logprobs: Tensor,
    reference_logprobs: Tensor,
    loss_mask: Tensor,
    cu_lengths: Tensor,
    *,
    kind: str,
    aggregation: str,
    global_count: float,
) -> Tensor:
    """Mean KL estimate of the policy against its reference, for runs whose KL is in the loss, not in the reward: 0-d.

    A caller adds it, times its coefficient, to the loss. Its gradient flows through `new_logprobs` [T] alone and is that of the
    estimate, not of the KL: of the three, the gradient of k2 is in expectation the KL's on-policy (k1's is 0; Tang and Munos 2025).

    Args:
        kind: see `kl_estimate`.
        aggregation, global_count: see `token_weights`.
    """
    new, reference = _select(loss_mask, new_logprobs, reference_logprobs.detach())
    estimate = kl_estimate(new, reference, kind=kind)
    return _mean(estimate, loss_mask, cu_lengths, aggregation=aggregation, global_count=global_count)


def next_token_loss(
    logprobs: Tensor, loss_mask: Tensor, cu_lengths: Tensor, *, aggregation: str, global_count: float
) -> Tensor:
    """Mean negative log-likelihood of the unmasked tokens, `logprobs` [T], with gradient: 0-d. See `token_weights` for the rest."""
    return -_mean(logprobs, loss_mask, cu_lengths, aggregation=aggregation, global_count=global_count)


def plackett_luce_loss(
    scores: Tensor, ranks: Tensor, cu_groups: Tensor, *, global_count: float
) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood of the rankings, mean over the minibatch's groups: 0-d (Luce 1959; Plackett 1975).

    The best of a group's answers is drawn with probability softmax(scores), then the best of the rest, and so on:
    loss = sum_i (logsumexp over {j: rank_j >= rank_i} of s_j - s_i). With two answers and no tie this is
    -log sigmoid(better - worse) (Bradley and Terry 1952).

    Tied answers are each drawn from the same set, tied ones included (Breslow 1974), so a tie pulls their scores together: it is taken
    as "these are equally good", not as "these were not compared". Ranks need not be consecutive, only their order is read.

    Args:
        scores: [G], with gradient.
        ranks: int64 [G], lower is better.
        cu_groups: int64 [N + 1], cumulative numbers of answers.
        global_count: groups of the minibatch, over all ranks.

    Returns:
        The loss and, as means over groups: `accuracy`, the share of a group's differently ranked pairs that the scores order rightly
        (equal scores count half; a group that is one tie counts 0.5).

    Raises:
        ValueError: for a group of fewer than two answers, or a count that is not > 0.
    """
    count = _require_count(global_count)
    sizes = cu_groups.diff()
    if bool((sizes < 2).any()):
        raise ValueError(
            f"a ranking needs at least 2 answers; groups {(sizes < 2).nonzero().squeeze(-1).tolist()} have fewer"
        )
    rows = torch.repeat_interleave(torch.arange(len(sizes), device=scores.device), sizes.to(scores.device))
    columns = torch.arange(len(scores), device=scores.device) - cu_groups.to(scores.device)[rows]
    shape = (len(sizes), int(sizes.max()) if len(sizes) else 0)
    table = scores.new_zeros(shape).index_put((rows, columns), scores)  # [N, K]
    order = ranks.new_full(shape, torch.iinfo(ranks.dtype).max).index_put((rows, columns), ranks)
    valid = torch.zeros(shape, dtype=torch.bool, device=scores.device).index_put(
        (rows, columns), torch.ones_like(rows).bool()
    )

    # [N, K, K]: answer j is still there when answer i is drawn. The diagonal keeps rows of padding finite.
    diagonal = torch.eye(shape[1], dtype=torch.bool, device=scores.device)
    still_there = (valid[:, None, :] & (order[:, None, :] >= order[:, :, None])) | diagonal
    remaining = torch.where(still_there, table[:, None, :], -torch.inf).logsumexp(-1)
    loss = torch.where(valid, remaining - table, 0.0).sum() / count

    better = valid[:, None, :] & (order[:, :, None] < order[:, None, :])
    gap = (table[:, :, None] - table[:, None, :]).detach()
    right = torch.where(better, (gap > 0).to(gap.dtype) + 0.5 * (gap == 0).to(gap.dtype), 0.0).sum((1, 2))
    num_pairs = better.sum((1, 2))
    accuracy = torch.where(num_pairs > 0, right / num_pairs.clamp(min=1), 0.5)
    return loss, {"accuracy": accuracy.sum() / count}


def _require_count(global_count: float) -> float:
    if not global_count > 0:
        raise ValueError(
            f"global_count must be > 0, got {global_count}: the count of the whole minibatch, over all ranks"
        )
    return global_count


def _select(loss_mask: Tensor, *arrays: Tensor) -> list[Tensor]:
    """The arrays with 0 where masked; no gradient passes there."""
    return [torch.where(loss_mask, array, array.new_zeros(())) for array in arrays]


def _ratio(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    return (logprobs - other_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _mean(x: Tensor, loss_mask: Tensor, cu_lengths: Tensor, *, aggregation: str, global_count: float) -> Tensor:
    weights = token_weights(loss_mask, cu_lengths, aggregation=aggregation, global_count=global_count)
    (selected,) = _select(loss_mask, x)
    return (selected * weights).sum()


def _max(x: Tensor, loss_mask: Tensor) -> Tensor:
    """Largest unmasked element of `x` [T], which is >= 0; 0 where there is none."""
    return torch.cat([x.detach().new_zeros(1), x.detach()[loss_mask]]).max()
