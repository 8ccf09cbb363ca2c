"""What the orchestrator holds of a PPO step under way: references, small records, and when who worked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from actors.algorithms.moments import Moments
from actors.group import Call
from actors.tasks import Busy, ExperienceSummary, WaveShard, WaveSummary


@dataclass(slots=True)
class Timeline:
    """When each phase and each rank worked, for metrics and benchmarks."""

    show: Callable[[str], AbstractContextManager[object]] = nullcontext
    """What tells people of a phase while it lasts."""
    phases: dict[str, float] = field(default_factory=dict)
    busy: list[tuple[str, Busy]] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        with self.show(name):
            yield
        self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - started


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredWave:
    """A wave whose trajectories have ranks, and what is being said of them."""

    summary: WaveSummary
    shards: dict[str, list[WaveShard]]
    """By role, rank r's at place r."""
    old: list[Call]
    reference: list[Call]
    values: list[Call]
    scores: list[list[Call]]
    """Of each source of rewards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """A step's experience: on its ranks, on disk, and here as numbers."""

    waves: tuple[WaveSummary, ...]
    summaries: tuple[tuple[ExperienceSummary, ...], ...]
    """By wave, rank r of the critic's at place r."""
    advantages: tuple[tuple[Call, ...], ...]
    """Likewise, by reference."""
    reference: tuple[tuple[Call, ...], ...]
    moments: Moments
