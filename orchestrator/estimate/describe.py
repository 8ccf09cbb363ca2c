"""An estimate for people: tables of memory by role and item, of peaks by group and phase, and what engines hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from configs.schema import Config, Pipeline
from orchestrator.estimate.numbers import GIB
from orchestrator.estimate.preflight import PlannedStage
from orchestrator.estimate.records import Estimate, RoleMemory
from orchestrator.plan_records import Plan

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def describe_estimate(estimate: Estimate, plan: Plan) -> RenderableType:
    """All of it, one part under the other; a part about which nothing is known is left out."""
    from rich.console import Group

    parts: list[RenderableType] = []
    if estimate.roles:
        parts += ["memory of each rank in GiB (of an engine: of each GPU)", role_table(estimate, plan), ""]
    if estimate.groups and any(group.gpu for group in estimate.groups.values()):
        parts += ["memory of each GPU in GiB, by phase of a step", group_table(estimate), ""]
    parts += [*machine_lines(estimate), *engine_lines(estimate)]
    parts += [f"warning: {text}" for text in estimate.warnings]
    parts += [f"not known: {text}" for text in estimate.unknown]
    return Group(*parts)


def role_table(estimate: Estimate, plan: Plan) -> Table:
    """A row for each item of each role."""
    from rich.table import Table

    table = Table("role", "item", box=None, pad_edge=False)
    table.add_column("GiB", justify="right")
    table.add_column("how it comes about")
    for name, role in estimate.roles.items():
        first = f"{name} x {plan.roles[name].num_ranks}"
        for item in role.resident:
            table.add_row(first, item.name, _gib(item.amount), item.note)
            first = ""
        for item in role.working:
            table.add_row("", f"+ {item.name}", _gib(item.amount), f"{working_phase(role)}: {item.note}")
        table.add_row("", "at most", _gib(role.resident_bytes + role.working_bytes), "", style="bold")
    return table


def working_phase(role: RoleMemory) -> str:
    """The phase in which a role holds most on top."""
    return max(role.working_by_phase, key=lambda phase: sum(item.amount for item in role.working_by_phase[phase]))


def group_table(estimate: Estimate) -> Table:
    """A row for each group of GPUs."""
    from rich.table import Table

    phases = list(dict.fromkeys(phase.name for group in estimate.groups.values() for phase in group.phases))
    table = Table("group", "GPU", box=None, pad_edge=False)
    for heading in (*phases, "has", "left"):
        table.add_column(heading, justify="right")
    for name, group in estimate.groups.items():
        amounts = {phase.name: phase.amount for phase in group.phases}
        limit, left = group.limit_bytes, group.headroom_bytes
        table.add_row(
            name,
            group.gpu or "?",
            *(_gib(amounts[phase]) + ("*" if phase == group.peak.name else "") for phase in phases),
            "?" if limit is None else _gib(limit),
            "?" if left is None else _gib(left),
        )
    return table


def machine_lines(estimate: Estimate) -> list[str]:
    """A run on CPU."""
    machine = estimate.machine
    if machine is None or not estimate.roles:
        return []
    listed = ", ".join(f"{phase.name} {_gib(phase.amount)}" for phase in machine.phases)
    which, has = (
        ("the machine", "") if machine.limit_bytes is None else ("this machine", f" of {_gib(machine.limit_bytes)}")
    )
    return [f"memory of {which} in GiB, all ranks together: {listed}; at most {_gib(machine.peak.amount)}{has}"]


def engine_lines(estimate: Estimate) -> list[str]:
    """What the engines' caches hold."""
    return [
        f"{role}: the key-value cache of an engine, {_gib(max(0.0, engine.kv_cache_bytes))} GiB, holds "
        f"{max(0.0, engine.sequences):,.1f} sequences of the longest length at once ({engine.kv_bytes_per_token / 1024:,.1f} KiB a token)"
        for role, engine in estimate.engines.items()
    ]


def planned_json(config: Config, planned: Mapping[str, PlannedStage]) -> dict[str, Any]:
    """Every stage's plan with `where`, `refusal` and `estimate` (bytes, seconds) beside its own keys; a pipeline's by name."""
    found = {
        name: {
            **asdict(stage.plan),
            "where": stage.where,
            "refusal": stage.refusal,
            "estimate": asdict(stage.estimate),
        }
        for name, stage in planned.items()
    }
    return found if isinstance(config, Pipeline) else next(iter(found.values()))


def _gib(amount: float) -> str:
    return f"{amount / GIB:,.2f}"
