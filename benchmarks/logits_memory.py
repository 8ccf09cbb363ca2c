"""Is the logits buffer bounded by its setting? `token_logprobs`, forward and backward, against plain logits.

Two measurements. Rows: the most rows of logits in any one tensor, seen by a dispatch mode over fake tensors, which have shapes and
compute nothing. Peak: how much a forked process's resident memory really grows, forward and backward, over its inputs; several tensors
of the buffer's size live at once (logits, log-probabilities, their gradient), and the weight's gradient is part of it.

Legend: `N` tokens, `H` hidden size, `V` vocabulary, `C` tokens of a chunk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from actors.algorithms.logprobs import token_logprobs
from benchmarks.table import Cell, Table, write_tables

HIDDEN = 64
VOCABULARIES = (32_000, 152_000)
TOKENS = (512, 2048, 8192)
CHUNKS = (256, 1024)
MIB = 2**20
PLAIN_COPIES = 6
"""Tensors of [N, V] that plain logits may need at once, at most: what decides whether they are tried at all."""
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One forward and backward; `chunk` None means plain logits."""

    vocab_size: int
    num_tokens: int
    chunk: int | None
    hidden_size: int = HIDDEN

    @property
    def bound_bytes(self) -> int:
        """What the setting allows one tensor of logits: C x V x 4, or all of them where there is no setting."""
        return (self.chunk or self.num_tokens) * self.vocab_size * 4


class LogitsRows(TorchDispatchMode):
    """Largest number of rows of any float tensor [rows, V] that an operation returns, views of inputs left out."""

    def __init__(self, vocab_size: int, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.rows = 0
        self._vocab_size = vocab_size
        self._given = {tensor.untyped_storage()._cdata for tensor in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or tensor.dim() != 2 or tensor.shape[1] != self._vocab_size:
                continue
            if tensor.is_floating_point() and tensor.untyped_storage()._cdata not in self._given:
                self.rows = max(self.rows, tensor.shape[0])
        return result


def inputs_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [N, H], head [V, H], targets [N]."""
    hidden = torch.randn(case.num_tokens, case.hidden_size, requires_grad=True)
    weight = torch.randn(case.vocab_size, case.hidden_size, requires_grad=True)
    return hidden, weight, torch.zeros(case.num_tokens, dtype=torch.int64)


def forward_backward(case: Case, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    """Log-probabilities and entropies of all tokens, and the gradients of both."""
    if case.chunk is None:
        log_p = torch.log_softmax(torch.nn.functional.linear(hidden, weight), dim=-1)
        logprobs, entropy = log_p.gather(-1, targets[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)
        del log_p
    else:
        logprobs, entropy = token_logprobs(
            hidden, weight, targets, temperature=1.0, chunk_tokens=case.chunk, with_entropy=True
        )
    (logprobs.sum() + entropy.sum()).backward()


def most_rows(case: Case) -> int:
    """Rows of the largest logits tensor."""
    with FakeTensorMode():
        hidden, weight, targets = inputs_of(case)
        with LogitsRows(case.vocab_size, (hidden, weight)) as seen:
            forward_backward(case, hidden, weight, targets)
    return seen.rows


def peak_bytes(case: Case) -> int | None:
    """Growth of a process's resident memory; None where plain logits would take more than half of the memory that is free.

    In a forked process of its own, whose peak starts from what it inherits: the caller must not have computed with threads before.
    """
    if case.chunk is None and PLAIN_COPIES * case.bound_bytes > _available_bytes() // 2:
        return None
    forked = multiprocessing.get_context("fork")
    ours, theirs = forked.Pipe()
    process = forked.Process(target=_measure, args=(case, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT_S):
            raise TimeoutError(f"{case} took more than {TIMEOUT_S:g} s")
        grown: int = ours.recv()
    finally:
        process.kill()
        process.join()
    return grown


def _measure(case: Case, pipe: Connection) -> None:
    warm_up = Case(vocab_size=256, num_tokens=8, chunk=case.chunk)
    forward_backward(warm_up, *inputs_of(warm_up))
    inputs = inputs_of(case)
    before = _resident_bytes()
    forward_backward(case, *inputs)
    pipe.send(max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before))


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def logits_table(vocabularies: Sequence[int] = VOCABULARIES, tokens: Sequence[int] = TOKENS) -> Table:
    """Every vocabulary, number of tokens and setting."""
    rows: list[tuple[Cell, ...]] = []
    for vocab_size in vocabularies:
        for num_tokens in tokens:
            for chunk in (None, *CHUNKS):
                case = Case(vocab_size=vocab_size, num_tokens=num_tokens, chunk=chunk)
                peak = peak_bytes(case)
                name = "plain" if chunk is None else f"logits_chunk_tokens {chunk}"
                measured: Cell = "not tried: too large" if peak is None else peak / MIB
                held = most_rows(case)
                rows.append((f"{vocab_size:,}", num_tokens, name, held, held * vocab_size * 4 / MIB, measured))
    return Table(
        title="Logits buffer",
        columns=("vocabulary", "tokens", "way", "rows of logits", "buffer MiB", "peak growth MiB"),
        rows=tuple(rows),
        note=(
            f"Log-probabilities and entropies, forward and backward, fp32, hidden size {HIDDEN}. Rows: of the largest logits tensor. "
            "Peak growth: resident memory of a process over its inputs; some tensors of the buffer's size live at the same time, and "
            f"the head's gradient (vocabulary x {HIDDEN} x 4 bytes) is in it."
        ),
    )


def main() -> None:
    """`python -m benchmarks.logits_memory OUT`: the table as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.logits_memory")
    parser.add_argument("out", type=Path)
    write_tables(parser.parse_args().out, [logits_table()])


if __name__ == "__main__":
    main()
