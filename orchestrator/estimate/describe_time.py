"""The time of an estimate for people: phases by group, what a step and a run come to, suggestions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from orchestrator.estimate.numbers import duration_text, number_text
from orchestrator.estimate.records import Estimate, PhaseTime, StepTime

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def describe_time(estimate: Estimate) -> RenderableType:
    """Time, then suggestions; what is not known is left out."""
    from rich.console import Group

    parts: list[RenderableType] = []
    if estimate.time is not None:
        parts += ["time of a step in seconds, estimated", time_table(estimate.time), "", *time_lines(estimate.time), ""]
    if estimate.suggestions:
        parts += ["what would help, as overrides", suggestion_table(estimate), ""]
    return Group(*parts)


def time_table(time: StepTime) -> Table:
    """A row for each kind of work of each group, in the order in which they begin."""
    from rich.table import Table

    table = Table("group", "phase", box=None, pad_edge=False)
    for heading in ("begins", "ends", "busy"):
        table.add_column(heading, justify="right")
    table.add_column("bound by")
    table.add_column("of the critical path")
    table.add_column("how it comes about")
    before = ""
    for phases in by_kind(time.phases):
        first = phases[0]
        group = first.group if first.group != before else ""
        before = first.group
        table.add_row(
            group,
            f"{first.phase} ({first.role})",
            f"{first.start_s:,.1f}",
            f"{max(phase.end_s for phase in phases):,.1f}",
            f"{busy_s(phases):,.1f}",
            first.bound,
            critical_text(phases),
            "; ".join(filter(None, (first.note, f"{len(phases)} times" if len(phases) > 1 else ""))),
        )
    return table


def by_kind(phases: tuple[PhaseTime, ...]) -> list[list[PhaseTime]]:
    """The spans of one phase of one role in one group together; groups in the order in which they begin."""
    found: dict[str, dict[tuple[str, str], list[PhaseTime]]] = {}
    for phase in phases:
        found.setdefault(phase.group, {}).setdefault((phase.phase, phase.role), []).append(phase)
    return [kind for group in found.values() for kind in group.values()]


def busy_s(phases: list[PhaseTime]) -> float:
    """Of the engine that works longest, or of the whole group."""
    by_bundle: dict[int | None, float] = {}
    for phase in phases:
        by_bundle[phase.bundle] = by_bundle.get(phase.bundle, 0.0) + phase.end_s - phase.start_s
    return max(by_bundle.values())


def critical_text(phases: list[PhaseTime]) -> str:
    seconds = sum(phase.end_s - phase.start_s for phase in phases if phase.critical)
    return f"{seconds:,.1f}" if seconds else "-"


def time_lines(time: StepTime) -> list[str]:
    """Step, run and idle shares."""
    step = f"step: {duration_text(time.step_s)}, {number_text(time.tokens_per_s)} tokens/s"
    idle = "idle: " + ", ".join(f"{group} {share:.0%}" for group, share in time.idle_frac.items())
    lines = [step, f"critical path: {' -> '.join(time.critical_path)}", idle]
    if time.run_s is None or time.gpu_hours is None:
        lines.append("run: not known, as no data is read here; data.max_rows would tell how many steps it has")
    else:
        cost = f", cost {number_text(time.cost)}" if time.cost is not None else ""
        took = f"{duration_text(time.run_s)}, {number_text(time.gpu_hours)} GPU-hours{cost}"
        lines.append(f"run: {time.num_steps:,} steps, {took}; without start, evaluations, checkpoints")
    lines.append(f"assumed: {time.assumptions[0]}; --json lists all that is")
    return lines


def total_line(estimates: Iterable[Estimate]) -> str:
    """All stages of a pipeline together, those whose length is known."""
    every = list(estimates)
    times = [estimate.time for estimate in every if estimate.time is not None]
    known = [(time.run_s, time.gpu_hours) for time in times if time.run_s is not None and time.gpu_hours is not None]
    costs = [time.cost for time in times if time.cost is not None]
    run_s, gpu_hours = sum(run for run, _ in known), sum(hours for _, hours in known)
    cost = f", cost {number_text(sum(costs))}" if costs else ""
    which = "all stages" if len(known) == len(every) else f"{len(known)} of {len(every)} stages, of which that is known"
    return f"{which}: {duration_text(run_s)}, {number_text(gpu_hours)} GPU-hours{cost}"


def suggestion_table(estimate: Estimate) -> Table:
    """The best first."""
    from rich.table import Table

    table = Table("", "change", "what it does", box=None, pad_edge=False)
    for number, suggestion in enumerate(estimate.suggestions, start=1):
        table.add_row(str(number), suggestion.change, suggestion.effect)
    return table
