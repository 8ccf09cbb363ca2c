"""What a registry knows of a run, wherever it is read from: the database or the run directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.sessions import State


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A step's numbers: of the step itself, or of an evaluation after it."""

    step: int
    """From 1; an evaluation may be of 0, before the first."""
    kind: str
    """`step` or `evaluation`."""
    metrics: dict[str, float]
    """Those that are finite."""
    digest: str = ""
    """Of a step, where bits are promised; in PPO always."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run: one stage, or a pipeline. Times are seconds since 1970."""

    id: str
    part_of: str | None = None
    """The pipeline that it is a stage of."""
    name: str
    """The folder's."""
    stage: str
    """Which, or `pipeline`."""
    state: State
    error: str = ""
    """Why it failed."""
    run_dir: str
    config_sha256: str
    """Of the stored config."""
    config: dict[str, Any]
    """Resolved."""
    overrides: list[str] = field(default_factory=list)
    """As they were written on the command line."""
    code: dict[str, str] = field(default_factory=dict)
    """Of the last session, as are lock and machine."""
    lock_sha256: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    data: dict[str, str] = field(default_factory=dict)
    """Fingerprint by key of the source."""
    models: dict[str, Any] = field(default_factory=dict)
    parents: list[dict[str, Any]] = field(default_factory=list)
    """Models and data that another run made: `key`, `path`, `run_dir`, `run_id` where it is known, `step`."""
    artefacts: list[dict[str, Any]] = field(default_factory=list)
    """`kind`, `path`; of a checkpoint also `step`."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last value of each."""
    num_steps: int = 0
    """Committed."""
    sessions: list[dict[str, Any]] = field(default_factory=list)
    """Begin, end, state, host, user and Ray job of each driver."""
    started_at: float | None = None
    ended_at: float | None = None
    active_s: float = 0.0
    """Of all sessions, pauses between them left out."""
    gpu_s: float = 0.0
    """Seconds times the GPUs of the plan."""

    @property
    def gpu_hours(self) -> float:
        return self.gpu_s / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRun:
    """A run with all that is stored apart from it."""

    run: RunRecord
    steps: tuple[StepRecord, ...] = ()
    packages: dict[str, str] = field(default_factory=dict)
    """Of the last session."""
