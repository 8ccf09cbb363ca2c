"""Changed weights for the weight sync's drill, and the exact ones back.

The change is made where the model computes: in place, in each rank's own storage, so that it needs no collective and the master weights
are never touched.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

from actors.engine.sharding import release

SCALE = 0.05
"""Standard deviation of the factor by which each weight is changed. Large enough to show in bf16 (SmolLM2-135M: answers move by 0.46
nats a token in the mean, where bf16 rounding moves them by 0.03), and small enough to leave a model whose rounding errors stay small."""


Kept = list[tuple[nn.Parameter, Tensor, Tensor]]
"""Each parameter, this rank's storage of it, and a copy of what that held."""


def perturb(module: nn.Module, *, seed: int, rank: int) -> Kept:
    """Multiplies every weight by 1 + SCALE x normal noise; returns what `restore` needs.

    Replicated weights change alike on every rank; of sharded ones each rank changes its own part.
    """
    kept = []
    for name, parameter in module.named_parameters():
        # DeepSpeed keeps a ZeRO-3 parameter's part in `ds_tensor`; the parameter itself is empty while it is not gathered
        shard = getattr(parameter, "ds_tensor", None)
        release(parameter)
        storage = parameter.data if shard is None else shard.data
        kept.append((parameter, storage, storage.clone()))
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{0 if shard is None else rank}".encode()))
        noise = torch.randn(storage.shape, generator=generator).to(storage.device, storage.dtype)
        storage.mul_(1 + SCALE * noise)
    return kept


def restore(kept: Kept) -> None:
    """Puts the copies back, bit for bit."""
    for parameter, storage, copy in kept:
        release(parameter)
        storage.copy_(copy)
