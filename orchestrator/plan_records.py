"""The records of a plan. See `orchestrator.plan`, which works them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Device = Literal["cpu", "cuda"]
SyncChannel = Literal["cpu", "nccl", "ipc"]
Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
"""How Ray lays the bundles of a group over nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there is to run on: one machine, or a whole Ray cluster."""

    num_cpus: int
    """Cores."""
    num_gpus: int
    where: str
    """In words, for messages: `this machine`, `the Ray cluster at 10.0.0.1:6379`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePlan:
    """All ranks of one role."""

    role: str
    num_ranks: int
    """Ray actors; of the rollout role: engines."""
    gpus_per_rank: int
    """0 on CPU; of an engine: its tensor parallelism."""
    threads: int
    """OMP_NUM_THREADS of each rank."""
    group: str
    device: Device


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """One placement group: the roles in it share its GPUs and take turns."""

    name: str
    num_bundles: int
    gpus_per_bundle: int
    cpus_per_bundle: float
    """Ray's logical CPUs: `orchestrator.plan.CPUS_PER_RANK` for each rank in the bundle."""
    roles: tuple[str, ...]
    """Equally many ranks each (checked): rank i of each role is in bundle i."""
    strategy: Strategy = "PACK"
    resource: str | None = None
    """Ray custom resource of the nodes that it goes to; any node where it is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOPlan:
    """Stage `ppo`, worked out."""

    roles: dict[str, RolePlan]
    """policy, critic, reference (where KL needs one), reward (where there is a reward model), rollout, reward_function_0, ..., judge
    (where evaluations have one)"""
    groups: dict[str, GroupPlan]
    waves: tuple[tuple[int, ...], ...]
    """Prompts of a step, as positions in it, per wave. Wave w goes to engine w % engines."""
    prompts_per_step: int
    trajectories_per_step: int
    trajectories_per_minibatch: int
    updates_per_step: int
    """Optimizer steps of one PPO step."""
    total_updates: int
    """Optimizer steps of the critic in the run."""
    policy_updates: int
    """Optimizer steps of the policy in the run: those of `critic.warmup_steps` are not its."""
    rollout_shares_gpu: bool
    """The engines share their group with another role: phases exclude each other (on CPU too, where no GPU is shared)."""
    needs_reference: bool
    """The KL coefficient is greater than 0, or may become so."""
    sync_channel: SyncChannel


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedPlan:
    """Stages `pretrain`, `sft`, `dpo` and `reward`, worked out. How many steps there are is known when the data is loaded."""

    role: str
    """The one that learns: `reward` in stage `reward`, else `policy`."""
    roles: dict[str, RolePlan]
    """That one."""
    groups: dict[str, GroupPlan]
    items: str
    """What an item is, in words."""
    items_per_step: int
    """Items of one optimizer step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """Stage `rank`, worked out."""

    roles: dict[str, RolePlan]
    """rollout, annotator"""
    groups: dict[str, GroupPlan]
    prompts_per_wave: int
    answers_per_prompt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePlan:
    """A comparison, worked out. Its roles run one after the other, each with the whole machine."""

    roles: dict[str, RolePlan]
    """rollout_a, rollout_b, and the judge where there is one: reward or annotator"""
    groups: dict[str, GroupPlan]
    """One, that holds whichever of them is at work."""


Plan = PPOPlan | SupervisedPlan | RankPlan | ComparePlan
