"""The policy's side of a weight sync: every rank iterates the full parameters, rank 0 sends them and asks the engines for proof."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal

import ray
import torch
from torch import Tensor

from actors.context import RankContext
from actors.errors import SyncFailed
from actors.rollout import Rollout
from actors.weight_sync.bucket import fill_buckets
from actors.weight_sync.channel import Channel, Deadline, Engines
from actors.weight_sync.cpu import CpuChannel
from actors.weight_sync.ipc import IpcChannel
from actors.weight_sync.nccl import NcclChannel
from actors.weight_sync.reports import SentReport, SyncReceipt, sync_digest
from configs.schema.rollout import WeightSyncConfig

ChannelName = Literal["cpu", "nccl", "ipc"]


def open_channel(name: ChannelName, engines: Engines, *, context: RankContext, workers_per_engine: int) -> Channel:
    """The channel of a policy rank, not yet connected."""
    if name == "cpu":
        return CpuChannel(engines)
    device = (
        torch.device(context.device, torch.cuda.current_device()) if context.device == "cuda" else torch.device("cpu")
    )
    if name == "ipc":
        return IpcChannel(engines, rank=context.rank, device=device)
    if device.type != "cuda":
        raise SyncFailed("weight_sync.channel nccl needs CUDA, got device 'cpu'; allowed on it: cpu")
    return NcclChannel(engines, workers_per_engine=workers_per_engine, device=device)


class WeightSender:
    """One rank's part in every sync. Connected anew whenever an engine was restarted."""

    def __init__(self, config: WeightSyncConfig, context: RankContext) -> None:
        self._config = config
        self._context = context
        self._engines = Engines([])
        self._channel: Channel | None = None

    def connect(
        self, engines: Sequence[ray.actor.ActorHandle], name: ChannelName, *, workers_per_engine: int = 1
    ) -> None:
        """Meets the engines (collective over the policy's ranks). Raises SyncFailed within `timeout_s`."""
        channel = open_channel(name, Engines(engines), context=self._context, workers_per_engine=workers_per_engine)
        self.connect_by(channel)

    def connect_by(self, channel: Channel) -> None:
        """Meets the engines by a channel that is already made."""
        if self._channel is not None:
            self._channel.close()
        self._engines, self._channel = channel.engines, channel
        if self._sends:
            channel.connect(Deadline(self._config.timeout_s))

    def send(self, named_parameters: Iterator[tuple[str, Tensor]], policy_version: int) -> SentReport | None:
        """Sends all parameters to all engines and has each prove what it got; rank 0 returns the report, the others None.

        Collective: every rank iterates all of `named_parameters`, also where the sync fails, so that no peer waits in a gather.
        Raises SyncFailed within `timeout_s` (beside the time that the iteration itself takes); the engines are then of no more use.
        """
        if not self._sends:
            deque(named_parameters, maxlen=0)
            return None
        try:
            return self._send(named_parameters, policy_version)
        except SyncFailed:
            deque(named_parameters, maxlen=0)
            raise

    @property
    def _sends(self) -> bool:
        assert self._channel is not None, "connect comes first"
        return self._context.rank == 0 or self._channel.every_rank_sends

    def _send(self, named_parameters: Iterator[tuple[str, Tensor]], policy_version: int) -> SentReport | None:
        assert self._channel is not None
        start, deadline, leads = time.monotonic(), Deadline(self._config.timeout_s), self._context.rank == 0
        checksums: dict[str, str] = {}
        num_bytes = num_buckets = 0
        if leads:
            self._engines.call(Rollout.begin_update, policy_version, deadline=deadline)
        for filled in fill_buckets(named_parameters, self._config.bucket_mib << 20, self._channel.allocate):
            twice = checksums.keys() & filled.checksums.keys()
            assert not twice, f"{sorted(twice)} came twice"
            checksums |= filled.checksums
            num_bytes += sum(slot.num_bytes for slot in filled.bucket.slots)
            num_buckets += 1
            self._channel.push(filled.bucket, filled.payload, deadline)
        self._channel.drain(deadline)
        if not leads:
            return None
        receipts: list[SyncReceipt] = self._engines.call(
            Rollout.finish_update, policy_version, checksums, deadline=deadline
        )
        digest = sync_digest(checksums)
        for engine, receipt in enumerate(receipts):
            if receipt.digest != digest or receipt.policy_version != policy_version:
                raise SyncFailed(
                    f"engine {engine} has version {receipt.policy_version} ({receipt.digest[:12]}), not {policy_version}"
                )
        return SentReport(
            policy_version=policy_version,
            num_tensors=len(checksums),
            num_bytes=num_bytes,
            num_buckets=num_buckets,
            digest=digest,
            seconds=time.monotonic() - start,
        )
