"""Groups: spawn the ranks of a role, call them by typed methods, and know whom a failure belongs to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.context import RankContext
from actors.errors import NotFinite, PreceptorError, RewardFailed, RoleFailed, UserError
from actors.role import Role, log_file

POLL_S = 1.0
"""How often a wait looks whether any actor, also one that nobody waits for, has died."""
GRACE_S = 3.0
"""How long a rank's failure waits for news of a dead actor: who loses a peer often says so before Ray does, and is not to blame."""


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


class Group:
    """All ranks of one role."""

    def __init__(self, role: str, actors: Sequence[ray.actor.ActorHandle]) -> None:
        self.role = role
        self.actors = tuple(actors)
        self.unseen: dict[ray.ObjectRef, Call] = {}
        """Calls whose result nobody has looked at. It is small, so that the driver may fetch it at any time."""

    def __len__(self) -> int:
        return len(self.actors)

    def call(self, method: Callable[..., Any], *args: Any, two_results: bool = False) -> list[Call]:
        """Calls every rank with the same arguments. References among them are resolved by Ray, on the rank."""
        return [self.call_rank(rank, method, *args, two_results=two_results) for rank in range(len(self))]

    def call_for_actors(self, method: Callable[..., Any], *args: Any) -> list[Call]:
        """As `call`, for a result that only travels from actor to actor: the driver never fetches it, and a failure shows where it is
        awaited."""
        return [self._submit(rank, method, args, two_results=False) for rank in range(len(self))]

    def call_each(
        self, method: Callable[..., Any], args: Sequence[tuple[Any, ...]], *, two_results: bool = False
    ) -> list[Call]:
        """Calls rank r with `args[r]`."""
        assert len(args) == len(self), (self.role, len(args), len(self))
        return [self.call_rank(rank, method, *args[rank], two_results=two_results) for rank in range(len(self))]

    def call_rank(self, rank: int, method: Callable[..., Any], *args: Any, two_results: bool = False) -> Call:
        """Calls one rank. `method` is the role class's own function, so that a renamed method is found by every tool.

        The result, with `two_results` the second of them, is for the driver and small. If the call fails, any wait ends.
        """
        call = self._submit(rank, method, args, two_results=two_results)
        self.unseen[call.ref] = replace(call, big=None)  # what is unseen keeps no big result alive
        return call

    def _submit(self, rank: int, method: Callable[..., Any], args: tuple[Any, ...], *, two_results: bool) -> Call:
        remote = getattr(self.actors[rank], method.__name__)
        big, ref = remote.options(num_returns=2).remote(*args) if two_results else (None, remote.remote(*args))
        return Call(ref=ref, big=big, role=self.role, rank=rank, what=method.__name__)


def spawn(
    role_class: type[Role],
    contexts: Sequence[RankContext],
    args: tuple[Any, ...],
    placement: PlacementGroup,
    share: Share,
) -> Group:
    """Starts one actor for each context, constructed as `role_class(context, *args)`, rank r in bundle r. Nothing heavy is loaded yet."""
    environment = {"OMP_NUM_THREADS": str(contexts[0].threads), "TOKENIZERS_PARALLELISM": "false"}
    actors = [
        ray.remote(role_class)
        .options(
            num_cpus=share.num_cpus,
            num_gpus=share.num_gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": environment},
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=context.rank),
        )
        .remote(context, *args)
        for context in contexts
    ]
    return Group(contexts[0].role, actors)


def connect(group: Group, extra: Mapping[str, str], *, waiter: Waiter, timeout_s: float) -> None:
    """Tells the ranks where rank 0 is, each its own place, and their environment."""
    address, port = waiter.wait([group.call_rank(0, Role.rendezvous)], timeout_s=timeout_s)[0]
    common = {"WORLD_SIZE": str(len(group)), "MASTER_ADDR": address, "MASTER_PORT": str(port), **extra}
    # Ray shows each actor its own GPU alone, so a rank's local rank is 0 wherever it runs
    places = [({**common, "RANK": str(rank), "LOCAL_RANK": "0"},) for rank in range(len(group))]
    waiter.wait(group.call_each(Role.join, places), timeout_s=timeout_s)


class Waiter:
    """The one place where the orchestrator waits: with a timeout, and with an eye on every actor of the run."""

    def __init__(self, *, timeout_s: float, run_dir: Path | None = None) -> None:
        """`timeout_s` is for a wait that does not give its own; `run_dir` is where the ranks' logs are, to be named in errors."""
        self.timeout_s = timeout_s
        self.step: int | None = None
        self._run_dir = run_dir
        self._groups: list[Group] = []
        self._places: dict[str, tuple[str, int]] = {}

    def watch(self, group: Group) -> None:
        """From now on, a death in the group ends every wait."""
        self._groups.append(group)
        self._places |= {actor._actor_id.hex(): (group.role, rank) for rank, actor in enumerate(group.actors)}

    def wait(self, calls: Sequence[Call], *, timeout_s: float | None = None) -> list[Any]:
        """The calls' small results, in their order.

        Raises the role's own PreceptorError, or RoleFailed with role, rank and step for anything else: an exception, a dead actor
        (also one that is not waited for), or no answer within the timeout. A call that failed in the background counts as waited for.
        """
        try:
            return self._wait(calls, self.timeout_s if timeout_s is None else timeout_s)
        except BaseException:
            # what else is under way ends with the run; the first failure is the one to tell
            for group in self._groups:
                group.unseen.clear()
            raise

    def _wait(self, calls: Sequence[Call], limit_s: float) -> list[Any]:
        deadline = time.monotonic() + limit_s
        by_ref = {call.ref: call for call in calls}
        results: dict[ray.ObjectRef, Any] = {}
        pending = list(by_ref)
        while pending:
            left_s = max(0.0, min(POLL_S, deadline - time.monotonic()))
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=left_s, fetch_local=False)
            for ref in done:
                results[ref] = self._result(by_ref[ref])
            if not pending:
                break
            self.check_alive()
            self._check_unseen(pending)
            if time.monotonic() >= deadline:
                raise self._late([by_ref[ref] for ref in pending], limit_s)
        return [results[call.ref] for call in calls]

    def check_alive(self) -> None:
        """RoleFailed for an actor that is dead."""
        for actor_id, actor in _dead_actors().items():
            if actor_id in self._places:
                role, rank = self._places[actor_id]
                raise self._failed(role, rank, f"its process {actor['Pid']} died{_last_words(actor)}")

    def _check_unseen(self, pending: Sequence[ray.ObjectRef]) -> None:
        """Raises for a call that failed while others, the `pending`, are waited for."""
        unseen = {ref: call for group in self._groups for ref, call in group.unseen.items()}
        for ref in pending:
            unseen.pop(ref, None)
        if unseen:
            for ref in ray.wait(list(unseen), num_returns=len(unseen), timeout=0, fetch_local=False)[0]:
                self._result(unseen[ref])

    def _result(self, call: Call) -> Any:
        for group in self._groups:
            group.unseen.pop(call.ref, None)
        try:
            return ray.get(call.ref)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError | RewardFailed | NotFinite):
                raise cause from error
            self._await_death()
            if isinstance(cause, PreceptorError):
                raise cause from error
            what = f"{call.what}: {type(cause).__name__}: {cause}"
            raise self._failed(call.role, call.rank, what) from error
        except ray.exceptions.RayActorError as error:
            # the dead one may be another, whose result this call needed
            self._await_death()
            raise self._failed(call.role, call.rank, f"its process died during {call.what}") from error
        except ray.exceptions.RayError as error:
            self._await_death()
            raise self._failed(call.role, call.rank, f"{call.what}: {type(error).__name__}: {error}") from error

    def _await_death(self) -> None:
        """Raises RoleFailed where an actor is dead, or found dead soon."""
        deadline = time.monotonic() + GRACE_S
        self.check_alive()
        while time.monotonic() < deadline:
            time.sleep(0.1)
            self.check_alive()

    def _late(self, late: Sequence[Call], limit_s: float) -> RoleFailed:
        first, *others = late
        names = ", ".join(f"{call.role} rank {call.rank}" for call in others)
        beside = f"; neither did {names}" if names else ""
        return self._failed(first.role, first.rank, f"{first.what} did not answer within {limit_s:g} s{beside}")

    def _failed(self, role: str, rank: int, what: str) -> RoleFailed:
        log = log_file(self._run_dir, role, rank) if self._run_dir is not None else None
        return RoleFailed(
            role, rank, self.step, what + (f"; its log: {log}" if log is not None and log.exists() else "")
        )


def _dead_actors() -> dict[str, dict[str, Any]]:
    """This job's dead actors by id, from Ray's control store. No public call gives them without the dashboard: `ray.util.state` asks it."""
    from ray._private.state import actors

    job = ray.get_runtime_context().get_job_id()
    return {
        actor_id: actor
        for actor_id, actor in actors(job_id=ray.JobID.from_hex(job), actor_state_name="DEAD").items()
        if actor["State"] == "DEAD"
    }


def _last_words(actor: Mapping[str, Any]) -> str:
    """Why an actor died, where Ray knows more than that a connection broke."""
    cause = actor["DeathCause"]
    kind = cause.WhichOneof("context")
    if kind == "creation_task_failure_context":
        lines = cause.creation_task_failure_context.formatted_exception_string.strip().splitlines()
        return f": {lines[-1]}" if lines else ""
    if kind == "oom_context":
        return ": the machine ran out of memory"
    return ""


def kill(groups: Sequence[Group]) -> None:
    """Ends every actor at once, without waiting for what they do."""
    for group in groups:
        for actor in group.actors:
            ray.kill(actor, no_restart=True)
