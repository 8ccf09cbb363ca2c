"""Sequences to micro-batches of a token budget. Plain Python, a function of lengths alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Key = TypeVar("Key")


def pack(lengths: Mapping[Key, int], budget: int) -> list[tuple[Key, ...]]:
    """Micro-batches of at most `budget` tokens: first fit, longest first. A sequence longer than the budget is an error of the caller's."""
    bins: list[tuple[int, list[Key]]] = []
    for key, length in sorted(lengths.items(), key=lambda item: -item[1]):
        assert length <= budget, f"sequence of {length} tokens, budget {budget}"
        for place, (used, keys) in enumerate(bins):
            if used + length <= budget:
                keys.append(key)
                bins[place] = (used + length, keys)
                break
        else:
            bins.append((length, [key]))
    return [tuple(keys) for _, keys in bins]
