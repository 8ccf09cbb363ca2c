"""Real ranks for the engine's tests: one process each, joined by gloo on this machine."""

from __future__ import annotations

import os
import socket
import time
import traceback
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from actors.algorithms.records import PackedBatch, cumulative
from actors.context import RankContext
from configs.schema.engine import EngineConfig, OptimizerConfig

TIMEOUT_S = 240.0
RankFunction = Callable[..., Any]


class RankProcesses:
    """`num_ranks` processes that stay for many calls: importing DeepSpeed and transformers costs each of them seconds."""

    def __init__(self, num_ranks: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        spawned = multiprocessing.get_context("spawn")
        self._pipes = []
        self._processes = []
        for rank in range(num_ranks):
            ours, theirs = spawned.Pipe()
            process = spawned.Process(target=_serve, args=(theirs, rank, num_ranks, port), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def call(self, function: RankFunction, folder: Path, arguments: tuple[Any, ...]) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((function, str(folder), arguments))
        deadline = time.monotonic() + TIMEOUT_S
        failures, paths = [], []
        for rank, pipe in enumerate(self._pipes):
            try:
                if not pipe.poll(max(0.0, deadline - time.monotonic())):
                    failures.append(f"rank {rank} gave no answer within {TIMEOUT_S} s")
                    continue
                path, failure = pipe.recv()
            except EOFError:
                path, failure = None, f"rank {rank} died"
            paths.append(path)
            if failure:
                failures.append(failure)
                deadline = min(deadline, time.monotonic() + 2.0)  # its peers are stuck without it
        if failures:
            self.stop()
            raise AssertionError("\n".join(failures))
        return [torch.load(path) for path in paths]

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join(10)


_RUNNING: dict[int, RankProcesses] = {}


def run_ranks(function: RankFunction, num_ranks: int, folder: Path, *arguments: Any) -> list[Any]:
    """Calls `function(context, *arguments)` on each of `num_ranks` ranks; what each returns (tensors allowed), in rank order."""
    processes = _RUNNING.pop(num_ranks, None) or RankProcesses(num_ranks)
    results = processes.call(
        function, folder, arguments
    )  # raises with the processes stopped: the next call starts new ones
    _RUNNING[num_ranks] = processes
    return results


def _serve(pipe: Connection, rank: int, num_ranks: int, port: int) -> None:
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": num_ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": 1,
    }
    os.environ.update({key: str(value) for key, value in environment.items()})
    torch.set_num_threads(1)
    while True:
        try:
            function, folder, arguments = pipe.recv()
        except EOFError:
            return
        try:
            torch.manual_seed(0)
            result = function(rank_context(rank, num_ranks, folder), *arguments)
            path = Path(folder) / f"{uuid.uuid4()}.pt"
            torch.save(result, path)
            pipe.send((path, ""))
        except Exception:  # noqa: BLE001 - a test's failure goes to the test
            pipe.send((None, f"rank {rank}:\n{traceback.format_exc()}"))


def rank_context(rank: int, num_ranks: int, run_dir: str) -> RankContext:
    return RankContext(
        role="policy",
        rank=rank,
        world_size=num_ranks,
        device="cpu",
        threads=1,
        seed=0,
        deterministic=True,
        collective_timeout_s=120.0,
        run_dir=run_dir,
    )


def packed(*sequences: tuple[list[int], int]) -> PackedBatch:
    """A micro-batch of sequences (tokens, prompt length); none gives the dummy."""
    tokens = [token for sequence, _ in sequences for token in sequence]
    mask = [index >= prompt for sequence, prompt in sequences for index in range(len(sequence))]
    lengths = cumulative([len(sequence) for sequence, _ in sequences])
    return PackedBatch.from_flat(torch.tensor(tokens, dtype=torch.int64), lengths, torch.tensor(mask, dtype=torch.bool))


def sequences(count: int, *, seed: int, vocab_size: int = 128) -> list[tuple[list[int], int]]:
    """Random sequences of 5 to 14 tokens, the first 2 or 3 of them prompt."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    return [
        (torch.randint(3, vocab_size, (draw(5, 15),), generator=generator).tolist(), draw(2, 4)) for _ in range(count)
    ]


def split(items: list[Any], sizes: list[int]) -> list[list[Any]]:
    """Consecutive runs of `sizes`."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [items[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def engine_config(stage: int, dtype: str = "fp32", **settings: Any) -> EngineConfig:
    return EngineConfig.model_validate({"zero_stage": stage, "dtype": dtype, "logits_chunk_tokens": 5} | settings)


# An epsilon that is small beside gradients, but not beside rounding errors of gradients that are 0 by symmetry.
OPTIMIZER = OptimizerConfig(lr=1e-2, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1, max_grad_norm=0.5)


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a - b‖ / ‖b‖"""
    return float((a - b).norm() / b.norm())
