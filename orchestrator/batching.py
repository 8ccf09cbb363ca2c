"""Who computes what: trajectories to ranks, ranks' trajectories to micro-batches, the same number of them everywhere. Plain Python.

All of it is a function of lengths and the run's seed, never of time or arrival, so that the same lengths always give the same batches.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Sequence
from typing import TypeVar

Key = TypeVar("Key")


class Balancer:
    """Gives each trajectory its rank for the step, balanced by tokens.

    The longest go first, each to the rank with the fewest tokens of that trajectory's minibatch so far (Graham 1969), because a minibatch
    is what ranks wait for each other in. Waves must come in their own order: the loads carry over.

    A heap for each minibatch finds that rank: looking through thousands of them for each of tens of thousands of trajectories takes
    minutes.
    """

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
        self._minibatch_tokens: dict[int, list[int]] = {}
        self._lightest: dict[int, list[tuple[int, int, int]]] = {}
        """For each minibatch a heap of (tokens in it, tokens in all, rank): of each rank one entry, which may lag behind."""
        self._tokens = [0] * num_ranks

    def assign(self, lengths: Sequence[int], minibatches: Sequence[int]) -> list[tuple[int, ...]]:
        """Trajectories of a wave for each rank, ascending.

        `lengths` are the tokens of the wave's trajectories, `minibatches` the first epoch's minibatch of each.
        """
        ranks: list[list[int]] = [[] for _ in range(self.num_ranks)]
        for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            rank = self._next_rank(minibatches[i])
            ranks[rank].append(i)
            self._minibatch_tokens[minibatches[i]][rank] += lengths[i]
            self._tokens[rank] += lengths[i]
        return [tuple(sorted(indices)) for indices in ranks]

    def _next_rank(self, minibatch: int) -> int:
        """The rank with the fewest tokens of the minibatch, of such the one with the fewest in all, of such the first."""
        if minibatch not in self._lightest:
            self._minibatch_tokens[minibatch] = [0] * self.num_ranks
            self._lightest[minibatch] = [(0, 0, rank) for rank in range(self.num_ranks)]
        loads, heap = self._minibatch_tokens[minibatch], self._lightest[minibatch]
        while True:
            *noted, rank = heap[0]
            if noted == [loads[rank], self._tokens[rank]]:
                return rank  # loads only grow: what lags behind is no lighter than it says
            heapq.heapreplace(heap, (loads[rank], self._tokens[rank], rank))


def lockstep(ranks: Sequence[Sequence[tuple[Key, ...]]]) -> list[tuple[tuple[Key, ...], ...]]:
    """The same number of micro-batches for every rank, at least one: a short rank gets empty (dummy) ones."""
    count = max(1, *(len(batches) for batches in ranks))
    return [(*batches, *[()] * (count - len(batches))) for batches in ranks]


def permutation(num: int, *, seed: int, label: str) -> list[int]:
    """A seeded order of 0 .. num - 1; `label` says what for, so that no two uses share one."""
    order = list(range(num))
    random.Random(hashlib.sha256(f"{seed}/{label}".encode()).digest()).shuffle(order)
    return order


def minibatches_of(num_trajectories: int, num_minibatches: int, *, seed: int, step: int, epoch: int) -> list[int]:
    """For each trajectory of the step (in the step's order) its minibatch in this epoch. Independent of ranks and waves."""
    size = num_trajectories // num_minibatches
    assert size * num_minibatches == num_trajectories, (num_trajectories, num_minibatches)
    minibatch = [0] * num_trajectories
    for place, trajectory in enumerate(permutation(num_trajectories, seed=seed, label=f"minibatches/{step}/{epoch}")):
        minibatch[trajectory] = place // size
    return minibatch
