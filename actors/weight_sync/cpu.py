"""Weights as Ray objects: rank 0 puts each bucket into the object store once, every engine reads it from there.

On one machine the engines map the same shared memory; between machines Ray copies each bucket once per machine.
"""

from __future__ import annotations

from collections import deque

import ray
import torch
from torch import Tensor

from actors.rollout import Rollout
from actors.weight_sync.bucket import Bucket
from actors.weight_sync.channel import IN_FLIGHT, Channel, Deadline, Engines


class CpuChannel(Channel):
    """Pushes buckets by actor calls, with at most `IN_FLIGHT` of them under way."""

    def __init__(self, engines: Engines) -> None:
        super().__init__(engines)
        self._in_flight: deque[list[ray.ObjectRef]] = deque()

    def connect(self, deadline: Deadline) -> None:
        self.engines.call(Rollout.connect_cpu, deadline=deadline)

    def allocate(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def push(self, bucket: Bucket, payload: Tensor, deadline: Deadline) -> None:
        while len(self._in_flight) >= IN_FLIGHT:
            self._wait_oldest(deadline)
        # numpy: Ray keeps its memory apart from the pickle, so that engines read it without a copy; torch it would copy
        self._in_flight.append(self.engines.start(Rollout.load_bucket, bucket, ray.put(payload.numpy())))

    def drain(self, deadline: Deadline) -> None:
        while self._in_flight:
            self._wait_oldest(deadline)

    def close(self) -> None:
        self._in_flight.clear()

    def _wait_oldest(self, deadline: Deadline) -> None:
        self.engines.wait(self._in_flight.popleft(), deadline, Rollout.load_bucket.__name__)
