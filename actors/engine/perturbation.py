"""Changed weights for the weight sync's drill, and the exact ones back.

The change is made where the model computes: in place, in each rank's own storage, so that it needs no collective and the master weights
are never touched.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

SCALE = 0.3
"""Standard deviation of the factor by which each weight is changed: large enough to show in bf16."""


def perturb(module: nn.Module, *, seed: int, rank: int) -> list[tuple[Tensor, Tensor]]:
    """Multiplies every weight by 1 + SCALE x normal noise; returns each changed tensor with a copy of what it held.

    Replicated weights change alike on every rank; of sharded ones each rank changes its own part.
    """
    kept = []
    for name, parameter in module.named_parameters():
        # DeepSpeed keeps a ZeRO-3 parameter's part in `ds_tensor`; the parameter itself is empty while it is not gathered
        shard = getattr(parameter, "ds_tensor", None)
        storage = parameter.data if shard is None else shard.data
        kept.append((storage, storage.clone()))
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{0 if shard is None else rank}".encode()))
        noise = torch.randn(storage.shape, generator=generator).to(storage.device, storage.dtype)
        storage.mul_(1 + SCALE * noise)
    return kept


def restore(kept: list[tuple[Tensor, Tensor]]) -> None:
    """Puts the copies back, bit for bit."""
    for storage, copy in kept:
        storage.copy_(copy)
