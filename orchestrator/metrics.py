"""A step's numbers, merged from what ranks report, in shard order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from actors.algorithms.moments import merge
from actors.role import Role
from actors.tasks import Busy, UpdateReport

if TYPE_CHECKING:
    from actors.group import Group, Waiter
    from orchestrator.ppo_records import Collected, Timeline


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def step_metrics(collected: Collected, timeline: Timeline) -> dict[str, float]:
    """What can be said of a step's trajectories.

    Units: `kl` nats per trajectory (k1 summed over its tokens), `score` and `reward/*` as the sources give them, `response_tokens` per
    answer, `tokens_per_s` generated tokens over the seconds of the phase `generate`, `busy_s/*` seconds in which any rank of the
    role worked.
    """
    summaries = [summary for wave in collected.summaries for summary in wave]
    scores = merge(s.score_moments for s in summaries)
    generated = sum(sum(wave.num_loss_tokens) for wave in collected.waves)
    truncated = [float(flag) for wave in collected.waves for flag in wave.truncated]
    metrics = {
        "score": scores.mean,
        "score_std": (scores.m2 / scores.count) ** 0.5,
        "kl": sum(s.kl_sum for s in summaries) / scores.count,
        "response_tokens": generated / scores.count,
        "truncated_frac": mean(truncated),
        "logprob_gap": max(s.logprob_gap for s in summaries),
        "advantage_mean": collected.moments.mean,
        "advantage_std": collected.moments.unbiased_variance**0.5,
        "generated_tokens": float(generated),
        "trained_tokens": float(sum(sum(wave.lengths) for wave in collected.waves)),
        "tokens_per_s": generated / max(timeline.phases["generate"], 1e-9),
        "idle_frac": idle_frac([busy for _, busy in timeline.busy]),
    }
    for role in sorted({role for role, _ in timeline.busy}):
        metrics[f"busy_s/{role}"] = covered_s([busy for of, busy in timeline.busy if of == role])
    for source in range(len(summaries[0].source_sums)):
        metrics[f"reward/{source}"] = sum(s.source_sums[source] for s in summaries) / scores.count
    return metrics


def whole_minibatches(reports: Sequence[UpdateReport]) -> tuple[dict[str, float], ...]:
    """Each minibatch's numbers over all ranks: contributions are summed (`max_*`: the largest), in rank order.

    A rank that had only dummies reports nothing.
    """
    minibatches = []
    for number, parts in enumerate(zip(*(report.minibatches for report in reports), strict=True)):
        names = {name: None for part in parts for name in part}
        merged = {name: _merge(name, [part[name] for part in parts if name in part]) for name in names}
        minibatches.append({**merged, "grad_norm": reports[0].grad_norms[number]})
    return tuple(minibatches)


def minibatch_metrics(role: str, minibatches: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over a step's minibatches (`max_*`: maxima); none where there was no update."""
    if not minibatches:
        return {}
    return {
        f"{role}/{name}": max(values) if name.startswith("max_") else mean(values)
        for name, values in ((name, [m[name] for m in minibatches]) for name in minibatches[0])
    }


def _merge(name: str, values: Sequence[float]) -> float:
    return max(values) if name.startswith("max_") else sum(values)


def peak_memory(groups: Mapping[str, Group], waiter: Waiter) -> dict[str, float]:
    """`peak_memory_bytes/<role>`: of the rank that has needed most so far; resident memory on CPU, the allocator's on GPU."""
    calls = {role: group.call(Role.peak_memory_bytes) for role, group in groups.items()}
    return {f"peak_memory_bytes/{role}": float(max(waiter.wait(of_role))) for role, of_role in calls.items()}


def covered_s(intervals: Sequence[Busy]) -> float:
    """Seconds that lie in at least one of the intervals."""
    covered, reach = 0.0, float("-inf")
    for start, end in sorted((busy.started, busy.started + busy.seconds) for busy in intervals):
        covered += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return covered


def idle_frac(intervals: Sequence[Busy]) -> float:
    """Share of the time from the first start to the last end in which no group works."""
    if not intervals:
        return 0.0
    total = max(busy.started + busy.seconds for busy in intervals) - min(busy.started for busy in intervals)
    return max(0.0, 1.0 - covered_s(intervals) / total) if total > 0 else 0.0
