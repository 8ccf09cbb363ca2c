"""How buckets get from the policy's rank 0 to the engines: the interface, one file per mechanism, and waiting that ends."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray

from actors.errors import SyncFailed

if TYPE_CHECKING:
    from torch import Tensor

    from actors.weight_sync.bucket import Bucket

IN_FLIGHT = 2
"""Buckets that may be under way at once, so that gathering, sending and loading overlap in bounded memory."""

_POLL_S = 1.0


class Deadline:
    """The end of one sync's patience."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self, what: str) -> float:
        """Seconds that are left, SyncFailed where there are none; `what` is waited for, in words."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise SyncFailed(
                f"{what}: no answer within the {self.seconds:g} s of a weight sync (weight_sync.timeout_s)"
            )
        return left


class Engines:
    """The rollout engines as the sender calls them: all at once, every wait with a deadline."""

    def __init__(self, actors: Sequence[ray.actor.ActorHandle]) -> None:
        self.actors = tuple(actors)

    def __len__(self) -> int:
        return len(self.actors)

    def start(self, method: Callable[..., Any], *args: Any) -> list[ray.ObjectRef]:
        """Calls every engine. `method` is Rollout's own function; references among the arguments are resolved by Ray."""
        return [getattr(actor, method.__name__).remote(*args) for actor in self.actors]

    def wait(self, calls: Sequence[ray.ObjectRef], deadline: Deadline, what: str) -> list[Any]:
        """The calls' results, engine by engine. SyncFailed names the first engine that fails, dies or is too late."""
        pending = list(calls)
        while pending:
            done, pending = ray.wait(
                pending, num_returns=1, timeout=min(_POLL_S, deadline.left(self._late(what, calls, pending)))
            )
            for call in done:
                self.check(call, calls.index(call), what)
        return ray.get(list(calls), timeout=deadline.left(what))

    def check(self, call: ray.ObjectRef, engine: int, what: str) -> None:
        """SyncFailed where a finished call failed."""
        try:
            ray.get(call, timeout=0)
        except ray.exceptions.RayTaskError as error:
            raise SyncFailed(f"engine {engine}: {what}: {error.cause}") from error
        except ray.exceptions.RayActorError as error:
            raise SyncFailed(f"engine {engine}: its process died during {what}") from error
        except ray.exceptions.RayError as error:
            raise SyncFailed(f"engine {engine}: {what}: {type(error).__name__}: {error}") from error

    def died(self, call: ray.ObjectRef) -> bool:
        """Whether a finished call ended with its engine's process."""
        try:
            ray.get(call, timeout=0)
        except ray.exceptions.RayActorError:
            return True
        except ray.exceptions.RayError:
            return False
        return False

    def call(self, method: Callable[..., Any], *args: Any, deadline: Deadline) -> list[Any]:
        """`start` and `wait`."""
        return self.wait(self.start(method, *args), deadline, method.__name__)

    @staticmethod
    def _late(what: str, calls: Sequence[ray.ObjectRef], pending: Sequence[ray.ObjectRef]) -> str:
        return f"engine {', '.join(str(calls.index(call)) for call in pending)}: {what}"


class Channel(ABC):
    """One mechanism that moves buckets. Lives in the policy's ranks; only rank 0 talks to the engines."""

    every_rank_sends = False
    """Whether ranks other than 0 take part in sending beyond the collectives that gather the parameters."""

    def __init__(self, engines: Engines) -> None:
        self.engines = engines

    @abstractmethod
    def connect(self, deadline: Deadline) -> None:
        """Shakes hands with every engine. Raises SyncFailed."""

    @abstractmethod
    def allocate(self, num_bytes: int) -> Tensor:
        """Memory for one bucket: uint8 [num_bytes], where this channel takes it from."""

    @abstractmethod
    def push(self, bucket: Bucket, payload: Tensor, deadline: Deadline) -> None:
        """Sends one bucket, uint8 [N], to every engine; may return before they have loaded it. Raises SyncFailed."""

    @abstractmethod
    def drain(self, deadline: Deadline) -> None:
        """Returns when every engine has loaded every bucket. Raises SyncFailed."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of memory and connections; the channel is not used again."""
