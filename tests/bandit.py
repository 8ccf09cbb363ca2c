"""The recipe that a new user runs first: an answer of one word, of which one pays."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq


def paying_shares(run_dir: Path) -> list[float]:
    """By step, the share of answers that are the paying word."""
    shares = []
    for folder in sorted((run_dir / "trajectories").iterdir()):
        answers = [
            answer for file in sorted(folder.iterdir()) for answer in pq.read_table(file)["response"].to_pylist()
        ]
        shares.append(sum(answer.strip() == "yes" for answer in answers) / len(answers))
    return shares
