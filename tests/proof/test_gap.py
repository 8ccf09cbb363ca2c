"""Engine and trainer agree after every sync, also while the policy moves fast."""

from __future__ import annotations

import pytest

from tests.proof.parts import Parts, Setting

pytestmark = pytest.mark.slow

STEPS = 20
TOLERANCE = 1e-4
"""Of |vLLM - trainer| / max(1, |log p|): fp32 on both sides."""


@pytest.mark.parametrize(("temperature", "tied"), [(0.7, True), (1.0, False)])
def test_engine_and_trainer_agree_after_each_of_twenty_syncs(parts: Parts, temperature: float, tied: bool) -> None:
    run = parts.run(Setting(tied=tied, temperature=temperature, steps=STEPS, optimizer={"lr": 2e-3}))

    assert len(run.entries) == STEPS
    assert max(entry.metrics["kl"] for entry in run.entries) > 3, "the policy has hardly moved"
    for entry in run.entries:
        assert entry.metrics["sync/probe_gap"] <= TOLERANCE, entry.step
        assert entry.metrics["logprob_gap"] <= TOLERANCE, entry.step
