"""Learning rate from the number of the update."""

from __future__ import annotations

import math
from collections.abc import Callable

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
"""Name -> share of the way still above the final rate, from progress in [0, 1]."""


def learning_rate(
    step: int, *, peak: float, warmup_steps: int, total_steps: int, decay: str, final_frac: float
) -> float:
    """The rate of update `step`, counted from 0.

    Warm-up rises linearly, peak / warmup_steps at step 0 and the peak at step warmup_steps - 1: no update has rate 0. Then
    peak * (final_frac + (1 - final_frac) * d(progress)), progress = (step - warmup_steps) / (total_steps - warmup_steps), so the first
    update after warm-up has the peak and `final_frac * peak` is reached at total_steps, where training is over; it stays there.
    `constant` ignores `final_frac`.

    Raises:
        ValueError: for an unknown decay or a number out of range.
    """
    if decay not in DECAYS:
        raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {decay!r}")
    if step < 0 or not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"step >= 0 and 0 <= warmup_steps <= total_steps, got {step}, {warmup_steps}, {total_steps}")
    if not 0 <= final_frac <= 1:
        raise ValueError(f"final_frac must be in [0, 1], got {final_frac}")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return peak * (final_frac + (1.0 - final_frac) * DECAYS[decay](progress))
