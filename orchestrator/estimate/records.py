"""The records of an estimate. Bytes are bytes, times are seconds; per GPU where nothing else is said.

config, plan ─┬─► shapes (config.json) ─┬─► memory by role ─► peaks by GPU over the phases of a step ─► fits or not ─┬─► suggestions
              └─► GPU kinds ────────────┴─► time by phase ──► critical path, idle shares, days, cost ────────────────┘
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One use of memory, or of time."""

    name: str
    """`parameters`, `gradients`, `optimizer`, `activations`, `logits`, `weight_sync`, `kv_cache`, `overhead`, ..."""
    amount: float
    """Bytes, or seconds."""
    note: str = ""
    """How it comes about, in words with the numbers: `8.2e9 parameters x 2 bytes / 8 ranks`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMemory:
    """What one rank of a role needs."""

    role: str
    resident: tuple[Item, ...]
    """Held for the whole run, or while the role is awake (`sleeps`)."""
    working_by_phase: dict[str, tuple[Item, ...]]
    """Held on top while the role works: phase (`score`, `update`, `sync`, `generate`) -> at its worst."""
    sleeps: bool
    """What is resident leaves the GPU while other roles of the group work."""
    asleep_bytes: float
    """What stays on the GPU meanwhile."""
    host: tuple[Item, ...]
    """In the node's memory; on CPU nothing, as all is there."""

    @property
    def working(self) -> tuple[Item, ...]:
        """Of the phase that needs most."""
        return max(self.working_by_phase.values(), key=lambda items: sum(item.amount for item in items), default=())

    @property
    def resident_bytes(self) -> float:
        return sum(item.amount for item in self.resident)

    @property
    def working_bytes(self) -> float:
        return sum(item.amount for item in self.working)

    @property
    def host_bytes(self) -> float:
        return sum(item.amount for item in self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMemory:
    """One GPU of a group over the phases of a step; on CPU: the ranks that share a bundle."""

    group: str
    gpu: str | None
    """Kind of the GPU; None on CPU."""
    limit_bytes: float | None
    """What it has; None where that is not known."""
    phases: tuple[Item, ...]
    """Phase -> bytes at its worst: `generate`, `score`, `update`, `sync`."""
    host_bytes_per_bundle: float
    """Of all its ranks in the node's memory."""
    shared_bytes_per_bundle: float
    """Of /dev/shm, at its worst: its part of a step's trajectories in Ray's object store, and of weights that travel through it."""

    @property
    def peak(self) -> Item:
        return max(self.phases, key=lambda phase: phase.amount)

    @property
    def headroom_bytes(self) -> float | None:
        """What is left at the peak; below 0: it does not fit."""
        return None if self.limit_bytes is None else self.limit_bytes - self.peak.amount


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineMemory:
    """What a machine's own memory must hold, where every rank is on it."""

    limit_bytes: float | None
    """What it has; None where that is not known."""
    phases: tuple[Item, ...]
    """Phase -> bytes of all ranks of all roles."""

    @property
    def peak(self) -> Item:
        return max(self.phases, key=lambda phase: phase.amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCapacity:
    """What an engine's KV cache holds."""

    kv_bytes_per_token: float
    kv_cache_bytes: float
    """Of one engine, over its GPUs."""
    sequences: float
    """Of the longest length, at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTime:
    """A span of a step in one group."""

    group: str
    role: str
    phase: str
    start_s: float
    """From the begin of the step."""
    end_s: float
    bound: str
    """What limits it: `compute`, `memory`, `network`, `overhead`."""
    note: str = ""
    bundle: int | None = None
    """Of the group's, where it is one engine's; None: on all of them."""
    critical: bool = False
    """On the critical path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """A step's time and what comes of it."""

    phases: tuple[PhaseTime, ...]
    step_s: float
    critical_path: tuple[str, ...]
    """Phases whose speed-up shortens the step: `generate (rollout)`, ..."""
    idle_frac: dict[str, float]
    """By group."""
    tokens_per_s: float
    """Prompt and response tokens of the whole run a second."""
    num_steps: int | None
    """Of the run; None where that depends on data that was not read."""
    run_s: float | None
    """Steps alone: start, evaluations, checkpoints and export are not in it."""
    gpu_hours: float | None
    cost: float | None
    """None where `cluster.gpu_hour_price` is not given."""
    assumptions: tuple[str, ...]
    """Efficiencies and other assumed numbers, in words with their values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A change of the config, and what it would do."""

    change: str
    """As an override: `policy.engine.zero_stage=3`."""
    effect: str
    """In words with numbers: `policy: 71.2 -> 48.0 GiB a GPU`."""
    gain: float
    """For ranking: of what does not fit, bytes saved at the worst GPU; else seconds a step saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """All that is known of a stage before it starts."""

    roles: dict[str, RoleMemory]
    groups: dict[str, GroupMemory]
    engines: dict[str, EngineCapacity]
    """By role that generates."""
    time: StepTime | None
    """None where no speed is known: on CPU, without a GPU kind, or where lengths are not."""
    suggestions: tuple[Suggestion, ...]
    machine: MachineMemory | None
    """Of a run on CPU; None on GPUs."""
    warnings: tuple[str, ...]
    """What fits only just, or rests on an assumption about the nodes, in words."""
    unknown: tuple[str, ...]
    """What could not be estimated and why, in words: a model whose config.json is nowhere to be had."""
