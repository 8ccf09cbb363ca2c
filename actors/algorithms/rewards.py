"""From one score per answer to one reward per token.

Legend: `B` trajectories, `T` tokens of all of them, flat.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from actors.algorithms.kl import kl_estimate
from actors.algorithms.segments import last_unmasked


def _require_finite(scores: Tensor) -> None:
    if not bool(scores.isfinite().all()):
        bad = (~scores.isfinite()).nonzero().squeeze(-1).tolist()
        raise ValueError(f"scores of trajectories {bad} are not finite: {scores[bad].tolist()}")


def normalise_scores(scores: Tensor, *, mean: float, std: float) -> Tensor:
    """(scores - mean) / std: [B].

    Raises:
        ValueError: for a score that is not finite, or a `std` that is not > 0.
    """
    _require_finite(scores)
    if not std > 0:
        raise ValueError(f"std must be > 0, got {std}")
    return (scores - mean) / std


def combine_scores(sources: Sequence[Tensor], weights: Sequence[float], *, clip: float | None) -> Tensor:
    """The weighted sum of several rewards' scores [B], then clipped to +-clip: [B].

    Raises:
        ValueError: for a score that is not finite, a `clip` that is not > 0, or other weights than sources.
    """
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be > 0 or None, got {clip}")
    scores = torch.zeros_like(sources[0])
    for weight, source in zip(weights, sources, strict=True):
        _require_finite(source)
        scores = scores + weight * source
    return scores if clip is None else scores.clamp(-clip, clip)


def answer_penalties(
    response_lengths: Tensor,
    truncated: Tensor,
    *,
    missing_end_penalty: float,
    length_penalty: float,
    soft_limit: int | None,
    hard_limit: int,
) -> Tensor:
    """What an answer loses for its form, to be added to its score: float32 [B], <= 0.

    `-missing_end_penalty` for a truncated answer, and `-length_penalty * clip((length - soft_limit) / (hard_limit - soft_limit), 0, 1)`:
    nothing up to the soft limit, then linearly down to `-length_penalty` at the hard limit (soft overlong punishment, Yu et al. 2025,
    DAPO, eq. 13, with soft_limit = L_max - L_cache and hard_limit = L_max).

    Args:
        response_lengths: int64 [B] tokens of each response, its end token included.
        truncated: bool [B]
        missing_end_penalty: >= 0; 0 turns it off.
        length_penalty: >= 0; 0 turns it off.
        soft_limit: tokens; None only where `length_penalty` is 0.
        hard_limit: tokens, the longest response there can be.

    Raises:
        ValueError: for a negative penalty, or a length penalty without 0 <= soft_limit < hard_limit.
    """
    if not (missing_end_penalty >= 0 and length_penalty >= 0):
        raise ValueError(f"penalties must be >= 0, got {missing_end_penalty} and {length_penalty}")
    penalties = torch.zeros(truncated.shape, device=truncated.device)
    if length_penalty > 0:
        if soft_limit is None or not 0 <= soft_limit < hard_limit:
            raise ValueError(f"0 <= soft_limit < hard_limit is needed, got {soft_limit} and {hard_limit}")
        overlong = (response_lengths.to(torch.float32) - soft_limit) / (hard_limit - soft_limit)
        penalties = -length_penalty * overlong.clamp(0.0, 1.0)
    return torch.where(truncated, penalties - missing_end_penalty, penalties)


def token_rewards(
    scores: Tensor,
    old_logprobs: Tensor,
    reference_logprobs: Tensor,
    loss_mask: Tensor,
    cu_lengths: Tensor,
    *,
    kl_coef: float,
    kl_kind: str,
) -> Tensor:
    """-kl_coef * KL estimate at every unmasked token, and the score added at the last one: [T], 0 where masked.

    Three trajectory tokens, the last two chosen, score 1, coefficient 0.1 and log-ratios 0.5 and -0.2 (k1) give 0, -0.05, 1.02.

    Args:
        scores: [B]
        old_logprobs, reference_logprobs: [T]
        loss_mask: bool [T]
        cu_lengths: int64 [B + 1]
        kl_coef: 0 where the KL is in the loss or there is none.
        kl_kind: see `kl_estimate`.

    Raises:
        ValueError: for a trajectory without an unmasked token, or a score that is not finite.
    """
    _require_finite(scores)
    last = last_unmasked(loss_mask, cu_lengths)
    zero = old_logprobs.new_zeros(())
    kl = kl_estimate(
        torch.where(loss_mask, old_logprobs, zero), torch.where(loss_mask, reference_logprobs, zero), kind=kl_kind
    )
    rewards = torch.where(loss_mask, -kl_coef * kl, zero)
    return rewards.index_add(0, last, scores.to(rewards.dtype))
