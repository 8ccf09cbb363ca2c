"""Refuses what cannot fit, with every number that leads to it."""

from __future__ import annotations

from collections.abc import Iterator

from configs.errors import ConfigError, Problem
from orchestrator.estimate.groups import asleep, needs, working_items
from orchestrator.estimate.numbers import GIB
from orchestrator.estimate.records import Estimate, Item, RoleMemory
from orchestrator.plan_records import Plan

LARGEST = 6
"""Items of a role that a message lists; the rest is summed up."""
OVERRULE = "`--skip-memory-check` starts it all the same"


def check_fits(estimate: Estimate, plan: Plan, *, stage: str) -> None:
    """Refuses a stage one of whose GPUs, engines or machines would need more memory than it has.

    What is unknown is not refused, nor what only rests on an assumption about the nodes (`Estimate.warnings`).

    Raises:
        ConfigError: naming group, phase, roles with their items, what is needed, what there is, and what would help.
    """
    problems = [*_gpus(estimate, plan), *_engines(estimate, plan), *_machine(estimate, plan)]
    if problems:
        raise ConfigError(f"stage {stage} does not fit ({OVERRULE})", problems)


def _gpus(estimate: Estimate, plan: Plan) -> Iterator[Problem]:
    for name, group in estimate.groups.items():
        left = group.headroom_bytes
        if left is None or left >= 0:
            continue
        assert group.limit_bytes is not None
        roles = [estimate.roles[role] for role in plan.groups[name].roles]
        parts = "; ".join(_breakdown(role, group.peak.name, plan) for role in roles)
        yield Problem(
            key=f"memory of group {name!r}",
            got=f"needs {group.peak.amount / GIB:.1f} GiB a GPU in phase {group.peak.name} ({parts})",
            allowed=f"{group.limit_bytes / GIB:.1f} GiB, what a {group.gpu} has{_advice(estimate)}",
        )


def _engines(estimate: Estimate, plan: Plan) -> Iterator[Problem]:
    for role, engine in estimate.engines.items():
        if engine.sequences >= 1:
            continue
        on_gpu = plan.roles[role].device == "cuda"
        yield Problem(
            key="rollout.gpu_memory_frac" if on_gpu else "rollout.kv_cache_gib",
            got=f"leaves {max(0.0, engine.kv_cache_bytes) / GIB:.1f} GiB of key-value cache, room for "
            f"{max(0.0, engine.sequences):.2f} of one longest sequence ({_items(estimate.roles[role].resident)})",
            allowed=f"room for at least one: {engine.kv_bytes_per_token / 1024:.0f} KiB a token{_advice(estimate)}",
        )


def _machine(estimate: Estimate, plan: Plan) -> Iterator[Problem]:
    machine = estimate.machine
    if machine is None or machine.limit_bytes is None or machine.peak.amount <= machine.limit_bytes:
        return
    parts = "; ".join(
        f"{plan.roles[name].num_ranks} x {_breakdown(role, machine.peak.name, plan)}"
        for name, role in estimate.roles.items()
    )
    yield Problem(
        key="memory of this machine",
        got=f"needs {machine.peak.amount / GIB:.1f} GiB in phase {machine.peak.name} ({parts})",
        allowed=f"{machine.limit_bytes / GIB:.1f} GiB, what it has{_advice(estimate)}",
    )


def _breakdown(role: RoleMemory, phase: str, plan: Plan) -> str:
    if asleep(role, phase, plan):
        return f"{role.role} {role.asleep_bytes / GIB:.1f}, asleep"
    items = _items((*role.resident, *working_items(role, phase, plan)))
    return f"{role.role} {needs(role, phase, plan) / GIB:.1f}: {items}"


def _items(items: tuple[Item, ...]) -> str:
    merged: dict[str, float] = {}
    for item in items:
        merged[item.name] = merged.get(item.name, 0.0) + item.amount
    ranked = sorted(merged.items(), key=lambda pair: -pair[1])
    listed = [f"{name} {amount / GIB:.1f}" for name, amount in ranked[:LARGEST]]
    rest = sum(amount for _, amount in ranked[LARGEST:])
    return ", ".join([*listed, *([f"other {rest / GIB:.1f}"] if rest else [])])


def _advice(estimate: Estimate) -> str:
    best = [f"{suggestion.change} ({suggestion.effect})" for suggestion in estimate.suggestions[:3]]
    return f"; what would help: {'; '.join(best)}" if best else ""
