"""KL controllers, learning rates and calibration: what they refuse and what they keep. Hand values are in `checks.py`."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch

from actors.algorithms.calibration import expected_calibration_error, pair_accuracy, pearson_correlation
from actors.algorithms.kl_controller import AdaptiveKLController, FixedKLController
from actors.algorithms.schedule import DECAYS, learning_rate
from tests.actors.algorithms.comparing import same

SCHEDULE: dict[str, Any] = {"peak": 1.0, "warmup_steps": 3, "total_steps": 20, "decay": "cosine", "final_frac": 0.1}


def test_a_resumed_controller_goes_on_as_if_nothing_had_happened() -> None:
    straight = AdaptiveKLController(0.05, 6.0, 500)
    first = AdaptiveKLController(0.05, 6.0, 500)
    for kl in (9.0, 8.0, 3.0):
        straight.update(kl, 64)
        first.update(kl, 64)
    resumed = AdaptiveKLController(0.05, 6.0, 500)
    resumed.load(first.state())
    for kl in (2.0, 7.0):
        straight.update(kl, 64)
        resumed.update(kl, 64)
    assert resumed.coef == straight.coef != 0.05


def test_the_state_does_not_follow_the_controller() -> None:
    controller = AdaptiveKLController(0.05, 6.0, 500)
    state = controller.state()
    controller.update(60.0, 64)
    assert state == {"coef": 0.05}


def test_a_fixed_coefficient_is_the_configs() -> None:
    controller = FixedKLController(0.02)
    controller.load({"coef": 0.05})
    assert controller.coef == 0.02


@pytest.mark.parametrize(("kl", "num"), [(math.nan, 8), (math.inf, 8), (1.0, 0)])
@pytest.mark.parametrize("controller", [FixedKLController(0.05), AdaptiveKLController(0.05, 6.0, 500)])
def test_no_observation_is_refused(controller: FixedKLController | AdaptiveKLController, kl: float, num: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        controller.update(kl, num)
    assert controller.coef == 0.05


@pytest.mark.parametrize("arguments", [(0.0, 6.0, 10), (0.05, 0.0, 10), (0.05, 6.0, 0), (math.nan, 6.0, 10)])
def test_controllers_out_of_range_are_refused(arguments: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="must be finite and > 0"):
        AdaptiveKLController(*arguments)


def test_other_controllers_and_states_are_refused() -> None:
    with pytest.raises(ValueError, match="must be finite and >= 0, got -1"):
        FixedKLController(-1)
    for state in ({}, {"coef": math.nan}, {"coef": 1.0, "target": 6.0}):
        for controller in (FixedKLController(0.05), AdaptiveKLController(0.05, 6.0, 500)):
            with pytest.raises(ValueError, match="one finite number 'coef'"):
                controller.load(state)
    with pytest.raises(ValueError, match="horizon 10 is too short for steps of 100 trajectories"):
        AdaptiveKLController(0.05, 6.0, 10).update(0.0, 100)


def test_every_schedule_rises_then_falls() -> None:
    for decay in DECAYS:
        rates = [learning_rate(step, **SCHEDULE | {"decay": decay}) for step in range(20)]
        assert all(rate > 0 for rate in rates)
        assert rates[:3] == sorted(rates[:3])
        assert rates[2:] == sorted(rates[2:], reverse=True)
        assert max(rates) == 1.0


def test_a_run_that_is_all_warm_up() -> None:
    assert [learning_rate(step, **SCHEDULE | {"total_steps": 3}) for step in (0, 2)] == [1 / 3, 1.0]
    same(learning_rate(3, **SCHEDULE | {"total_steps": 3}), 1.0)


@pytest.mark.parametrize(
    ("step", "change"),
    [(0, {"decay": "step"}), (-1, {}), (0, {"warmup_steps": 30}), (0, {"warmup_steps": -1}), (0, {"final_frac": 1.5})],
)
def test_schedules_out_of_range_are_refused(step: int, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"decay must be|<= total_steps|final_frac must be"):
        learning_rate(step, **SCHEDULE | change)


def test_calibration_of_perfect_and_worst_probabilities() -> None:
    outcome = torch.tensor([0, 1, 1, 0])
    assert expected_calibration_error(outcome.double(), outcome, num_bins=10) == 0
    assert expected_calibration_error(1 - outcome.double(), outcome, num_bins=10) == 1


def test_calibration_sees_nothing_but_the_mean_in_one_bin() -> None:
    prob = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outcome = prob > 0.3
    same(expected_calibration_error(prob, outcome, num_bins=1), abs(prob.mean() - outcome.double().mean()))


def test_correlation_is_free_of_scale_and_undefined_without_spread() -> None:
    x, noise = torch.randn(2, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = x + noise
    same(pearson_correlation(x, y), torch.corrcoef(torch.stack([x, y]))[0, 1])
    same(pearson_correlation(3 * x + 1e6, -y), -pearson_correlation(x, y), 1e-6)
    assert math.isnan(pearson_correlation(torch.full((5,), 0.7), x[:5]))


def test_shapes_that_differ_are_refused() -> None:
    two, three = torch.ones(2), torch.ones(3)
    for call in (
        lambda: pair_accuracy(two, three),
        lambda: pair_accuracy(two[:0], two[:0]),
        lambda: expected_calibration_error(two, three, num_bins=2),
        lambda: pearson_correlation(two[:1], two[:1]),
    ):
        with pytest.raises(ValueError, match="two arrays of one length"):
            call()
    with pytest.raises(ValueError, match="num_bins"):
        expected_calibration_error(two, two, num_bins=0)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        expected_calibration_error(two + 1, two, num_bins=2)


def test_the_orchestrators_part_needs_no_torch() -> None:
    """Moments, KL controllers and learning rates are computed where torch is not loaded."""
    modules = "actors.algorithms.moments, actors.algorithms.kl_controller, actors.algorithms.schedule"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
