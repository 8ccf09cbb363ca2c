"""Mistakes planted in the real parts: the comparison with the plain script, or the sync's probe, must see each of them."""

from __future__ import annotations

import pytest

from actors.errors import SyncFailed
from orchestrator.ppo_records import Timeline
from tests.proof.comparison import compare, note
from tests.proof.parts import Parts, RolloutAgain, Setting
from tests.proof.test_parity import NUMBERS, UPDATES

pytestmark = pytest.mark.slow

MARGIN = 10
"""A planted mistake must show by at least this many tolerances."""


@pytest.mark.parametrize(
    ("role", "fault", "shows_in"),
    [
        ("policy", "count of the rank", "policy/loss"),
        ("policy", "end token masked", "policy/grad_norm"),
        ("critic", "reward one token early", "critic/value_loss"),
    ],
)
def test_parity_sees_a_planted_mistake(parts: Parts, role: str, fault: str, shows_in: str) -> None:
    difference = compare(parts.run(Setting(num_ranks=2, steps=1), faults={role: fault}))
    note(fault, f"{shows_in} {difference.numbers[shows_in]:.1e}, updates {difference.worst_update:.1e}")

    assert difference.numbers[shows_in] > MARGIN * NUMBERS, difference
    assert difference.worst_update > MARGIN * UPDATES, difference


def test_probe_and_gap_see_logprobs_from_before_the_temperature(parts: Parts) -> None:
    loop = parts.loop(Setting())
    engine = loop.groups["rollout"]
    loop.waiter.wait(engine.call(RolloutAgain.logprobs_mode, "raw_logprobs"))
    try:
        with pytest.raises(SyncFailed, match="disagree on the probe"):
            loop.run()
        loop.sync._send(0)
        collected = loop.steps.collect(1, loop.steps.generate(1, policy_version=0), 0.05, Timeline())
        gap = max(summary.logprob_gap for wave in collected.summaries for summary in wave)
        note("raw log-probabilities", f"gap {gap:.1e}")
        assert gap > 1000 * loop.sync.tolerance
    finally:
        loop.waiter.wait(engine.call(RolloutAgain.logprobs_mode, "processed_logprobs"))
