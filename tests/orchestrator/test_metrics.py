"""A step's numbers, merged from ranks' reports."""

from __future__ import annotations

import pytest

from actors.tasks import Busy, UpdateReport
from orchestrator.metrics import idle_frac, minibatch_metrics, whole_minibatches


def report(*minibatches: dict[str, float], norms: tuple[float, ...]) -> UpdateReport:
    return UpdateReport(minibatches=minibatches, grad_norms=norms, busy=Busy(started=0.0, seconds=1.0))


def test_contributions_are_summed_and_maxima_are_maxima() -> None:
    first = report({"loss": 0.25, "max_ratio": 2.0}, {"loss": 1.0, "max_ratio": 1.0}, norms=(3.0, 4.0))
    second = report({"loss": 0.5, "max_ratio": 5.0}, {}, norms=(3.0, 4.0))  # only dummies in its second minibatch
    whole = whole_minibatches([first, second])
    assert whole == (
        {"loss": 0.75, "max_ratio": 5.0, "grad_norm": 3.0},
        {"loss": 1.0, "max_ratio": 1.0, "grad_norm": 4.0},
    )
    assert minibatch_metrics("policy", whole) == {
        "policy/loss": 0.875,
        "policy/max_ratio": 5.0,
        "policy/grad_norm": 3.5,
    }


def test_no_update_has_no_metrics() -> None:
    assert whole_minibatches([]) == ()
    assert minibatch_metrics("policy", ()) == {}


@pytest.mark.parametrize(
    ("intervals", "idle"),
    [
        ([], 0.0),
        ([(0, 4)], 0.0),
        ([(0, 1), (3, 1)], 0.5),
        ([(3, 1), (0, 1), (0.5, 1.5)], 0.25),
        ([(0, 10), (2, 1)], 0.0),
    ],
)
def test_idle_is_when_nobody_works(intervals: list[tuple[float, float]], idle: float) -> None:
    assert idle_frac([Busy(started=start, seconds=seconds) for start, seconds in intervals]) == pytest.approx(idle)
