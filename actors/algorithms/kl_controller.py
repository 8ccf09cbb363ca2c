"""The coefficient of the KL penalty from step to step.

A controller's state belongs in every checkpoint: a run that resumes with the first coefficient trains against another objective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


class FixedKLController:
    """A coefficient that stays."""

    def __init__(self, coef: float) -> None:
        if not (math.isfinite(coef) and coef >= 0):
            raise ValueError(f"coef must be finite and >= 0, got {coef}")
        self.coef = coef

    def update(self, mean_kl: float, num_trajectories: int) -> None:
        """Takes what `AdaptiveKLController.update` takes, and stays; a KL that is no number stops the run here too."""
        _check_observation(mean_kl, num_trajectories)

    def state(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load(self, state: Mapping[str, float]) -> None:
        """Keeps its own coefficient, which the config alone decides; the state only has to be one of a controller."""
        _coef_of(state)


class AdaptiveKLController:
    """A coefficient that rises while the KL per trajectory is above its target and falls below it.

    Ziegler et al. 2019, section 2.2: error = clip(KL / target - 1, -0.2, 0.2), coef *= 1 + error * n / horizon
    (the paper's gain is n / horizon for its batches).
    """

    MAX_ERROR = 0.2

    def __init__(self, coef: float, target: float, horizon: int) -> None:
        """
        Args:
            coef: first coefficient, > 0 (0 would stay 0).
            target: KL per trajectory aimed at, in nats, > 0.
            horizon: trajectories; the larger, the slower.

        Raises:
            ValueError: for a value out of range.
        """
        for name, value in (("coef", coef), ("target", target), ("horizon", horizon)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and > 0, got {value}")
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, mean_kl: float, num_trajectories: int) -> None:
        """One step has been observed.

        Args:
            mean_kl: KL per trajectory in nats: summed over the tokens of each, averaged over trajectories.
            num_trajectories: trajectories of the step.

        Raises:
            ValueError: if the KL is not a finite number or there was no trajectory; the coefficient is as before.
        """
        _check_observation(mean_kl, num_trajectories)
        error = min(max(mean_kl / self.target - 1.0, -self.MAX_ERROR), self.MAX_ERROR)
        factor = 1.0 + error * num_trajectories / self.horizon
        if factor <= 0:
            raise ValueError(
                f"horizon {self.horizon} is too short for steps of {num_trajectories} trajectories: coef would be <= 0"
            )
        self.coef *= factor

    def state(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load(self, state: Mapping[str, float]) -> None:
        """Goes on from `state()` of an earlier controller."""
        self.coef = _coef_of(state)


def _check_observation(mean_kl: float, num_trajectories: int) -> None:
    if not math.isfinite(mean_kl):
        raise ValueError(f"mean_kl must be finite, got {mean_kl}")
    if num_trajectories < 1:
        raise ValueError(f"num_trajectories must be >= 1, got {num_trajectories}")


def _coef_of(state: Mapping[str, float]) -> float:
    if set(state) != {"coef"} or not math.isfinite(state["coef"]):
        raise ValueError(f"the state of a KL controller is one finite number 'coef', got {dict(state)}")
    return state["coef"]
