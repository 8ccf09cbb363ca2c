"""How far a reward model can be believed.

Legend: `N` pairs or answers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from actors.algorithms.calibration_bin import CalibrationBin


def pair_accuracy(chosen: Tensor, rejected: Tensor) -> float:
    """Share of pairs whose chosen answer has the higher score; equal scores count half. `chosen`, `rejected`: [N], N >= 1.

    Raises:
        ValueError: for no pair, or shapes that differ.
    """
    _require_pairs(chosen, rejected, at_least=1)
    right = (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
    return float(right.mean())


def expected_calibration_error(prob: Tensor, outcome: Tensor, *, num_bins: int) -> float:
    """Mean over bins of |mean probability - frequency of the outcome|, weighted by the bins' sizes (Naeini et al. 2015; Guo et al. 2017).

    Arguments and errors are those of `calibration_bins`.
    """
    gaps = [
        one.count * abs(one.mean_prob - one.observed_frac)
        for one in calibration_bins(prob, outcome, num_bins=num_bins)
        if one.mean_prob is not None and one.observed_frac is not None
    ]
    return sum(gaps) / len(prob)


def calibration_bins(prob: Tensor, outcome: Tensor, *, num_bins: int) -> tuple[CalibrationBin, ...]:
    """What a reliability diagram shows, bin by bin (DeGroot and Fienberg 1983; Niculescu-Mizil and Caruana 2005).

    Bins are of equal width, [k / num_bins, (k + 1) / num_bins), the last one closed.

    Args:
        prob: [N] in [0, 1], what was foretold.
        outcome: bool or 0 / 1 [N], what was.
        num_bins: >= 1.

    Raises:
        ValueError: for probabilities outside [0, 1], no number, or shapes that differ.
    """
    _require_pairs(prob, outcome, at_least=1)
    if num_bins < 1:
        raise ValueError(f"num_bins must be >= 1, got {num_bins}")
    if not bool(((prob >= 0) & (prob <= 1)).all()):
        raise ValueError("probabilities must be in [0, 1]")
    bins = (prob.double() * num_bins).long().clamp(max=num_bins - 1)
    counts = torch.bincount(bins, minlength=num_bins).tolist()
    foretold, came_true = (
        torch.zeros(num_bins, dtype=torch.float64, device=prob.device).index_add(0, bins, x.double()).tolist()
        for x in (prob, outcome)
    )
    return tuple(
        CalibrationBin(
            count=count,
            mean_prob=prob_sum / count if count else None,
            observed_frac=outcome_sum / count if count else None,
        )
        for count, prob_sum, outcome_sum in zip(counts, foretold, came_true, strict=True)
    )


def pearson_correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's r of `x` [N] and `y` [N] in float64; NaN where one of them does not vary.

    Raises:
        ValueError: for fewer than two numbers, or shapes that differ.
    """
    _require_pairs(x, y, at_least=2)
    # From the first number: what does not vary is then exactly 0.
    x, y = x.double() - x[0].double(), y.double() - y[0].double()
    x, y = x - x.mean(), y - y.mean()
    spread = math.sqrt(float(x.square().sum())) * math.sqrt(float(y.square().sum()))
    return float((x * y).sum()) / spread if spread > 0 else math.nan


def _require_pairs(x: Tensor, y: Tensor, *, at_least: int) -> None:
    if x.dim() != 1 or x.shape != y.shape or len(x) < at_least:
        raise ValueError(
            f"two arrays of one length >= {at_least} are needed, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
