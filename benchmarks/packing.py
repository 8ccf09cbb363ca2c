"""Packed against padded training: useful tokens per second of whole updates (forward, backward, clipping, AdamW) on the same sequences.

Packed: `Engine.forward_backward` on micro-batches that fill `micro_batch_tokens`, as a run does it. Padded: plain transformers, the same
model, loss and optimizer; as many sequences in each batch as can be of the longest length within the same budget, in random order
and sorted by length. As in a run, packed reads the output head at response tokens alone; plain transformers reads it everywhere.

Legend: `T` tokens of a batch, `B` sequences, `L` the longest of them, `V` vocabulary.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import transformers
from torch import Tensor, nn

from actors.algorithms.losses import policy_loss
from actors.algorithms.packing import pack
from actors.algorithms.records import PackedBatch, cumulative
from actors.context import RankContext
from actors.engine.engine import Engine, adamw
from actors.models.causal_lm import load_policy
from benchmarks.models import make_small_model
from benchmarks.table import Cell, Table, write_tables
from configs.schema.engine import EngineConfig, OptimizerConfig
from orchestrator.machine import local_cores

OPTIMIZER = OptimizerConfig(lr=1e-6)
CLIP = 0.2
SHORTEST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Made-up trajectories: the second half of each is the response."""

    tokens: tuple[Tensor, ...]
    """int64 [length] each."""
    advantages: tuple[Tensor, ...]
    """float32 [length] each."""

    @property
    def lengths(self) -> list[int]:
        return [len(tokens) for tokens in self.tokens]

    @property
    def num_response_tokens(self) -> int:
        return sum(length - length // 2 for length in self.lengths)

    def batch(self, indices: Sequence[int]) -> PackedBatch:
        lengths = [self.lengths[i] for i in indices]
        mask = torch.cat([torch.arange(length) >= length // 2 for length in lengths])
        return PackedBatch.from_flat(torch.cat([self.tokens[i] for i in indices]), cumulative(lengths), mask)


def lognormal_sequences(num: int, *, typical: int, longest: int, vocab_size: int, seed: int = 0) -> Sequences:
    """Lengths lognormal around `typical` (their median), sigma 0.8, between 16 and `longest`."""
    chance, torch_chance = random.Random(seed), torch.Generator().manual_seed(seed)
    lengths = [min(longest, max(SHORTEST, round(typical * chance.lognormvariate(0.0, 0.8)))) for _ in range(num)]
    return Sequences(
        tokens=tuple(torch.randint(vocab_size, (length,), generator=torch_chance) for length in lengths),
        advantages=tuple(torch.randn(length, generator=torch_chance) for length in lengths),
    )


def loss_of(new: Tensor, batch: PackedBatch, advantages: Tensor, count: int) -> Tensor:
    """The clipped surrogate of flat log-probabilities [T]; the old ones are the new ones, detached."""
    old = new.detach()
    loss, _ = policy_loss(
        new,
        old,
        old,
        advantages,
        batch.loss_mask,
        batch.cu_lengths,
        clip_low=CLIP,
        clip_high=CLIP,
        dual_clip=None,
        importance_cap=None,
        aggregation="token_mean",
        global_count=count,
    )
    return loss


class Packed:
    """Updates as a run does them."""

    def __init__(self, model: Path, budget: int) -> None:
        config = EngineConfig(micro_batch_tokens=budget)
        context = RankContext(
            role="policy",
            rank=0,
            world_size=1,
            device="cpu",
            threads=torch.get_num_threads(),
            seed=0,
            deterministic=False,
            collective_timeout_s=600.0,
            run_dir=str(model),
        )
        self.budget = budget
        self.engine = Engine(
            load_policy(str(model), config, device="cpu"), engine=config, optimizer=OPTIMIZER, context=context
        )

    def update(self, data: Sequences) -> float:
        """One update over all sequences. Returns the loss."""
        keys = pack(dict(enumerate(data.lengths)), self.budget)
        batches = [data.batch(of_batch) for of_batch in keys]
        advantages = [torch.cat([data.advantages[i] for i in of_batch]) for of_batch in keys]

        def loss(index: int, outputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
            value = loss_of(outputs[0], batches[index], advantages[index], data.num_response_tokens)
            return value, {"loss": value.detach()}

        total = self.engine.forward_backward(batches, loss, temperature=1.0, with_entropy=False)["loss"]
        self.engine.step(OPTIMIZER.lr)
        return total


class Padded:
    """Updates by plain transformers on padded rectangles."""

    def __init__(self, model: Path) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.model.train()
        self.optimizer = adamw(self.model, OPTIMIZER)

    def update(self, data: Sequences, batches: Sequence[Sequence[int]]) -> float:
        """One update over all sequences, a rectangle a batch. Returns the loss."""
        total = 0.0
        for indices in batches:
            batch = data.batch(indices)
            new = self.logprobs([data.tokens[i] for i in indices])
            loss = loss_of(new, batch, torch.cat([data.advantages[i] for i in indices]), data.num_response_tokens)
            loss.backward()
            total += float(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def logprobs(self, tokens: Sequence[Tensor]) -> Tensor:
        """Flat log-probabilities [T] of the sequences, 0 at each one's first token."""
        ids = nn.utils.rnn.pad_sequence(list(tokens), batch_first=True)  # [B, L]
        attended = nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in tokens], batch_first=True)
        logits = self.model(input_ids=ids, attention_mask=attended, use_cache=False).logits[:, :-1]  # [B, L - 1, V]
        chosen = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        return nn.functional.pad(chosen, (1, 0))[attended.bool()]


def equal_batches(order: Sequence[int], size: int) -> list[list[int]]:
    """Batches of `size` sequences, the last one smaller where it does not divide."""
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


def join_alone() -> None:
    """The environment of a process group of one, for the engine. For a process of its own: it writes to `os.environ`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update({**place, "DS_ACCELERATOR": "cpu"})


def packing_table(model: Path, data: Sequences, *, budget: int, longest: int, rounds: int) -> Table:
    """Alternates the ways `rounds` times after one round of warm-up, in which their losses are compared."""
    order = list(range(len(data.tokens)))
    size = max(1, budget // longest)
    packed, padded = Packed(model, budget), Padded(model)
    shuffled, by_length = equal_batches(order, size), equal_batches(sorted(order, key=lambda i: data.lengths[i]), size)
    ways: dict[str, Callable[[], float]] = {
        "packed": lambda: packed.update(data),
        "padded, random order": lambda: padded.update(data, shuffled),
        "padded, sorted by length": lambda: padded.update(data, by_length),
    }
    first = [ways[name]() for name in ways]
    assert abs(first[0] - first[1]) <= 1e-3 * max(1.0, abs(first[1])), f"packed and padded losses differ: {first}"
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            started = time.monotonic()
            ways[name]()
            seconds[name].append(time.monotonic() - started)
    computed = {
        "packed": sum(data.lengths),
        "padded, random order": sum(len(b) * max(data.lengths[i] for i in b) for b in shuffled),
        "padded, sorted by length": sum(len(b) * max(data.lengths[i] for i in b) for b in by_length),
    }
    useful = sum(data.lengths)
    rows: list[tuple[Cell, ...]] = [
        (name, computed[name], useful / median(times), median(seconds["padded, random order"]) / median(times))
        for name, times in seconds.items()
    ]
    return Table(
        title="Packed against padded training",
        columns=("way", "tokens computed", "useful tokens/s", "speed against padded"),
        rows=tuple(rows),
        note=(
            f"{len(order)} sequences, {useful:,} tokens, lognormal lengths (median {median(data.lengths):.0f}, longest "
            f"{max(data.lengths)}), half of each response; {packed.engine.num_parameters / 1e6:.0f}M parameters in fp32 on "
            f"{torch.get_num_threads()} threads; budget {budget} tokens, padded batches of {size} sequences. Whole updates, median of "
            f"{rounds} alternating rounds; first losses {first[0]:.6f} and {first[1]:.6f}."
        ),
    )


def main() -> None:
    """`python -m benchmarks.packing OUT --work DIR [--model DIR]`: the table as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.packing")
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=None)
    arguments = parser.parse_args()
    join_alone()
    torch.set_num_threads(local_cores())
    small = arguments.model is None
    model = make_small_model(arguments.work / "model") if small else arguments.model
    # a larger model gets less to do, in the shipped recipe's budget for such a one
    num, typical, longest, rounds = (48, 160, 1024, 3) if small else (24, 96, 512, 1)
    budget = EngineConfig().micro_batch_tokens if small else 2048
    vocab_size = transformers.AutoConfig.from_pretrained(model).vocab_size
    data = lognormal_sequences(num, typical=typical, longest=longest, vocab_size=vocab_size)
    write_tables(arguments.out, [packing_table(model, data, budget=budget, longest=longest, rounds=rounds)])


if __name__ == "__main__":
    main()
