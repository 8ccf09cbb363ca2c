"""Channels against real Ray actors that are no engines: ones that hang, raise, die, or only collect bytes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch
from torch import Tensor

from actors.errors import SyncFailed
from actors.weight_sync.bucket import Bucket, tensors_in
from actors.weight_sync.channel import IN_FLIGHT, Deadline, Engines
from actors.weight_sync.cpu import CpuChannel
from actors.weight_sync.ipc import IpcChannel, handle_of
from actors.weight_sync.nccl import BroadcastGroup, GroupAddress, NcclChannel, group_addresses
from actors.weight_sync.proof import checksum
from actors.weight_sync.reports import SyncReceipt, sync_digest, verify
from actors.weight_sync.sender import WeightSender, open_channel
from configs.schema.rollout import WeightSyncConfig
from tests.actors.weight_sync.engine_parts import context, local_ray

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with local_ray():
        yield


class Collector:
    """Stands where an engine stands and keeps what it is sent; `fault` makes it fail in one call."""

    def __init__(self) -> None:
        self.become("")

    def become(self, fault: str) -> None:
        self.fault = fault
        self.release = threading.Event()
        self.checksums: dict[str, str] = {}
        self.rank = -1
        self.group: BroadcastGroup | None = None

    def connect_cpu(self) -> None:
        pass

    def connect_broadcast(self, address: GroupAddress) -> None:
        if self.fault == "absent":
            raise OSError("no route to the sender")
        self.rank = address.rank_offset
        self.group = BroadcastGroup.join(address, self.rank, CPU)
        self.group.greet()

    def begin_update(self, policy_version: int) -> None:
        if self.fault == "silent":
            self.release.wait(60)

    def load_bucket(self, bucket: Bucket, source: Any) -> None:
        if self.fault == "dies":
            os._exit(1)
        if self.fault == "held":
            self.release.wait(60)
            return
        if self.fault == "raises":
            raise ValueError("out of memory for model.norm.weight")
        payload = torch.from_numpy(source.copy()) if self.group is None else self.group.receive(bucket.num_bytes)
        self.checksums |= {name: checksum(tensor) for name, tensor in tensors_in(bucket, payload)}

    def finish_update(self, policy_version: int, sent: dict[str, str]) -> SyncReceipt:
        verify(sent, self.checksums, ())
        digest = "another" if self.fault == "lies" else sync_digest(self.checksums)
        return SyncReceipt(
            policy_version=policy_version, num_tensors=len(sent), num_bytes=0, digest=digest, seconds=0.0
        )

    def let_go(self) -> None:
        self.release.set()

    def received(self) -> tuple[int, dict[str, str]]:
        return self.rank, self.checksums


@pytest.fixture(scope="module")
def started(_cluster: None) -> list[Any]:
    """Two collectors that are up: starting a process takes long where cores are few, and is not what the timeouts are for."""
    return [new_collector() for _ in range(2)]


def new_collector() -> Any:
    """With a second thread, so that it can be let go while it hangs."""
    actor = ray.remote(num_cpus=0.1, concurrency_groups={"door": 1})(Collector).remote()
    ray.get(actor.become.remote(""), timeout=120)
    return actor


def collectors(started: list[Any], *faults: str) -> list[Any]:
    """The first collectors, each with its fault."""
    engines = started[: len(faults)]
    ray.get([engine.become.remote(fault) for engine, fault in zip(engines, faults, strict=True)], timeout=60)
    return engines


def let_go(engines: list[Any]) -> None:
    ray.get([engine.let_go.options(concurrency_group="door").remote() for engine in engines], timeout=60)


def weights(num: int = 7) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(f"t{i}", torch.randn(1 << 17, generator=generator)) for i in range(num)]  # half a MiB each


def sender(timeout_s: float) -> WeightSender:
    return WeightSender(WeightSyncConfig(bucket_mib=1, timeout_s=timeout_s), context("/nowhere", role="policy"))


def by_gloo(engines: list[Any], workers_per_engine: int = 1) -> NcclChannel:
    return NcclChannel(Engines(engines), workers_per_engine=workers_per_engine, device=CPU, backend="gloo")


@pytest.mark.parametrize("mechanism", ["cpu", "gloo"])
def test_every_engine_gets_every_tensor(started: list[Any], mechanism: str) -> None:
    engines, named = collectors(started, "", ""), weights()
    one = sender(30)
    channel = CpuChannel(Engines(engines)) if mechanism == "cpu" else by_gloo(engines)
    one.connect_by(channel)
    report = one.send(iter(named), 3)
    assert report is not None
    assert (report.policy_version, report.num_tensors, report.num_bytes, report.num_buckets) == (3, 7, 7 << 19, 4)
    expected = {name: checksum(tensor) for name, tensor in named}
    assert report.digest == sync_digest(expected)
    received = ray.get([engine.received.remote() for engine in engines], timeout=30)
    assert [checksums for _, checksums in received] == [expected, expected]
    assert [rank for rank, _ in received] == ([-1, -1] if mechanism == "cpu" else [1, 2])
    channel.close()


@pytest.mark.parametrize("mechanism", ["cpu", "gloo"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("silent", "engine 1: begin_update: no answer within the 2 s"),
        ("raises", r"engine 1: (load_bucket|the broadcast of a bucket): out of memory for model\.norm\.weight"),
        ("dies", "engine 1: its process died during (load_bucket|the broadcast of a bucket)"),
        ("lies", "engine 1 has version 5"),
    ],
)
def test_a_faulty_engine_is_named_in_time(started: list[Any], mechanism: str, fault: str, message: str) -> None:
    engines = collectors(started, "", fault)
    one = sender(30)
    channel = CpuChannel(Engines(engines)) if mechanism == "cpu" else by_gloo(engines)
    one.connect_by(channel)
    one._config = one._config.model_copy(update={"timeout_s": 2.0 if fault == "silent" else 30.0})
    if fault == "dies":
        started[1] = new_collector()
    named, start = iter(weights()), time.monotonic()
    with pytest.raises(SyncFailed, match=message):
        one.send(named, 5)
    assert time.monotonic() - start < 20
    assert list(named) == [], "the rest is iterated, for the sake of the other ranks' collectives"
    channel.close()
    assert time.monotonic() - start < 25, "no broadcast that will never end is waited for"
    let_go(started)


def test_an_engine_that_never_joins_the_broadcast_fails_the_handshake_in_time(started: list[Any]) -> None:
    one, start = sender(4), time.monotonic()
    with pytest.raises(SyncFailed, match=r"did not meet|no route"):
        one.connect_by(by_gloo(collectors(started, "", "absent")))
    assert time.monotonic() - start < 15


def test_a_receiver_without_sender_gives_up_in_time(started: list[Any]) -> None:
    """The group stands, but after the greeting nothing is ever broadcast."""
    (engine,) = collectors(started, "")
    channel = by_gloo([engine])
    channel.connect(Deadline(3.0))
    start = time.monotonic()
    call = engine.load_bucket.remote(Bucket(index=0, slots=(), num_bytes=64), None)
    with pytest.raises(SyncFailed, match=r"no broadcast of 64 bytes within|Timed out waiting"):
        ray.get(call, timeout=30)
    assert time.monotonic() - start < 10
    channel.close()


def test_a_broadcast_that_the_library_gives_up_first_is_a_failed_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    class GivenUp:
        def is_completed(self) -> bool:
            return True

        def wait(self) -> None:
            raise RuntimeError("Timed out waiting 2999ms for recv operation to complete")

    group = object.__new__(BroadcastGroup)
    group.device, group._timeout_s = CPU, 3.0
    monkeypatch.setattr(BroadcastGroup, "broadcast", lambda self, tensor: GivenUp())
    with pytest.raises(SyncFailed, match="the broadcast of 8 bytes failed: Timed out waiting 2999ms"):
        group.receive(8)


def test_rank_offsets_by_hand() -> None:
    addresses = group_addresses(host="h", port=9, num_engines=3, workers_per_engine=4, backend="nccl", timeout_s=5.0)
    assert [address.rank_offset for address in addresses] == [1, 5, 9]
    assert {address.world_size for address in addresses} == {13}


def test_few_buckets_are_under_way_at_once(started: list[Any]) -> None:
    """An engine that stands still stops the sender after `IN_FLIGHT` buckets; the memory of a sync is bounded."""
    engines = collectors(started, "held")
    channel, pushed = CpuChannel(Engines(engines)), threading.Semaphore(0)

    def push_all() -> None:
        for index in range(IN_FLIGHT + 2):
            bucket = Bucket(index=index, slots=(), num_bytes=8)
            channel.push(bucket, torch.zeros(8, dtype=torch.uint8), Deadline(60))
            pushed.release()

    thread = threading.Thread(target=push_all)
    thread.start()
    assert all(pushed.acquire(timeout=30) for _ in range(IN_FLIGHT))
    assert not pushed.acquire(timeout=1.0)
    let_go(engines)
    assert all(pushed.acquire(timeout=30) for _ in range(2))
    thread.join(timeout=30)
    channel.drain(Deadline(30))


# ---- IPC and NCCL as far as they go without CUDA


@pytest.mark.parametrize("name", ["ipc", "nccl"])
def test_a_channel_that_needs_cuda_says_so(name: Any) -> None:
    with pytest.raises(SyncFailed, match=f"{name} needs CUDA, got device 'cpu'"):
        open_channel(name, Engines([]), context=context("/nowhere", role="policy"), workers_per_engine=1)


def test_ipc_refuses_a_cpu_device() -> None:
    with pytest.raises(SyncFailed, match="allowed on it: cpu"):
        IpcChannel(Engines([]), rank=0, device=CPU)


def test_a_worker_takes_the_handle_of_its_own_gpu() -> None:
    handles = {"gpu-a": ("a", 1), "gpu-b": ("b", 2)}
    assert handle_of(handles, "gpu-b") == ("b", 2)
    with pytest.raises(SyncFailed, match=r"no policy rank shares the engine's GPU gpu-c.*'gpu-a', 'gpu-b'"):
        handle_of(handles, "gpu-c")
