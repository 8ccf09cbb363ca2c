"""Contexts of ranks that stand alone on a CPU."""

from __future__ import annotations

from pathlib import Path

from actors.context import RankContext


def rank_context(run_dir: str | Path, *, role: str, seed: int = 0, deterministic: bool = False) -> RankContext:
    return RankContext(
        role=role,
        rank=0,
        world_size=1,
        device="cpu",
        threads=1,
        seed=seed,
        deterministic=deterministic,
        collective_timeout_s=60,
        run_dir=str(run_dir),
    )
