"""Weights over NCCL: the policy's rank 0 broadcasts each bucket to all worker processes of all engines.

Ranks of the group: 0 is the sender; engine e's workers are 1 + e x tensor_parallel and the tensor_parallel - 1 that follow.

vLLM's own NCCL sender is not used: it waits without end where a peer fails, and gives every engine the same rank offset. The group here
is torch's, over a store of its own beside the trainers' groups, so the trainers load no vLLM, and every wait has a deadline.

Not run: NCCL itself, for want of a GPU. The same code runs on gloo in the tests, from the handshake to the proof.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import ray
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its list of exports

from actors.errors import SyncFailed
from actors.rollout import Rollout
from actors.weight_sync.bucket import Bucket
from actors.weight_sync.channel import IN_FLIGHT, Channel, Deadline, Engines

_POLL_S = 0.0005
_BLAME_S = 5.0
_BROADCAST = "the broadcast of a bucket"
_GREETING = 0x5EED
"""What the sender broadcasts first: an engine that receives anything else is in the wrong group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAddress:
    """Where a broadcast group meets, and one engine's place in it."""

    host: str
    port: int
    rank_offset: int
    """Rank of the engine's first worker."""
    world_size: int
    backend: Literal["nccl", "gloo"]
    timeout_s: float


class BroadcastGroup:
    """A process group of sender and workers, apart from any other group of these processes."""

    def __init__(self, address: GroupAddress, rank: int, store: TCPStore, device: torch.device) -> None:
        timeout = timedelta(seconds=address.timeout_s)
        self.device = device
        self._timeout_s = address.timeout_s
        self._group: Any  # the two share no type that has `broadcast`
        if address.backend == "nccl":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timeout
            self._group = dist.ProcessGroupNCCL(store, rank, address.world_size, options)
        else:
            self._group = dist.ProcessGroupGloo(store, rank, address.world_size, timeout)

    @staticmethod
    def join(address: GroupAddress, rank: int, device: torch.device) -> BroadcastGroup:
        """A worker's side; blocks until the store answers."""
        timeout = timedelta(seconds=address.timeout_s)
        return BroadcastGroup(address, rank, TCPStore(address.host, address.port, timeout=timeout), device)

    def broadcast(self, tensor: Tensor) -> dist.Work:
        """Starts the broadcast of `tensor` from rank 0."""
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        return self._group.broadcast([tensor], options)

    def receive(self, num_bytes: int) -> Tensor:
        """What rank 0 broadcasts next: uint8 [num_bytes]. SyncFailed after the timeout, or where the broadcast fails."""
        tensor = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        work, end = self.broadcast(tensor), time.monotonic() + self._timeout_s
        while not work.is_completed():
            if time.monotonic() > end:
                raise SyncFailed(f"no broadcast of {num_bytes} bytes within {self._timeout_s:g} s")
            time.sleep(_POLL_S)
        try:
            work.wait()
        except RuntimeError as error:  # the library's own timeout came first, or the sender has gone
            raise SyncFailed(f"the broadcast of {num_bytes} bytes failed: {error}") from error
        return tensor

    def close(self) -> None:
        """Ends the group without waiting for broadcasts under way: a thread of its own does, which holds the last reference."""
        # no name for the group here: were this frame the last to hold it, freeing it would wait for what is under way
        thread = threading.Thread(target=_abort, args=(self._group,), name="close-broadcast-group", daemon=True)
        self._group = None
        thread.start()

    def greet(self) -> None:
        """A worker's first receive. SyncFailed where it is not the sender's greeting."""
        got = int(self.receive(8).view(torch.int64))
        if got != _GREETING:
            raise SyncFailed(
                f"the broadcast group's greeting is {got:#x}, not {_GREETING:#x}: another sender holds the address"
            )


def _abort(group: Any) -> None:
    group.abort()


class NcclChannel(Channel):
    """Rank 0's side of the broadcast group."""

    def __init__(
        self,
        engines: Engines,
        *,
        workers_per_engine: int,
        device: torch.device,
        backend: Literal["nccl", "gloo"] = "nccl",
    ) -> None:
        super().__init__(engines)
        self._workers_per_engine = workers_per_engine
        self._device = device
        self._backend = backend
        self._group: BroadcastGroup | None = None
        self._in_flight: deque[list[ray.ObjectRef]] = deque()

    def connect(self, deadline: Deadline) -> None:
        timeout_s = deadline.left("connect")
        host = ray.util.get_node_ip_address()
        store = TCPStore(
            host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
        )  # port 0: any free one
        addresses = group_addresses(
            host=host,
            port=store.port,
            num_engines=len(self.engines),
            workers_per_engine=self._workers_per_engine,
            backend=self._backend,
            timeout_s=timeout_s,
        )
        calls = [
            getattr(actor, Rollout.connect_broadcast.__name__).remote(address)
            for actor, address in zip(self.engines.actors, addresses, strict=True)
        ]
        try:
            self._group = BroadcastGroup(addresses[0], 0, store, self._device)
            self._send(torch.tensor([_GREETING]).view(torch.uint8).to(self._device), calls, deadline)
        except RuntimeError as error:  # what torch raises where a peer does not come
            raise SyncFailed(f"the engines did not meet at {host}:{store.port}: {error}") from error
        self.engines.wait(calls, deadline, Rollout.connect_broadcast.__name__)

    def allocate(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def push(self, bucket: Bucket, payload: Tensor, deadline: Deadline) -> None:
        while len(self._in_flight) >= IN_FLIGHT:
            self._wait_oldest(deadline)
        calls = self.engines.start(Rollout.load_bucket, bucket, None)
        self._in_flight.append(calls)
        try:
            self._send(payload, calls, deadline)
        except RuntimeError as error:  # what torch raises where a peer is gone
            self._blame(calls, deadline)
            raise SyncFailed(f"the broadcast of bucket {bucket.index} failed: {error}") from error

    def drain(self, deadline: Deadline) -> None:
        while self._in_flight:
            self._wait_oldest(deadline)

    def close(self) -> None:
        self._in_flight.clear()
        if self._group is not None:
            self._group.close()
            self._group = None

    def _send(self, tensor: Tensor, calls: list[ray.ObjectRef], deadline: Deadline) -> None:
        """Broadcasts; gives up where an engine's call ends in an error, since its worker then never joins the broadcast."""
        assert self._group is not None, "connect comes first"
        work = self._group.broadcast(tensor)
        while not work.is_completed():
            deadline.left(_BROADCAST)
            done, _ = ray.wait(calls, num_returns=len(calls), timeout=_POLL_S)
            for call in done:
                self.engines.check(call, calls.index(call), _BROADCAST)
        work.wait()

    def _blame(self, calls: list[ray.ObjectRef], deadline: Deadline) -> None:
        """SyncFailed that names the engine behind a failed broadcast, if its call ends within a moment; first those that died."""
        done, _ = ray.wait(calls, num_returns=len(calls), timeout=min(_BLAME_S, deadline.left(_BROADCAST)))
        for call in sorted(done, key=lambda call: not self.engines.died(call)):
            self.engines.check(call, calls.index(call), _BROADCAST)

    def _wait_oldest(self, deadline: Deadline) -> None:
        self.engines.wait(self._in_flight.popleft(), deadline, Rollout.load_bucket.__name__)


def group_addresses(
    *,
    host: str,
    port: int,
    num_engines: int,
    workers_per_engine: int,
    backend: Literal["nccl", "gloo"],
    timeout_s: float,
) -> list[GroupAddress]:
    """Each engine's address: rank offsets 1, 1 + w, 1 + 2 w, ... of a group of 1 + engines x w, for w workers an engine."""
    return [
        GroupAddress(
            host=host,
            port=port,
            rank_offset=1 + engine * workers_per_engine,
            world_size=1 + num_engines * workers_per_engine,
            backend=backend,
            timeout_s=timeout_s,
        )
        for engine in range(num_engines)
    ]
