"""Advantages and returns (Schulman et al. 2016, generalised advantage estimation), and their whitening.

Legend: `B` trajectories, `T` tokens of all of them, flat, `N` unmasked tokens, `L` most unmasked tokens of one trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from actors.algorithms.moments import Moments
from actors.algorithms.segments import unmasked_trajectories

WHITENING_EPSILON = 1e-8
"""Added to the variance, not to the deviation."""

TRUNCATION_MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bootstrap": lambda truncated, last_values: torch.where(truncated, last_values, torch.zeros_like(last_values)),
    "penalise": lambda _, last_values: torch.zeros_like(last_values),
    "terminal": lambda _, last_values: torch.zeros_like(last_values),
}
"""Name -> value [B] after the last token, from bool `truncated` [B] and `last_values` [B]."""


def bootstrap_for(truncated: Tensor, last_values: Tensor, *, mode: str) -> Tensor:
    """The value after each trajectory's last token, as `gae` takes it: [B], 0 for trajectories that ended.

    Args:
        truncated: bool [B]
        last_values: [B], the critic's value after the last token; not read for trajectories that ended.
        mode: `bootstrap` takes the critic's value for truncated ones, for the answer would have gone on; `penalise` takes 0, the
            constant in the score being all that follows; `terminal` takes 0.

    Raises:
        ValueError: for another mode.
    """
    if mode not in TRUNCATION_MODES:
        raise ValueError(f"truncation mode must be one of {', '.join(TRUNCATION_MODES)}, got {mode!r}")
    return TRUNCATION_MODES[mode](truncated, last_values)


def gae(
    rewards: Tensor,
    values: Tensor,
    loss_mask: Tensor,
    cu_lengths: Tensor,
    bootstrap_values: Tensor,
    *,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of the unmasked tokens: [T], [T], both 0 where masked.

    With t' the next unmasked token of the trajectory: delta_t = r_t + gamma v_t' - v_t, A_t = delta_t + gamma lam A_t' (Schulman et al.
    2016, eq. 16), R_t = A_t + v_t. Masked places (a prompt, a tool's output) are skipped whole: neither their reward nor their
    value is read, and they take no discount. After the last unmasked token comes `bootstrap_values`, and an advantage of 0.

    Computed in float64 and returned in the type of `values`. The scan takes L vector steps of width B.

    Rewards 0 0 0 0 1, values .5 .4 9 9 .3, mask 1 1 0 0 1, gamma 1, lam .95, bootstrap 0: advantages .43675 .565 0 0 .7.

    Args:
        rewards, values: [T]
        loss_mask: bool [T]
        cu_lengths: int64 [B + 1]
        bootstrap_values: [B], see `bootstrap_for`.
        gamma, lam: in [0, 1].

    Raises:
        ValueError: for `gamma` or `lam` out of range.
    """
    for name, number in (("gamma", gamma), ("lam", lam)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {number}")
    num = len(cu_lengths) - 1
    assert rewards.shape == values.shape == loss_mask.shape
    assert bootstrap_values.shape == (num,)
    positions, rows = unmasked_trajectories(loss_mask, cu_lengths)
    counts = torch.bincount(rows, minlength=num)
    ends = counts.cumsum(0)
    own_rewards, own_values = rewards[positions].double(), values[positions].double()
    successors = own_values.roll(-1)
    some = counts > 0
    successors[ends[some] - 1] = bootstrap_values[some].double()
    deltas = own_rewards + gamma * successors - own_values

    longest = int(counts.max()) if num else 0
    columns = torch.arange(len(positions), device=rewards.device) - (ends - counts)[rows]
    table = deltas.new_zeros(longest, num)
    table[columns, rows] = deltas
    for column in range(longest - 2, -1, -1):
        table[column] += gamma * lam * table[column + 1]
    own_advantages = table[columns, rows]

    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    advantages[positions] = own_advantages.to(values.dtype)
    returns[positions] = (own_advantages + own_values).to(values.dtype)
    return advantages, returns


def moments_of(x: Tensor, mask: Tensor) -> Moments:
    """Moments, in float64, of the elements of `x` [T] where `mask` (bool [T]).

    Raises:
        ValueError: if one of them is not finite.
    """
    chosen = x[mask].double()
    if not bool(chosen.isfinite().all()):
        raise ValueError(f"{int((~chosen.isfinite()).sum())} of {len(chosen)} numbers are not finite")
    if not len(chosen):
        return Moments(count=0, mean=0.0, m2=0.0)
    # Measured from the first: equal numbers then have exactly their value as mean and exactly 0 as m2.
    shifted = chosen - chosen[0]
    shifted_mean = shifted.mean()
    m2 = (shifted - shifted_mean).square().sum()
    return Moments(count=len(chosen), mean=float(chosen[0] + shifted_mean), m2=float(m2))


def whiten(advantages: Tensor, loss_mask: Tensor, *, moments: Moments) -> Tensor:
    """(a - mean) / sqrt(variance + 1e-8) with the unbiased variance, in float64: [T], 0 where masked.

    A single number has no variance and is only centred. Equal advantages give exactly 0.

    Args:
        advantages: [T]
        loss_mask: bool [T]
        moments: of all unmasked advantages of the step, on all ranks; see `moments_of` and `merge`.
    """
    assert moments.count > 0 or not bool(loss_mask.any()), "moments of no numbers cannot whiten any"
    centred = advantages.double() - moments.mean
    scale = math.sqrt(moments.unbiased_variance + WHITENING_EPSILON) if moments.count > 1 else 1.0
    return torch.where(loss_mask, centred / scale, 0.0).to(advantages.dtype)
