"""Where the seconds of PPO steps went, from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from orchestrator.ledger import LedgerEntry

PHASES = ("generate", "score", "experience", "update", "sync", "digest")
"""Of a PPO step, in the order in which they begin."""
REST = "rest"
"""Ledger, checkpoint, evaluation, next prompts."""
LONGEST_REST_S, LONGEST_REST = 60.0, 10.0
"""Seconds, or times the phases' seconds: a longer gap between two steps is a stop and a resume, not work."""


def step_seconds(entries: Sequence[LedgerEntry]) -> list[float]:
    """From the first engine's start in a step to that in the next: of all steps but the last."""
    starts = [min(wave.busy.started for wave in entry.waves) for entry in entries]
    return [after - before for before, after in pairwise(starts)]


def seconds_by_phase(entries: Sequence[LedgerEntry]) -> list[tuple[int, dict[str, float]]]:
    """(step, seconds by phase) of each step. The rest is left out where it is not known: after the last step, and over a pause."""
    found = [(entry.step, {phase: entry.seconds[phase] for phase in PHASES}) for entry in entries]
    for (_, seconds), whole in zip(found, step_seconds(entries), strict=False):
        worked = sum(seconds.values())
        rest = whole - worked
        if rest <= max(LONGEST_REST_S, LONGEST_REST * worked):
            seconds[REST] = max(0.0, rest)
    return found
