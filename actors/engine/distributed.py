"""The process group of one role's ranks."""

from __future__ import annotations

import os
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist

from actors.context import RankContext


def join_process_group(context: RankContext) -> None:
    """Joins the ranks of `context.role`; every collective afterwards fails after `collective_timeout_s` instead of waiting without end.

    Address and port come from the environment (MASTER_ADDR, MASTER_PORT). Does nothing where this process has joined already. Comes
    before a model is loaded that is sharded while it is built (ZeRO-3).

    Raises:
        RuntimeError: if the group that was joined is not the one that `context` describes.
    """
    if context.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        deepspeed.init_distributed(
            dist_backend="nccl" if context.device == "cuda" else "gloo",
            timeout=timedelta(seconds=context.collective_timeout_s),
            rank=context.rank,
            world_size=context.world_size,
            auto_mpi_discovery=False,
            verbose=False,
        )
    joined = (dist.get_rank(), dist.get_world_size())
    if joined != (context.rank, context.world_size):
        raise RuntimeError(
            f"{context.role} joined as rank {joined[0]} of {joined[1]}, not {context.rank} of {context.world_size}"
        )


def device_of(context: RankContext) -> torch.device:
    """Where this rank's tensors live."""
    if context.device == "cuda":
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")
