"""Groups without processes, for measuring the orchestrator alone: calls answer after simulated delays on a clock of their own.

`FakeGroup` and `FakeWaiter` stand where `actors.group` meets Ray, and nowhere else: what they inherit is the real thing. A rank
does its calls in the order in which they came, each when the results that it needs are there, as a Ray actor does. Nobody sleeps: a
wait moves the clock, and so, where `RayCosts` are given, does what the orchestrator computes and asks of Ray meanwhile. The time
that answering costs here is kept apart, so that it can be taken off the orchestrator's.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.algorithms.moments import Moments
from actors.group import POLL_S, Call, Group, Waiter
from actors.tasks import (
    Busy,
    ExperienceOrder,
    ExperienceSummary,
    GenerationUnit,
    UpdateReport,
    UpdateShard,
    WaveShard,
    WaveSummary,
    WrittenFile,
)
from actors.weight_sync.reports import ProbeReport, SentReport

PROMPT_TOKENS = 200
NO_MOMENTS = Moments(count=0, mean=0.0, m2=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """Seconds that calls take. The defaults are of the order of a 70B policy's (`docs/benchmarks.md` says how they come about)."""

    generate_s: float = 45.0
    """A wave of answers, all of an engine's at once."""
    forward_s: float = 1.5
    """A forward pass over a rank's part of a wave."""
    experience_s: float = 0.2
    minibatch_s: float = 12.0
    """One optimizer step."""
    sync_s: float = 8.0
    other_s: float = 0.02


class Refs:
    """How many references the orchestrator holds, now and at most."""

    def __init__(self) -> None:
        self.live = self.most = 0


class FakeRef:
    """Stands for `ray.ObjectRef`: when the result is there, and a small one's value."""

    __slots__ = ("ready_at", "refs", "value")

    def __init__(self, ready_at: float, value: Any, refs: Refs) -> None:
        self.ready_at, self.value, self.refs = ready_at, value, refs
        refs.live += 1
        refs.most = max(refs.most, refs.live)

    def __del__(self) -> None:
        self.refs.live -= 1


@dataclass(slots=True)
class Counts:
    """What the orchestrator has asked of Ray."""

    calls: int = 0
    two_results: int = 0
    """Calls of these that return two objects."""
    passed_refs: int = 0
    """References among the arguments of calls."""
    fetched: int = 0
    """Results fetched."""
    polled_refs: int = 0
    """References looked at, and not found ready, by waits that look around every `POLL_S`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCosts:
    """Microseconds of the driver's CPU, all its threads, for one of each."""

    call_us: float
    """A call without references, its result awaited and fetched."""
    second_result_us: float
    """What a second result adds."""
    passed_ref_us: float
    """What a reference among the arguments adds."""
    polled_ref_us: float
    """A reference looked at and not found ready."""

    def seconds(self, counts: Counts) -> float:
        return 1e-6 * (
            counts.calls * self.call_us
            + counts.two_results * self.second_result_us
            + counts.passed_refs * self.passed_ref_us
            + counts.polled_refs * self.polled_ref_us
        )


@dataclass(slots=True)
class World:
    """What all fakes share: the clock, the counts, the seconds of CPU that faking took."""

    run_dir: Path
    costs: RayCosts | None = None
    """The orchestrator works in no time where they are not given."""
    delays: Delays = field(default_factory=Delays)
    now: float = 0.0
    counts: Counts = field(default_factory=Counts)
    refs: Refs = field(default_factory=Refs)
    faking_s: float = 0.0
    kept: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    """(critic rank, wave) -> the trajectories that it was given."""
    _own_s: float = field(default_factory=time.process_time)

    def catch_up(self, now_s: float) -> None:
        """Moves the clock by what the orchestrator has computed since the last time; `now_s` is the process's CPU time."""
        own_s = now_s - self.faking_s
        if self.costs is not None:
            self.now += own_s - self._own_s
        self._own_s = own_s


class FakeGroup(Group):
    """A role's ranks, without processes."""

    def __init__(self, role: str, num_ranks: int, world: World) -> None:
        super().__init__(role, range(num_ranks))  # numbers where handles would be
        self._world = world
        self._free_at = [0.0] * num_ranks

    def _submit(self, rank: int, method: Callable[..., Any], args: tuple[Any, ...], *, two_results: bool) -> Call:
        started = time.process_time()
        world, counts = self._world, self._world.counts
        world.catch_up(started)
        needed = [arg for arg in args if isinstance(arg, FakeRef)]
        if world.costs is not None:
            world.now += world.costs.seconds(Counts(calls=1, two_results=int(two_results), passed_refs=len(needed)))
        begins = max([world.now, self._free_at[rank], *(ref.ready_at for ref in needed)])
        delay_s, value = ANSWERS.get(method.__name__, _other)(world, rank, args, begins)
        ready_at = self._free_at[rank] = begins + delay_s
        counts.calls += 1
        counts.two_results += two_results
        counts.passed_refs += len(needed)
        ref = FakeRef(ready_at, value, world.refs)
        big = FakeRef(ready_at, None, world.refs) if two_results else None
        world.faking_s += time.process_time() - started
        return Call(ref=ref, big=big, role=self.role, rank=rank, what=method.__name__)


class FakeWaiter(Waiter):
    """Moves the clock to when the last of the awaited calls has answered."""

    def __init__(self, world: World) -> None:
        super().__init__(timeout_s=1.0)
        self._world = world

    def watch(self, group: Group) -> None:
        self._groups.append(group)

    def _wait(self, calls: Sequence[Call], limit_s: float) -> list[Any]:  # noqa: ARG002 - nobody is late here
        by_ref = {call.ref: call for call in calls}
        self._pass_time([ref.ready_at for ref in by_ref])
        results = {ref: self._result(by_ref[ref]) for ref in by_ref}
        return [results[call.ref] for call in calls]

    def _result(self, call: Call) -> Any:
        for group in self._groups:
            group.unseen.pop(call.ref, None)
        self._world.counts.fetched += 1
        return call.ref.value

    def _pass_time(self, ready_at: list[float]) -> None:
        started = time.process_time()
        world = self._world
        world.catch_up(started)
        ready_at.sort()
        latest = ready_at[-1] if ready_at else world.now
        unseen = sum(len(group.unseen) for group in self._groups)
        for poll in range(1, int((latest - world.now) / POLL_S) + 1):
            pending = len(ready_at) - bisect_right(ready_at, world.now + poll * POLL_S)
            world.counts.polled_refs += max(pending, unseen)
        world.now = max(world.now, latest)
        world.faking_s += time.process_time() - started


Answer = Callable[[World, int, tuple[Any, ...], float], tuple[float, Any]]


def _other(world: World, rank: int, args: tuple[Any, ...], begins: float) -> tuple[float, Any]:  # noqa: ARG001
    return world.delays.other_s, None


def _generate(world: World, rank: int, args: tuple[Any, ...], begins: float) -> tuple[float, Any]:  # noqa: ARG001
    unit: GenerationUnit = args[0]
    chance = random.Random(unit.wave)  # every step is the same
    num = len(unit.prompt_indices) * unit.responses_per_prompt
    answers = [min(1024, max(1, round(400 * chance.lognormvariate(0.0, 0.7)))) for _ in range(num)]
    delay_s = world.delays.generate_s * chance.uniform(0.8, 1.2)
    return delay_s, WaveSummary(
        wave=unit.wave,
        lengths=tuple(PROMPT_TOKENS + tokens for tokens in answers),
        num_loss_tokens=tuple(answers),
        prompt_ids=tuple(f"prompt-{row:08d}" for row in unit.prompt_indices for _ in range(unit.responses_per_prompt)),
        truncated=tuple(tokens == 1024 for tokens in answers),
        token_digest=f"{chance.getrandbits(256):064x}",
        busy=Busy(started=begins, seconds=delay_s),
    )


def _forward(world: World, rank: int, args: tuple[Any, ...], begins: float) -> tuple[float, Any]:  # noqa: ARG001
    return world.delays.forward_s, Busy(started=begins, seconds=world.delays.forward_s)


def _values(world: World, rank: int, args: tuple[Any, ...], begins: float) -> tuple[float, Any]:
    shard: WaveShard = args[0]
    world.kept[rank, shard.wave] = shard.indices
    return _forward(world, rank, args, begins)


def _experience(world: World, rank: int, args: tuple[Any, ...], begins: float) -> tuple[float, Any]:  # noqa: ARG001
    order: ExperienceOrder = args[0]
    path = world.run_dir / order.file
    if rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)  # the loop looks for leftovers of other attempts there
    indices = world.kept.pop((rank, order.wave))
    return world.delays.experience_s, ExperienceSummary(
        wave=order.wave,
        advantage_moments=Moments(count=400 * len(indices), mean=0.0, m2=400.0 * len(indices))
        if indices
        else NO_MOMENTS,
        score_moments=Moments(count=len(indices), mean=1.0, m2=0.0) if indices else NO_MOMENTS,
        source_sums=(float(len(indices)),),
        kl_sum=0.5 * len(indices),
        logprob_gap=0.01,
        reward_digest=f"{order.wave:08x}{rank:056x}",
        advantage_digest=f"{order.wave:08x}{rank:056x}",
        file=WrittenFile(name=path.name, sha256=f"{order.wave:032x}{rank:032x}", num_bytes=20_000 * len(indices))
        if indices
        else None,
    )


def _update(world: World, rank: int, args: tuple[Any, ...], begins: float) -> tuple[float, Any]:  # noqa: ARG001
    shard: UpdateShard = args[0]
    delay_s = world.delays.minibatch_s * len(shard.minibatches)
    names = ("loss", "policy_loss", "entropy", "clip_frac", "approx_kl", "ratio", "max_ratio", "importance_weight")
    return delay_s, UpdateReport(
        minibatches=tuple(dict.fromkeys(names, 0.1) for _ in shard.minibatches),
        grad_norms=tuple(1.0 for _ in shard.minibatches),
        busy=Busy(started=begins, seconds=delay_s),
    )


def _send(world: World, rank: int, args: tuple[Any, ...], begins: float) -> tuple[float, Any]:  # noqa: ARG001
    return world.delays.sync_s, SentReport(
        policy_version=args[0], num_tensors=723, num_bytes=141 * 10**9, num_buckets=552, digest="0" * 64, seconds=1.0
    )


def _probe(world: World, rank: int, args: tuple[Any, ...], begins: float) -> tuple[float, Any]:  # noqa: ARG001
    # an engine's own answer to the probe has no report; nobody reads this one
    report = ProbeReport(num_tokens=64, max_gap=0.1, max_gap_scaled=0.05, mean_gap=0.03, worst="token 3")
    return world.delays.forward_s, report


def _memory(world: World, rank: int, args: tuple[Any, ...], begins: float) -> tuple[float, Any]:  # noqa: ARG001
    return world.delays.other_s, 70 * 2**30


def _files(world: World, rank: int, args: tuple[Any, ...], begins: float) -> tuple[float, Any]:  # noqa: ARG001
    return world.delays.other_s, [WrittenFile(name=f"rank-{rank:05d}", sha256="0" * 64, num_bytes=10**9)]


ANSWERS: dict[str, Answer] = {
    "generate": _generate,
    "logprobs": _forward,
    "score": _forward,
    "values": _values,
    "build_experience": _experience,
    "update": _update,
    "send_weights": _send,
    "probe": _probe,
    "peak_memory_bytes": _memory,
    "save": _files,
}
"""Method -> its seconds and its small result; others take `other_s` and answer nothing."""
