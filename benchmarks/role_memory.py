"""What a rank of a trained role really holds, against what `preceptor plan` predicts: real DeepSpeed ranks on CPU, joined by gloo.

Each rank is a process of its own, forked from one that has imported the libraries, so that only what the rank makes is counted: the growth
of its resident memory since before its model was loaded, and the most of it (VmHWM, reset before each phase). The same was done once
with a tiny model before, so that what libraries keep after their first use is not counted as the model's. Freed blocks are handed back
to the system at once. `python -m benchmarks.role_memory` writes the table.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from actors.algorithms.records import PackedBatch, cumulative
from actors.context import RankContext
from benchmarks.models import make_small_model
from benchmarks.table import Table
from configs.schema.engine import EngineConfig, OptimizerConfig
from orchestrator.estimate.memory import TrainedModel, trained_memory
from orchestrator.estimate.model_files import find_model

M_MMAP_THRESHOLD = -3
"""glibc's mallopt: larger blocks are mapped, and unmapped when they are freed."""
TIMEOUT_S = 240.0
MIB = 2**20
PRELOADED = ("deepspeed", "actors.engine.engine", "actors.models.causal_lm", "transformers.models.llama.modeling_llama")
"""Imported once, in the process that the ranks are forked from."""
NOTE = (
    "Predicted / measured MiB of one rank, and by how much the prediction is off. A Llama of 50 million parameters, two micro-batches an "
    "update. Measured: growth of resident memory since before the model was loaded; for `score` and `update` the most of it."
)
PHASES = ("resident", "score", "update")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A rank of the policy and the micro-batch that it works on."""

    num_ranks: int
    zero_stage: int
    dtype: str
    lengths: tuple[int, ...]
    """Of the packed sequences; the second half of each is answer."""
    checkpointing: bool = False

    @property
    def engine(self) -> EngineConfig:
        return EngineConfig.model_validate(
            {
                "zero_stage": self.zero_stage,
                "dtype": self.dtype,
                "micro_batch_tokens": sum(self.lengths),
                "logits_chunk_tokens": 256,
                "activation_checkpointing": self.checkpointing,
            }
        )

    @property
    def name(self) -> str:
        extra = ", checkpointing" if self.checkpointing else ""
        ranks = "rank" if self.num_ranks == 1 else "ranks"
        return f"ZeRO {self.zero_stage}, {self.dtype}, {self.num_ranks} {ranks}, {sum(self.lengths)} tokens{extra}"


CASES = (
    Case(num_ranks=1, zero_stage=0, dtype="fp32", lengths=(256, 256)),
    Case(num_ranks=2, zero_stage=0, dtype="fp32", lengths=(256, 256)),
    Case(num_ranks=1, zero_stage=0, dtype="fp32", lengths=(256,) * 4),
    Case(num_ranks=1, zero_stage=0, dtype="fp32", lengths=(256, 256), checkpointing=True),
    Case(num_ranks=2, zero_stage=1, dtype="fp32", lengths=(256, 256)),
    Case(num_ranks=2, zero_stage=2, dtype="fp32", lengths=(256, 256)),
    Case(num_ranks=2, zero_stage=3, dtype="fp32", lengths=(256, 256)),
    Case(num_ranks=2, zero_stage=1, dtype="bf16", lengths=(256, 256)),
    Case(num_ranks=2, zero_stage=2, dtype="bf16", lengths=(256, 256)),
    Case(num_ranks=2, zero_stage=3, dtype="bf16", lengths=(256, 256)),
    # so few tokens that the optimizer's step holds most
    Case(num_ranks=1, zero_stage=1, dtype="bf16", lengths=(16, 16)),
)
QUICK = (CASES[0], CASES[9])
"""What a test measures again: replicated and sharded, both types."""


def make_models(folder: Path) -> Path:
    """`model` of 50 million parameters and `tiny`, random weights, in `folder`."""
    make_small_model(folder / "model", vocab_size=8192, hidden_size=512, num_layers=16)
    make_small_model(folder / "tiny", vocab_size=1024, hidden_size=64, num_layers=1)
    return folder


def predicted(folder: Path, case: Case) -> dict[str, float]:
    """Bytes of one rank by phase, without what its process holds before the model."""
    shape = find_model(str(folder / "model")).shape
    model = TrainedModel(
        role="policy", shape=shape, scalar=False, engine=case.engine, num_ranks=case.num_ranks, device="cpu"
    )
    memory = trained_memory(model, sleeps=False)
    held = sum(item.amount for item in memory.resident if item.name != "process")
    return {"resident": held} | {
        phase: held + sum(item.amount for item in items) for phase, items in memory.working_by_phase.items()
    }


# ------------------------------------------------------------------------------------------------------------------ measured


def measure(folder: Path, case: Case) -> dict[str, float]:
    """Bytes by phase of the rank that held most, as `predicted` counts them."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload([*PRELOADED, __name__])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes, processes = [], []
    for rank in range(case.num_ranks):
        ours, theirs = forking.Pipe()
        process = forking.Process(target=_serve, args=(theirs, rank, port, folder, case), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        found = [_answer(pipe, rank) for rank, pipe in enumerate(pipes)]
    finally:
        for process in processes:
            process.kill()
            process.join(10)
    return {phase: max(of_rank[phase] for of_rank in found) for phase in PHASES}


def _answer(pipe: Connection, rank: int) -> dict[str, float]:
    if not pipe.poll(TIMEOUT_S):
        raise TimeoutError(f"rank {rank} gave no answer within {TIMEOUT_S:g} s")
    answer: dict[str, float] | str = pipe.recv()
    if isinstance(answer, str):
        raise RuntimeError(f"rank {rank} failed:\n{answer}")
    return answer


def _serve(pipe: Connection, rank: int, port: int, folder: Path, case: Case) -> None:
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.num_ranks, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({key: str(value) for key, value in (environment | {"MASTER_PORT": port}).items()})
    torch.set_num_threads(1)
    context = RankContext(
        role="policy",
        rank=rank,
        world_size=case.num_ranks,
        device="cpu",
        threads=1,
        seed=0,
        deterministic=False,
        collective_timeout_s=TIMEOUT_S,
        run_dir=tempfile.gettempdir(),
    )
    try:
        pipe.send(_measured(context, folder, case))
    except Exception:  # noqa: BLE001 - the caller raises it
        pipe.send(traceback.format_exc())


def _measured(context: RankContext, folder: Path, case: Case) -> dict[str, float]:
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    _Work(context, folder / "tiny", case).update()  # what libraries make at their first use is not the model's
    gc.collect()
    before = _status("VmRSS")
    work = _Work(context, folder / "model", case)
    work.update()
    peaks = {"score": _peak_of(work.score) - before, "update": _peak_of(work.update) - before}
    gc.collect()
    return {"resident": _status("VmRSS") - before, **peaks}


class _Work:
    """What a rank of the policy does with its model."""

    def __init__(self, context: RankContext, folder: Path, case: Case) -> None:
        from actors.engine.distributed import join_process_group
        from actors.engine.engine import Engine
        from actors.models.causal_lm import load_policy

        join_process_group(context)
        module = load_policy(str(folder), case.engine, device="cpu")
        self.engine = Engine(module, engine=case.engine, optimizer=OptimizerConfig(), context=context)
        self.batch = _batch(case.lengths)

    def score(self) -> None:
        self.engine.forward(self.batch, temperature=1.0, with_entropy=False)

    def update(self) -> None:
        def loss(_index: int, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return -outputs[0].sum() / len(self.batch.tokens), {}

        self.engine.forward_backward([self.batch, self.batch], loss, temperature=1.0, with_entropy=True)
        self.engine.step(1e-5)


def _peak_of(phase: Callable[[], None]) -> int:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts from here
    phase()
    return _status("VmHWM")


def _status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _batch(lengths: tuple[int, ...]) -> PackedBatch:
    mask = torch.cat([torch.arange(length) >= max(1, length // 2) for length in lengths])
    return PackedBatch.from_flat(torch.arange(sum(lengths)) % 1000, cumulative(list(lengths)), mask)


# --------------------------------------------------------------------------------------------------------------------- table


def compare(folder: Path, cases: Sequence[Case]) -> Table:
    """Predicted and measured MiB of each case and phase."""
    rows = []
    for case in cases:
        expected, found = predicted(folder, case), measure(folder, case)
        cells = [f"{expected[p] / MIB:.0f} / {found[p] / MIB:.0f} ({expected[p] / found[p] - 1:+.0%})" for p in PHASES]
        rows.append((case.name, *cells))
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    return Table(title="Ranks of the policy on CPU", columns=("case", *PHASES), rows=tuple(rows), note=NOTE)


def main() -> None:
    """The table as Markdown, on stdout."""
    argparse.ArgumentParser(prog="benchmarks.role_memory", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(compare(make_models(Path(folder)), CASES).markdown())


if __name__ == "__main__":
    main()
