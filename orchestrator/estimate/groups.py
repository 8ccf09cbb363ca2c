"""Peaks of what shares a GPU, or a machine, over the phases of a step. `orchestrator.estimate.estimate` has the table of who works when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from configs.gpus import GPUKind
from configs.schema import Stage
from configs.schema.ppo import PPOStage
from orchestrator.estimate.memory import SENT
from orchestrator.estimate.numbers import GIB
from orchestrator.estimate.records import GroupMemory, Item, MachineMemory, RoleMemory
from orchestrator.plan_records import GroupPlan, Plan, PPOPlan

PHASES = ("generate", "score", "update", "sync")
TIGHT_FRAC = 0.05
"""A peak that leaves less than this part of a GPU is worth a warning."""
STORED_BYTES_PER_TOKEN = 32
"""Of a trajectory in Ray's object store: token, mask, log-probability (13), and columns of old, reference and advantages (12), rounded."""


def group_memories(
    stage: Stage,
    plan: Plan,
    roles: Mapping[str, RoleMemory],
    kinds: Mapping[str, GPUKind | None],
    *,
    stored: float,
) -> dict[str, GroupMemory]:
    """Each group whose roles are all known; function workers' groups are left out. `stored`: bytes of a weight sync in the object store."""
    gpus = {
        name: own.gpu if (own := stage.cluster.groups.get(name)) and own.gpu else stage.cluster.gpu
        for name in plan.groups
    }
    found = {}
    for name, group in plan.groups.items():
        known = [roles[role] for role in group.roles if role in roles]
        if len(known) < len(group.roles):
            continue
        kind = kinds[name]
        per_bundle = _ranks_per_bundle(plan, group)
        phases = phases_of(plan)
        found[name] = GroupMemory(
            group=name,
            gpu=gpus[name] if kind else None,
            limit_bytes=kind.memory_bytes if kind else None,
            phases=tuple(
                Item(name=phase, amount=sum(needs(role, phase, plan) for role in known), note=_who(known, phase, plan))
                for phase in phases
            ),
            host_bytes_per_bundle=sum(role.host_bytes * per_bundle[role.role] for role in known),
            shared_bytes_per_bundle=shared_bytes(stage, plan, group, bundles=1, weights=stored),
        )
    return found


def phases_of(plan: Plan) -> tuple[str, ...]:
    if isinstance(plan, PPOPlan):
        return PHASES
    return ("generate",) if "rollout" in plan.roles else ("score", "update")


def needs(role: RoleMemory, phase: str, plan: Plan) -> float:
    """Bytes of one rank in a phase."""
    if asleep(role, phase, plan):
        return role.asleep_bytes
    return role.resident_bytes + sum(item.amount for item in working_items(role, phase, plan))


def working_items(role: RoleMemory, phase: str, plan: Plan) -> tuple[Item, ...]:
    """What a role holds on top in a phase."""
    if asleep(role, phase, plan):
        return ()
    if phase == "sync" and role.role == "critic" and not role.sleeps:
        return role.working_by_phase["update"]
    return role.working_by_phase.get(phase) or ()


def asleep(role: RoleMemory, phase: str, plan: Plan) -> bool:
    """Whether the role's memory has left its GPU."""
    if not role.sleeps or not isinstance(plan, PPOPlan):
        return False
    if role.role == "rollout":
        return phase in ("score", "update")
    return phase == "generate" or (phase == "sync" and role.role == "critic")


def _who(roles: list[RoleMemory], phase: str, plan: Plan) -> str:
    words = []
    for role in roles:
        state = "asleep" if asleep(role, phase, plan) else "works" if working_items(role, phase, plan) else "waits"
        if role.role == "rollout" and phase == "generate":
            state = "works"
        words.append(f"{role.role} {state}")
    return ", ".join(words)


def _ranks_per_bundle(plan: Plan, group: GroupPlan) -> dict[str, int]:
    return {role: plan.roles[role].num_ranks // group.num_bundles for role in group.roles}


def shared_bytes(stage: Stage, plan: Plan, group: GroupPlan, *, bundles: int, weights: float) -> float:
    """Ray's object store on a node with so many of the group's bundles: their part of a step's trajectories, and the `weights` that are
    there at once (bytes) where they travel over channel `cpu`. Whole waves that its ranks fetch to pick their part from are copies: Ray
    lets them go for room."""
    if not isinstance(stage, PPOStage) or not isinstance(plan, PPOPlan):
        return 0.0
    longest = stage.data.max_prompt_tokens + stage.rollout.max_response_tokens
    part = min(1.0, bundles / group.num_bundles)
    if "rollout" in group.roles:  # an engine generates whole waves, and keeps them until the step's end
        part = min(1.0, bundles * math.ceil(len(plan.waves) / group.num_bundles) / len(plan.waves))
    stored = part * plan.trajectories_per_step * longest * STORED_BYTES_PER_TOKEN
    if plan.sync_channel == "cpu" and {"policy", "rollout"} & set(group.roles):
        stored += weights
    return stored


def machine_memory(plan: Plan, roles: Mapping[str, RoleMemory], limit_bytes: float | None) -> MachineMemory:
    """All ranks of all known roles on one machine without GPUs. Roles do not sleep there: nothing is moved."""
    phases = []
    for phase in phases_of(plan):
        amount = sum(plan.roles[name].num_ranks * needs(role, phase, plan) for name, role in roles.items())
        if "policy" in roles:
            sent = sum(item.amount for item in working_items(roles["policy"], phase, plan) if item.name == SENT)
            amount -= (plan.roles["policy"].num_ranks - 1) * sent  # one rank sends
        phases.append(Item(name=phase, amount=amount, note=_who(list(roles.values()), phase, plan)))
    return MachineMemory(limit_bytes=limit_bytes, phases=tuple(phases))


def tight_fits(groups: Mapping[str, GroupMemory], plan: Plan, kinds: Mapping[str, GPUKind | None]) -> Iterator[str]:
    """What fits only just, and nodes whose memory may not do."""
    for name, group in groups.items():
        left = group.headroom_bytes
        if left is not None and group.limit_bytes is not None and 0 <= left < TIGHT_FRAC * group.limit_bytes:
            yield (
                f"group {name}: {left / GIB:.1f} GiB of {group.limit_bytes / GIB:.1f} GiB are left in phase {group.peak.name}: "
                "the allocator's gaps may take that"
            )
    by_node = _host_bytes_per_gpu(groups, plan)
    for name, per_gpu in by_node.items():
        kind = kinds[name]
        if kind is not None and per_gpu > kind.host_bytes:
            yield (
                f"group {name}: its ranks hold {per_gpu / GIB:.0f} GiB of the node's memory a GPU; {groups[name].gpu} nodes are "
                f"assumed to have {kind.host_gib:.0f} GiB"
            )


def _host_bytes_per_gpu(groups: Mapping[str, GroupMemory], plan: Plan) -> dict[str, float]:
    return {
        name: group.host_bytes_per_bundle / plan.groups[name].gpus_per_bundle
        for name, group in groups.items()
        if plan.groups[name].gpus_per_bundle
    }
