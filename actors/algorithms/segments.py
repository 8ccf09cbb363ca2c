"""Which trajectory a flat token belongs to.

Legend: `B` trajectories, `T` tokens, `N` unmasked tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unmasked_trajectories(loss_mask: Tensor, cu_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Flat positions of the unmasked tokens and the trajectory of each: int64 [N], int64 [N], from bool [T] and int64 [B + 1].

    Tokens behind the last trajectory (a dummy batch has one) must be masked.
    """
    positions = loss_mask.nonzero().squeeze(-1)
    trajectories = torch.bucketize(positions, cu_lengths[1:].to(positions.device), right=True)
    assert not len(positions) or int(trajectories[-1]) < len(cu_lengths) - 1, (
        "an unmasked token belongs to no trajectory"
    )
    return positions, trajectories


def num_unmasked(loss_mask: Tensor, cu_lengths: Tensor) -> Tensor:
    """Unmasked tokens of each trajectory: int64 [B]."""
    _, trajectories = unmasked_trajectories(loss_mask, cu_lengths)
    return torch.bincount(trajectories, minlength=len(cu_lengths) - 1)


def last_unmasked(loss_mask: Tensor, cu_lengths: Tensor) -> Tensor:
    """Flat position of each trajectory's last unmasked token: int64 [B].

    Raises:
        ValueError: naming the trajectories that have none.
    """
    positions, trajectories = unmasked_trajectories(loss_mask, cu_lengths)
    last = torch.full((len(cu_lengths) - 1,), -1, dtype=torch.int64, device=loss_mask.device)
    last = last.scatter_reduce(0, trajectories, positions, "amax")
    if bool((last < 0).any()):
        raise ValueError(f"trajectories without an unmasked token: {(last < 0).nonzero().squeeze(-1).tolist()}")
    return last
