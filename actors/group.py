"""Groups: spawn the ranks of a role, call them by typed methods, and know whom a failure belongs to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.context import RankContext
from actors.errors import PreceptorError, RoleFailed
from actors.role import Role

POLL_S = 1.0
"""How often a wait looks whether any actor, also one that nobody waits for, has died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of one rank under way."""

    ref: ray.ObjectRef
    """The result the orchestrator may fetch."""
    big: ray.ObjectRef | None
    """A result that only travels from actor to actor, where the method returns (big, small)."""
    role: str
    rank: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one actor takes of its bundle."""

    num_cpus: float
    num_gpus: float
    bundles: tuple[int, ...]
    """Bundle of each rank."""


class Group:
    """All ranks of one role."""

    def __init__(self, role: str, actors: Sequence[ray.actor.ActorHandle]) -> None:
        self.role = role
        self.actors = tuple(actors)

    def __len__(self) -> int:
        return len(self.actors)

    def call(self, method: Callable[..., Any], *args: Any, two_results: bool = False) -> list[Call]:
        """Calls every rank with the same arguments. References among them are resolved by Ray, on the rank."""
        return [self.call_rank(rank, method, *args, two_results=two_results) for rank in range(len(self))]

    def call_each(self, method: Callable[..., Any], args: Sequence[tuple[Any, ...]], *, two_results: bool = False) -> list[Call]:
        """Calls rank r with `args[r]`."""
        assert len(args) == len(self), (self.role, len(args), len(self))
        return [self.call_rank(rank, method, *args[rank], two_results=two_results) for rank in range(len(self))]

    def call_rank(self, rank: int, method: Callable[..., Any], *args: Any, two_results: bool = False) -> Call:
        """Calls one rank. `method` is the role class's own function, so that a renamed method is found by every tool."""
        remote = getattr(self.actors[rank], method.__name__)
        big, ref = remote.options(num_returns=2).remote(*args) if two_results else (None, remote.remote(*args))
        return Call(ref=ref, big=big, role=self.role, rank=rank, what=method.__name__)


def place(name: str, bundles: Sequence[Mapping[str, float]], *, timeout_s: float) -> PlacementGroup:
    """Reserves a GPU group's bundles. RoleFailed says what is lacking after `timeout_s`."""
    group = ray.util.placement_group([dict(bundle) for bundle in bundles], strategy="PACK", name=name)
    if not group.wait(timeout_seconds=timeout_s):
        raise PreceptorError(
            f"group {name!r} could not be placed within {timeout_s:g} s: it needs {[dict(b) for b in bundles]}, "
            f"the cluster has {ray.cluster_resources()} of which {ray.available_resources()} are free"
        )
    return group


def spawn(
    role_class: type[Role], contexts: Sequence[RankContext], args: tuple[Any, ...], placement: PlacementGroup, share: Share
) -> Group:
    """Starts one actor for each context, constructed as `role_class(context, *args)`. Nothing heavy is loaded yet."""
    environment = {"OMP_NUM_THREADS": str(contexts[0].threads), "TOKENIZERS_PARALLELISM": "false"}
    actors = [
        ray.remote(role_class)
        .options(
            num_cpus=share.num_cpus,
            num_gpus=share.num_gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": environment},
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=share.bundles[context.rank]),
        )
        .remote(context, *args)
        for context in contexts
    ]
    return Group(contexts[0].role, actors)


def connect(group: Group, extra: Mapping[str, str], *, waiter: Waiter) -> None:
    """Tells the ranks where rank 0 is, each its own place, and their environment."""
    address, port = waiter.wait([group.call_rank(0, Role.rendezvous)])[0]
    common = {"WORLD_SIZE": str(len(group)), "MASTER_ADDR": address, "MASTER_PORT": str(port), **extra}
    # Ray shows each actor its own GPU alone, so a rank's local rank is 0 wherever it runs
    waiter.wait(group.call_each(Role.join, [({**common, "RANK": str(rank), "LOCAL_RANK": "0"},) for rank in range(len(group))]))


class Waiter:
    """The one place where the orchestrator waits: with a timeout, and with an eye on every actor of the run."""

    def __init__(self, *, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.step: int | None = None
        self._groups: list[Group] = []

    def watch(self, group: Group) -> None:
        self._groups.append(group)

    def wait(self, calls: Sequence[Call], *, timeout_s: float | None = None) -> list[Any]:
        """The calls' small results, in their order.

        Raises the role's own PreceptorError, or RoleFailed with role, rank and step for anything else: an exception, a dead actor
        (also one that is not waited for), or no answer within the timeout.
        """
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        by_ref = {call.ref: call for call in calls}
        pending = list(by_ref)
        while pending:
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL_S, fetch_local=False)
            for ref in done:
                self._check(by_ref[ref])
            if not pending:
                break
            self.check_alive()
            if time.monotonic() > deadline:
                late = by_ref[pending[0]]
                raise RoleFailed(late.role, late.rank, self.step, f"{late.what} did not answer within {limit_s:g} s")
        return [ray.get(call.ref) for call in calls]

    def check_alive(self) -> None:
        """RoleFailed for the first actor that is dead."""
        for group in self._groups:
            for rank, actor in enumerate(group.actors):
                if _is_dead(actor):
                    raise RoleFailed(group.role, rank, self.step, "its process died")

    def _check(self, call: Call) -> None:
        try:
            ray.get(call.ref)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, PreceptorError):
                raise cause from error
            raise RoleFailed(call.role, call.rank, self.step, f"{call.what}: {type(cause).__name__}: {cause}") from error
        except ray.exceptions.RayActorError as error:
            # the dead one may be another, whose result this call needed
            self.check_alive()
            raise RoleFailed(call.role, call.rank, self.step, f"its process died during {call.what}") from error
        except ray.exceptions.RayError as error:
            raise RoleFailed(call.role, call.rank, self.step, f"{call.what}: {type(error).__name__}: {error}") from error


def _is_dead(actor: ray.actor.ActorHandle) -> bool:
    """Asks Ray's control store. There is no public call that does so without the dashboard; `ray.util.state` needs it."""
    from ray._private.state import actors

    return bool(actors(actor._actor_id.hex()).get("State") == "DEAD")


def kill(groups: Sequence[Group]) -> None:
    """Ends every actor at once, without waiting for what they do."""
    for group in groups:
        for actor in group.actors:
            ray.kill(actor, no_restart=True)

