"""One bin of a reliability diagram. A file of its own, because whoever only reads or draws it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBin:
    """What was foretold with about the same probability, and how often it came true."""

    count: int
    mean_prob: float | None
    """Of the probabilities foretold; None for an empty bin."""
    observed_frac: float | None
    """Share that came true; None for an empty bin."""

    def __post_init__(self) -> None:
        empty = self.count == 0
        assert self.count >= 0, self
        assert (self.mean_prob is None, self.observed_frac is None) == (empty, empty), self
