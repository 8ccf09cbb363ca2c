"""Direct preference optimisation: the policy learns from rankings without a reward model.

Legend: `G` answers of a micro-batch, `N` groups of answers to one prompt each, `P` pairs of differently ranked answers of one group,
`T` tokens of all answers, flat.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from actors.algorithms.losses import Metrics, plackett_luce_loss
from actors.algorithms.segments import num_unmasked, unmasked_trajectories


def answer_logprobs(logprobs: Tensor, loss_mask: Tensor, cu_lengths: Tensor, *, mean: bool) -> Tensor:
    """Log-probability of each answer, from those of its tokens: [G], with gradient. `mean` divides it by the answer's tokens.

    Args:
        logprobs: [T]
        loss_mask: bool [T], the answers' tokens.
        cu_lengths: int64 [G + 1]
    """
    positions, owners = unmasked_trajectories(loss_mask, cu_lengths)
    sums = logprobs.new_zeros(len(cu_lengths) - 1).index_add(0, owners, logprobs[positions])
    return sums / num_unmasked(loss_mask, cu_lengths).clamp(min=1) if mean else sums


def implicit_rewards(logprobs: Tensor, reference_logprobs: Tensor, *, beta: float) -> Tensor:
    """beta (log pi(answer) - log pi_ref(answer)): [G]. The reward, up to a term of the prompt alone, under which pi is optimal (Rafailov
    et al. 2023, eq. 5)."""
    return beta * (logprobs - reference_logprobs.detach())


def dpo_loss(
    rewards: Tensor,
    ranks: Tensor,
    cu_groups: Tensor,
    *,
    kind: str,
    beta: float,
    label_smoothing: float,
    global_count: float,
) -> tuple[Tensor, Metrics]:
    """Mean loss over the minibatch's groups: 0-d.

    - `sigmoid`: the likelihood of the ranking under `implicit_rewards` (Rafailov et al. 2023: eq. 7 for pairs, eq. 20, Plackett-Luce, for
      more answers). With `label_smoothing` e, the share of rankings taken to be wrong, each pair gives
      -(1 - e) log sigmoid(gap) - e log sigmoid(-gap) (Mitchell 2023), more than two answers by all their pairs.
    - `ipo`: (gap / beta - 1 / (2 beta))^2 of each pair (Azar et al. 2024, eq. 17), where the rewards are of per-token means.

    Deviation: of more than two answers the papers say nothing but for `sigmoid`; a group's loss is then the mean over its pairs.

    Args:
        rewards: [G] implicit rewards, with gradient.
        ranks: int64 [G], lower is better; equal ranks are not compared.
        cu_groups: int64 [N + 1], cumulative numbers of answers.
        kind: `sigmoid` or `ipo`.
        label_smoothing: in [0, 0.5), for `sigmoid`.
        global_count: groups of the minibatch, over all ranks.

    Returns:
        The loss and, as means over groups: `accuracy`, the share of pairs that the rewards order rightly (equal rewards count half), and
        `reward_gap` of better and worse.

    Raises:
        ValueError: for another kind, a smoothing out of range, a group without a pair, or a count that is not > 0.
    """
    if kind not in ("sigmoid", "ipo"):
        raise ValueError(f"dpo kind must be sigmoid or ipo, got {kind!r}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")
    if not global_count > 0:
        raise ValueError(
            f"global_count must be > 0, got {global_count}: the count of the whole minibatch, over all ranks"
        )
    gap, weights = _pairs(rewards, ranks, cu_groups, global_count)
    if kind == "ipo":
        loss = (weights * (gap / beta - 1 / (2 * beta)) ** 2).sum()
    elif label_smoothing:
        of_pairs = (1 - label_smoothing) * logsigmoid(gap) + label_smoothing * logsigmoid(-gap)
        loss = -(weights * of_pairs).sum()
    else:
        loss, _ = plackett_luce_loss(rewards, ranks, cu_groups, global_count=global_count)
    gap = gap.detach()
    right = (gap > 0).to(gap.dtype) + 0.5 * (gap == 0).to(gap.dtype)
    return loss, {"accuracy": (weights * right).sum(), "reward_gap": (weights * gap).sum()}


def _pairs(rewards: Tensor, ranks: Tensor, cu_groups: Tensor, global_count: float) -> tuple[Tensor, Tensor]:
    """For every pair how far the better answer leads [P], and its weight [P]: all pairs of a group together weigh 1 / global_count."""
    sizes = cu_groups.diff().to(rewards.device)
    group = torch.repeat_interleave(torch.arange(len(sizes), device=rewards.device), sizes)
    better, worse = ((group[:, None] == group) & (ranks[:, None] < ranks)).nonzero().unbind(1)
    num_pairs = torch.bincount(group[better], minlength=len(sizes))
    if bool((num_pairs == 0).any()):
        raise ValueError(f"groups {(num_pairs == 0).nonzero().squeeze(-1).tolist()} rank no answer above another")
    weights = 1.0 / (num_pairs[group[better]].to(rewards.dtype) * global_count)
    return rewards[better] - rewards[worse], weights
