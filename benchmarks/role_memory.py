"""What a rank of a role really holds: resident memory of processes that do what the role does, phase by phase."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass
from pathlib import Path

import torch

from actors.algorithms.records import PackedBatch, cumulative
from actors.context import RankContext
from configs.schema.engine import EngineConfig, OptimizerConfig

M_MMAP_THRESHOLD = -3


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Growth of one process's resident memory since before its model was loaded, in bytes."""

    resident: int
    """With the model loaded, its engine made and one update done."""
    score: int
    """At the worst of a forward without gradients."""
    backward: int
    """At the worst of forward and backward."""
    update: int
    """At the worst of forward, backward and the optimizer's step."""


def measure_policy(context: RankContext, folder: str, engine: EngineConfig, lengths: tuple[int, ...]) -> Measured:
    """The policy's rank: loads, scores, updates twice. `lengths` of the sequences of one micro-batch; half of each is answer."""
    from actors.engine.distributed import join_process_group
    from actors.engine.engine import Engine
    from actors.models.causal_lm import load_policy

    # freed blocks go back to the system at once: what is resident is what is held
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    join_process_group(context)
    warm_up()
    before = resident()
    module = load_policy(folder, engine, device="cpu")
    runner = Engine(module, engine=engine, optimizer=OptimizerConfig(), context=context)
    batch = one_batch(lengths)
    peaks: dict[str, int] = {}

    def score() -> None:
        runner.forward(batch, temperature=1.0, with_entropy=False)

    def backward() -> None:
        def loss_of(index: int, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return -outputs[0].sum() / len(batch.tokens), {}

        runner.forward_backward([batch, batch], loss_of, temperature=1.0, with_entropy=True)

    def update() -> None:
        backward()
        runner.step(1e-5)

    update()
    for name, phase in (("score", score), ("update", update), ("backward", backward)):
        gc.collect()
        reset_peak()
        phase()
        peaks[name] = peak() - before
    runner.step(1e-5)
    gc.collect()
    return Measured(resident=resident() - before, **peaks)


def warm_up() -> None:
    """Has the libraries make what they keep: thread pools, kernels."""
    weight = torch.randn(256, 256, requires_grad=True)
    (torch.randn(64, 256) @ weight).softmax(-1).sum().backward()
    gc.collect()


def one_batch(lengths: tuple[int, ...]) -> PackedBatch:
    tokens = torch.arange(sum(lengths)) % 1000
    mask = torch.cat([torch.arange(length) >= max(1, length // 2) for length in lengths])
    return PackedBatch.from_flat(tokens, cumulative(list(lengths)), mask)


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(key)


def resident() -> int:
    return status("VmRSS")


def peak() -> int:
    """Most that was resident since `reset_peak`."""
    return status("VmHWM")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
