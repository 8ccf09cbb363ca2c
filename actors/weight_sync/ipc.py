"""Weights over CUDA IPC, where policy ranks and engine workers share GPUs: a worker reads the buffer of the policy rank on its own GPU.

Every policy rank fills the same buckets in its own buffer; rank 0 tells the engines all ranks' handles, and each worker opens the one of
its GPU. A buffer is filled again only after every engine has copied from it.

Not run, for want of a GPU, beyond what happens before CUDA is first called.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from actors.errors import SyncFailed
from actors.rollout import Rollout
from actors.weight_sync.bucket import Bucket
from actors.weight_sync.channel import Channel, Deadline, Engines

Handles = dict[str, tuple[Any, ...]]
"""What rebuilds each policy rank's buffer, by the GPU's UUID."""


class IpcChannel(Channel):
    """One buffer per policy rank, opened by the workers on the same GPU. Its pushes are collectives of the policy's ranks."""

    every_rank_sends = True

    def __init__(self, engines: Engines, *, rank: int, device: torch.device) -> None:
        if device.type != "cuda":
            raise SyncFailed(f"weight_sync.channel ipc needs CUDA, got device {device.type!r}; allowed on it: cpu")
        super().__init__(engines)
        self._rank = rank
        self._device = device
        self._buffer: Tensor | None = None
        self._handles: Handles = {}

    def connect(self, deadline: Deadline) -> None:
        if self._rank == 0:
            self.engines.call(Rollout.connect_ipc, deadline=deadline)

    def allocate(self, num_bytes: int) -> Tensor:
        if self._buffer is None or len(self._buffer) < num_bytes:
            self._buffer = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
            self._handles = gather_handles(export(self._buffer))
        return self._buffer[:num_bytes]

    def push(self, bucket: Bucket, payload: Tensor, deadline: Deadline) -> None:
        assert self._buffer is not None and payload.data_ptr() == self._buffer.data_ptr(), (
            "the payload is the exported buffer"
        )
        torch.cuda.current_stream(self._device).synchronize()
        _all_agree(True, self._device)  # every rank's buffer is full
        failure: SyncFailed | None = None
        if self._rank == 0:
            try:
                calls = self.engines.start(Rollout.load_bucket, bucket, self._handles)
                self.engines.wait(calls, deadline, Rollout.load_bucket.__name__)
            except SyncFailed as error:
                failure = error
        # the others hear of a failure here instead of waiting for rank 0 until their collective times out
        if not _all_agree(failure is None, self._device):
            raise failure or SyncFailed("rank 0 could not hand a bucket to the engines")

    def drain(self, deadline: Deadline) -> None:
        """Every push has waited for its engines."""

    def close(self) -> None:
        self._buffer, self._handles = None, {}
        torch.cuda.ipc_collect()


def export(buffer: Tensor) -> Handles:
    """What rebuilds this rank's CUDA buffer in another process on the same GPU."""
    from torch.multiprocessing.reductions import reduce_tensor

    _, args = reduce_tensor(buffer)
    return {str(torch.cuda.get_device_properties(buffer.device).uuid): args}


def gather_handles(own: Handles) -> Handles:
    """All policy ranks' handles, on every rank (collective)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own
    gathered: list[Handles] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, own)
    return {gpu: args for handles in gathered for gpu, args in handles.items()}


def handle_of(handles: Handles, gpu: str) -> tuple[Any, ...]:
    """The handle for a worker on `gpu`. SyncFailed where no policy rank is on it."""
    if gpu not in handles:
        raise SyncFailed(
            f"no policy rank shares the engine's GPU {gpu}: weight_sync.channel ipc reaches only {sorted(handles)}"
        )
    return handles[gpu]


def _all_agree(own: bool, device: torch.device) -> bool:
    """Whether all policy ranks say yes (collective)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own
    agreed = torch.tensor(int(own), device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return bool(agreed)
