"""The timeline: hand-worked cases, a slow twin that knows nothing of the fast one, and what must hold of any tasks."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.estimate.roofline import Duration
from orchestrator.estimate.schedule import Lane, Span, Task, idle_shares, phase_times, timeline


def task(seconds: float, *lanes: Lane, after: tuple[int, ...] = (), role: str = "policy", phase: str = "score") -> Task:
    return Task(role=role, phase=phase, duration=Duration(seconds=seconds, bound="compute"), lanes=lanes, after=after)


A, B, C = ("a", 0), ("a", 1), ("b", 0)


def times(spans: tuple[Span, ...]) -> list[tuple[float, float]]:
    return [(span.start_s, span.end_s) for span in spans]


def test_two_waves_stream_into_a_scorer_of_its_own() -> None:
    """Generation of 3 s a wave, scoring of 2 s: the second wave's generation hides the first one's scoring."""
    tasks = [
        task(3, A, phase="generate"),
        task(3, A, phase="generate"),
        task(2, C, after=(0,)),
        task(2, C, after=(0, 1)),
        task(4, C, after=(2, 3), phase="update"),
    ]
    spans = timeline(tasks)
    assert times(spans) == [(0, 3), (3, 6), (3, 5), (6, 8), (8, 12)]
    assert [span.critical for span in spans] == [True, True, False, True, True]
    assert idle_shares(spans, {"a": 2, "b": 1}) == pytest.approx({"a": 1 - 6 / 24, "b": 1 - 8 / 12})


def test_what_shares_a_gpu_takes_turns_in_the_order_asked_for() -> None:
    spans = timeline([task(1, A, B), task(2, A), task(2, B), task(1, A, B)])
    assert times(spans) == [(0, 1), (1, 3), (1, 3), (3, 4)]


def test_neighbours_of_the_same_kind_are_shown_as_one_span_and_nothing_as_none() -> None:
    spans = timeline(
        [
            task(3, A, role="rollout", phase="generate"),
            task(3, A, role="rollout", phase="generate"),
            task(0, A, B, role="rollout", phase="turn"),
            task(2, A, B, after=(2,)),
            task(2, A, B, C, after=(3,), phase="sync"),
        ]
    )
    shown = [(each.group, each.phase, each.start_s, each.end_s, each.bundle) for each in phase_times(spans)]
    assert shown == [
        ("a", "generate", 0, 6, 0),
        ("a", "score", 6, 8, None),
        ("a", "sync", 8, 10, None),
        ("b", "sync", 8, 10, None),
    ]


LANES = [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0)]


@st.composite
def tasks_of_any_kind(draw: st.DrawFn) -> list[Task]:
    found: list[Task] = []
    for place in range(draw(st.integers(1, 14))):
        lanes = draw(st.lists(st.sampled_from(LANES), min_size=1, max_size=3, unique=True))
        after = draw(st.lists(st.integers(0, place - 1), max_size=3, unique=True)) if place else []
        found.append(task(draw(st.integers(0, 9)), *lanes, after=tuple(after)))
    return found


def slow_twin(tasks: list[Task]) -> list[tuple[float, float]]:
    """Every task is pushed back by every other that it waits for or shares a lane with, until nothing moves."""
    starts = [0.0] * len(tasks)
    moved = True
    while moved:
        moved = False
        for i, late in enumerate(tasks):
            for j, early in enumerate(tasks):
                related = j in late.after or (j < i and set(early.lanes) & set(late.lanes))
                if related and starts[i] < starts[j] + early.duration.seconds:
                    starts[i] = starts[j] + early.duration.seconds
                    moved = True
    return [(start, start + each.duration.seconds) for start, each in zip(starts, tasks, strict=True)]


@settings(max_examples=50)
@given(tasks_of_any_kind())
def test_the_same_as_the_slow_twin(tasks: list[Task]) -> None:
    assert times(timeline(tasks)) == slow_twin(tasks)


@settings(max_examples=50)
@given(tasks_of_any_kind())
def test_no_two_tasks_run_on_one_gpu_at_the_same_time(tasks: list[Task]) -> None:
    spans = timeline(tasks)
    for lane in LANES:
        mine = [span for span in spans if lane in span.task.lanes and span.end_s > span.start_s]
        mine.sort(key=lambda span: span.start_s)
        assert all(first.end_s <= second.start_s for first, second in pairwise(mine))


@settings(max_examples=50)
@given(tasks_of_any_kind())
def test_the_critical_path_is_without_gaps_and_as_long_as_the_step(tasks: list[Task]) -> None:
    spans = timeline(tasks)
    path = [span for span in spans if span.critical]
    assert path[0].start_s == 0
    assert all(first.end_s == second.start_s for first, second in pairwise(path))
    assert sum(span.task.duration.seconds for span in path) == max(span.end_s for span in spans)


@settings(max_examples=50)
@given(tasks_of_any_kind())
def test_idle_shares_are_shares(tasks: list[Task]) -> None:
    spans = timeline(tasks)
    assert all(0 <= share <= 1 for share in idle_shares(spans, {"a": 2, "b": 2, "c": 1}).values())


@settings(max_examples=50)
@given(tasks_of_any_kind(), st.integers(0, 13))
def test_a_shorter_task_never_makes_the_step_longer(tasks: list[Task], which: int) -> None:
    place = which % len(tasks)
    shorter = list(tasks)
    old = tasks[place]
    shorter[place] = task(old.duration.seconds / 2, *old.lanes, after=old.after)
    assert max(end for _, end in times(timeline(shorter))) <= max(end for _, end in times(timeline(tasks)))
