"""What a rank knows of itself and its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RankContext:
    """One rank of one role. Its environment (RANK, WORLD_SIZE, MASTER_ADDR, ...) agrees with it and is set before its process starts."""

    role: str
    rank: int
    world_size: int
    device: Literal["cpu", "cuda"]
    threads: int
    """OMP_NUM_THREADS"""
    seed: int
    deterministic: bool
    collective_timeout_s: float
    run_dir: str
    """The run directory: an absolute path, or a URL."""
