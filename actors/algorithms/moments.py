"""Count, mean and sum of squared deviations of numbers that live on several ranks, merged without seeing the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Of no numbers at all: count 0, mean 0, m2 0."""

    count: int
    mean: float
    m2: float
    """Sum of squared deviations from the mean."""

    def __post_init__(self) -> None:
        assert self.count >= 0, self
        assert self.m2 >= 0, self

    @property
    def unbiased_variance(self) -> float:
        """m2 / (count - 1); 0 for fewer than two numbers, of which there is no spread to speak."""
        return self.m2 / (self.count - 1) if self.count > 1 else 0.0


def merge(parts: Iterable[Moments]) -> Moments:
    """Moments of all numbers together (Chan, Golub and LeVeque 1979, eq. 2.1), merged in the order given.

    Rounding depends on the order, so callers pass shards in shard order, never in the order of arrival. Parts with one common mean and
    no spread merge to exactly that mean and no spread.
    """
    count, mean, m2 = 0, 0.0, 0.0
    for part in parts:
        if part.count == 0:
            continue
        total = count + part.count
        delta = part.mean - mean
        m2 += part.m2 + delta * delta * count * part.count / total
        mean = part.mean if count == 0 else mean + delta * part.count / total
        count = total
    return Moments(count=count, mean=mean, m2=m2)
