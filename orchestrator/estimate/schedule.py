"""From tasks to a timeline: each begins when what it waits for has ended, and what it runs on is free.

What shares GPUs takes its turns in the order of the list, which is the order in which the driver asks for it. So the timeline is the
longest path through a graph: a task that gets shorter never makes the step longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.estimate.records import PhaseTime
from orchestrator.estimate.roofline import Duration

Lane = tuple[str, int]
"""(group, bundle): one GPU, or those of one engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Something that keeps GPUs of one group busy."""

    role: str
    phase: str
    duration: Duration
    lanes: tuple[Lane, ...]
    after: tuple[int, ...]
    """Places in the list of what it waits for, all before its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A task with its times."""

    task: Task
    start_s: float
    end_s: float
    critical: bool
    """On the longest path: shorter, it would shorten the step, unless another path is as long."""


def timeline(tasks: Sequence[Task]) -> tuple[Span, ...]:
    """When each task runs, in the order of the list."""
    free: dict[Lane, int] = {}
    starts: list[float] = []
    ends: list[float] = []
    waited_for: list[int | None] = []
    for place, task in enumerate(tasks):
        before = [*task.after, *(free[lane] for lane in task.lanes if lane in free)]
        assert all(other < place for other in before), f"task {place} waits for a later one"
        last = max(before, key=ends.__getitem__, default=None)
        starts.append(0.0 if last is None else ends[last])
        ends.append(starts[place] + task.duration.seconds)
        waited_for.append(last)
        free.update(dict.fromkeys(task.lanes, place))
    critical = set()
    at = max(range(len(tasks)), key=lambda place: ends[place], default=None)
    while at is not None:
        critical.add(at)
        at = waited_for[at]
    return tuple(
        Span(task=task, start_s=starts[place], end_s=ends[place], critical=place in critical)
        for place, task in enumerate(tasks)
    )


def phase_times(spans: Sequence[Span]) -> tuple[PhaseTime, ...]:
    """The groups' spans for people: neighbours of the same kind on the same GPUs are one, what takes no time is none."""
    rows: dict[tuple[str, int | None], list[PhaseTime]] = {}
    for span in spans:
        if span.end_s <= span.start_s:
            continue
        for found in _by_group(span):
            row = rows.setdefault((found.group, found.bundle), [])
            if row and _continues(row[-1], found):
                row[-1] = _joined(row[-1], found)
            else:
                row.append(found)
    every = [phase for row in rows.values() for phase in row]
    return tuple(sorted(every, key=lambda phase: (phase.start_s, phase.group, phase.bundle or 0)))


def _by_group(span: Span) -> Iterator[PhaseTime]:
    """One for each group that it keeps busy."""
    bundles: dict[str, list[int]] = {}
    for group, bundle in span.task.lanes:
        bundles.setdefault(group, []).append(bundle)
    for group, of_group in bundles.items():
        yield PhaseTime(
            group=group,
            role=span.task.role,
            phase=span.task.phase,
            start_s=span.start_s,
            end_s=span.end_s,
            bound=span.task.duration.bound,
            note=span.task.duration.note,
            bundle=of_group[0] if span.task.phase == "generate" and len(of_group) == 1 else None,
            critical=span.critical,
        )


def _continues(first: PhaseTime, second: PhaseTime) -> bool:
    same = (first.role, first.phase, first.critical) == (second.role, second.phase, second.critical)
    return same and second.start_s - first.end_s <= 1e-9 * max(1.0, second.start_s)


def _joined(first: PhaseTime, second: PhaseTime) -> PhaseTime:
    longer = max(first, second, key=lambda phase: phase.end_s - phase.start_s)
    return PhaseTime(
        group=first.group,
        role=first.role,
        phase=first.phase,
        start_s=first.start_s,
        end_s=second.end_s,
        bound=longer.bound,
        note=longer.note,
        bundle=first.bundle,
        critical=first.critical,
    )


def idle_shares(spans: Sequence[Span], num_lanes: dict[str, int]) -> dict[str, float]:
    """By group, the part of its GPUs' time in which nothing runs on them; `num_lanes` of each group."""
    step_s = max((span.end_s for span in spans), default=0.0)
    busy = dict.fromkeys(num_lanes, 0.0)
    for span in spans:
        for group, _ in span.task.lanes:
            busy[group] += span.end_s - span.start_s
    return {
        group: min(1.0, max(0.0, 1.0 - busy[group] / (step_s * lanes))) if step_s > 0 else 0.0
        for group, lanes in num_lanes.items()
    }
