"""Estimators of KL(p || p_ref) from tokens sampled from p (Schulman 2020, "Approximating KL divergence").

Legend: `T` tokens; any shape works.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to +- this before exp: e^20 is about 4.9e8, where float32 is still finite and so is its square."""


def _k1(log_ratio: Tensor) -> Tensor:
    return log_ratio


def _k2(log_ratio: Tensor) -> Tensor:
    return 0.5 * log_ratio.square()


def _k3(log_ratio: Tensor) -> Tensor:
    clamped = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(-clamped) + clamped


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}
"""Name -> function of d = log p - log p_ref."""


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, *, kind: str) -> Tensor:
    """Per token, with d = log p - log p_ref: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. Differentiable.

    k1 and k3 are unbiased, k2 is not but varies less than k1; k2 and k3 are never negative. k3 clamps d to +-20, beyond which it is
    constant and carries no gradient; k1 and k2 need no clamp.

    Args:
        logprobs: [T] of the policy that sampled the tokens.
        reference_logprobs: [T]
        kind: `k1`, `k2` or `k3`.

    Returns:
        [T] in nats.

    Raises:
        ValueError: for another kind.
    """
    if kind not in KL_ESTIMATORS:
        raise ValueError(f"kl kind must be one of {', '.join(KL_ESTIMATORS)}, got {kind!r}")
    return KL_ESTIMATORS[kind](logprobs - reference_logprobs)
