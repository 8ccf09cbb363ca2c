"""Which prompts a step takes. Plain Python, the same on every machine: the orchestrator decides from the seed alone.

There is no cursor to save: a resumed run takes up at the step after the ledger's last, and the step says which rows come.

Legend: `N` prompts of the dataset.
"""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache


@lru_cache(maxsize=4)
def prompt_order(num_prompts: int, epoch: int, seed: int, shuffle: bool) -> tuple[int, ...]:
    """A permutation of the rows [N]: the order of one epoch (from 0). Without `shuffle` the dataset's own.

    The generator is seeded from (seed, epoch) by sha256: two seeds, or two epochs, share nothing.
    """
    order = list(range(num_prompts))
    if shuffle:
        digest = hashlib.sha256(f"prompt order {seed} {epoch}".encode()).digest()
        random.Random(int.from_bytes(digest, "big")).shuffle(order)
    return tuple(order)


def prompts_of_step(step: int, *, prompts_per_step: int, num_prompts: int, seed: int, shuffle: bool) -> list[int]:
    """Rows that step `step` (from 0) takes, [prompts_per_step].

    One endless stream, cut into steps: each row comes once per epoch, a step may end one epoch and begin the next, no row is left out.

    Raises:
        ValueError: where there is no prompt, or the step is negative.
    """
    if num_prompts < 1 or prompts_per_step < 1 or step < 0:
        raise ValueError(
            f"need num_prompts >= 1, prompts_per_step >= 1, step >= 0, got {num_prompts}, {prompts_per_step}, {step}"
        )
    rows = []
    for position in range(step * prompts_per_step, (step + 1) * prompts_per_step):
        epoch, index = divmod(position, num_prompts)
        rows.append(prompt_order(num_prompts, epoch, seed, shuffle)[index])
    return rows
