"""sha256 of what a step made, small enough for the orchestrator: the same whatever ranks held the parts, and one digest however many."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

MODULUS = 1 << 256


def digest_of(parts: Iterable[str]) -> str:
    """sha256 over digests in the given order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def digest_of_places(contents: Mapping[int, bytes]) -> str:
    """Of contents that each have a place among all: the sum modulo 2^256 of sha256(place, content); 64 hexadecimal digits.

    Sums of disjoint parts add up to the sum of the whole (`sum_of_digests`), so that parts may lie on any ranks. This is AdHash of
    Bellare and Micciancio 1997 ("A new paradigm for collision-free hashing"), section 4: it tells what changed by mistake; whoever may
    choose tens of thousands of contents could make two sets of one sum.
    """
    return _hex(
        int.from_bytes(hashlib.sha256(place.to_bytes(8, "little") + content).digest(), "big")
        for place, content in contents.items()
    )


def sum_of_digests(parts: Iterable[str]) -> str:
    """Of all contents together, from the digests of disjoint parts, in any order."""
    return _hex(int(part, 16) for part in parts)


def _hex(numbers: Iterable[int]) -> str:
    return f"{sum(numbers) % MODULUS:064x}"
