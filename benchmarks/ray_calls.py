"""What a Ray call costs the driver: process time of all its threads, on a Ray of this machine alone, with actors that do nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import ray

from benchmarks.fake_groups import RayCosts

NUM_ACTORS = 8
BATCHES = (64, 256, 1024)
"""Calls under way at a time."""
ROUNDS = 5
PASSED = 4
"""References that a call with references has."""
UNREADY = 2000


class Idle:
    """Answers at once."""

    def one(self, *_: Any) -> None:
        return None

    def two(self, *_: Any) -> tuple[None, None]:
        return None, None

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def measure_costs() -> RayCosts:
    """Starts a Ray, measures, ends it. Medians over batch sizes and rounds; takes about half a minute."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        actors = [ray.remote(Idle).options(num_cpus=0.1).remote() for _ in range(NUM_ACTORS)]
        refs = [ray.put(b"0") for _ in range(PASSED)]
        plain = _per_call(lambda i: actors[i % NUM_ACTORS].one.remote())
        two = _per_call(lambda i: actors[i % NUM_ACTORS].two.options(num_returns=2).remote()[1])
        passed = _per_call(lambda i: actors[i % NUM_ACTORS].one.remote(*refs))
        return RayCosts(
            call_us=plain,
            second_result_us=max(0.0, two - plain),
            passed_ref_us=max(0.0, passed - plain) / PASSED,
            polled_ref_us=_polled(actors[0]),
        )
    finally:
        ray.shutdown()


def _per_call(call: Callable[[int], ray.ObjectRef]) -> float:
    """Microseconds for a call, its wait and its fetch, as `actors.group` does them."""
    found = []
    for size in BATCHES:
        for _ in range(ROUNDS):
            started = time.process_time()
            refs = [call(i) for i in range(size)]
            ready, _late = ray.wait(refs, num_returns=size, timeout=60, fetch_local=False)
            for ref in ready:
                ray.get(ref)
            found.append((time.process_time() - started) / size)
    return 1e6 * median(found)


def _polled(actor: Any) -> float:
    """Microseconds for a look at a result that is not there."""
    blocker = actor.sleep.remote(5.0)
    refs = [actor.one.remote() for _ in range(UNREADY)]
    found = []
    for _ in range(ROUNDS):
        started = time.process_time()
        ready, _late = ray.wait(refs, num_returns=UNREADY, timeout=0, fetch_local=False)
        found.append((time.process_time() - started) / UNREADY)
        assert not ready, "the actor is still asleep"
    ray.wait([blocker], timeout=60)
    return 1e6 * median(found)
