"""Engine and trainer agree after every sync, also while the policy moves fast."""

from __future__ import annotations

import pytest

from tests.proof.comparison import note
from tests.proof.parts import Parts, Setting

pytestmark = pytest.mark.slow

STEPS = 20
TOLERANCE = 1e-4
"""Of |vLLM - trainer| / max(1, |log p|): fp32 on both sides."""


@pytest.mark.parametrize(("temperature", "tied"), [(0.7, True), (1.0, False)])
def test_engine_and_trainer_agree_after_each_of_twenty_syncs(parts: Parts, temperature: float, tied: bool) -> None:
    run = parts.run(Setting(tied=tied, temperature=temperature, steps=STEPS, optimizer={"lr": 2e-3}))

    worst = {
        name: max(entry.metrics[name] for entry in run.entries) for name in ("sync/probe_gap", "logprob_gap", "kl")
    }
    note(f"gap at temperature {temperature}", worst)
    assert len(run.entries) == STEPS
    assert worst["kl"] > 3, "the policy has hardly moved"
    assert worst["sync/probe_gap"] <= TOLERANCE
    assert worst["logprob_gap"] <= TOLERANCE
