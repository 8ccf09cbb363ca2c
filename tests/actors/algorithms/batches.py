"""Random flat batches for the tests of the pure functions.

Legend: `B` trajectories, `T` tokens of all of them, flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.algorithms.records import cumulative, flat_positions

JUNK = (float("nan"), float("inf"), float("-inf"), 1e30)
ARRAYS = ("new", "old", "rollout", "reference", "advantages", "rewards", "values", "old_values", "returns", "entropy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    loss_mask: Tensor
    """bool [T]"""
    cu_lengths: Tensor
    """int64 [B + 1]"""
    arrays: dict[str, Tensor]
    """[T] each"""

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    @property
    def num(self) -> int:
        return len(self.cu_lengths) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.loss_mask.sum())

    def rows(self) -> list[list[int]]:
        """Flat positions of each trajectory's unmasked tokens."""
        bounds = self.cu_lengths.tolist()
        mask = self.loss_mask.tolist()
        return [[t for t in range(bounds[b], bounds[b + 1]) if mask[t]] for b in range(self.num)]

    def select(self, indices: Sequence[int]) -> Batch:
        """As many trajectories as `indices`, in that order; none gives a dummy of one masked token."""
        if not indices:
            one = {name: torch.zeros(1, dtype=array.dtype) for name, array in self.arrays.items()}
            return Batch(
                loss_mask=torch.zeros(1, dtype=torch.bool), cu_lengths=torch.zeros(1, dtype=torch.int64), arrays=one
            )
        positions = flat_positions(self.cu_lengths, indices)
        lengths = self.cu_lengths.diff().tolist()
        return Batch(
            loss_mask=self.loss_mask[positions],
            cu_lengths=cumulative([lengths[i] for i in indices]),
            arrays={name: array[positions] for name, array in self.arrays.items()},
        )

    def with_junk(self) -> Batch:
        """The same, with NaN, infinities and large numbers in all masked places."""
        junk = torch.tensor(JUNK).repeat(len(self.loss_mask))[: len(self.loss_mask)]
        arrays = {name: torch.where(self.loss_mask, array, junk.to(array.dtype)) for name, array in self.arrays.items()}
        return Batch(loss_mask=self.loss_mask, cu_lengths=self.cu_lengths, arrays=arrays)


def random_batch(seed: int, *, num: int = 5, longest: int = 9, dtype: torch.dtype = torch.float64) -> Batch:
    """`num` trajectories of 2 to `longest` tokens; each has an unmasked token, the first is never one, holes are common."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (num,), generator=generator).tolist()
    masks = []
    for length in lengths:
        mask = torch.rand(length, generator=generator) < 0.6
        mask[int(torch.randint(1, length, (1,), generator=generator))] = True
        mask[0] = False
        masks.append(mask)
    arrays = {name: torch.randn(sum(lengths), generator=generator, dtype=torch.float64).to(dtype) for name in ARRAYS}
    # Ratios near 1, as in training, with some beyond the clip bounds.
    for name, spread in (("new", 0.3), ("old", 0.3), ("rollout", 0.6), ("reference", 0.3)):
        arrays[name] = spread * arrays[name] - 1.5
    return Batch(loss_mask=torch.cat(masks), cu_lengths=cumulative(lengths), arrays=arrays)


def random_split(seed: int, num: int, num_parts: int) -> list[list[int]]:
    """`range(num)` shuffled and dealt into `num_parts` parts, of which some may be empty."""
    generator = torch.Generator().manual_seed(seed)
    owners = torch.randint(0, num_parts, (num,), generator=generator).tolist()
    order = torch.randperm(num, generator=generator).tolist()
    return [[i for i in order if owners[i] == part] for part in range(num_parts)]
