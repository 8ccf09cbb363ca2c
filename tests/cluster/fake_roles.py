"""Roles that make up tensors of the right sizes instead of computing them. Loads nothing heavy: ranks import it before their environment
is set."""

from __future__ import annotations

import hashlib
from typing import Any

from actors.algorithms.moments import Moments
from actors.role import Role
from actors.tasks import (
    Busy,
    ExperienceOrder,
    ExperienceSummary,
    GenerationUnit,
    UpdateReport,
    UpdateShard,
    WaveShard,
    WaveSummary,
    WrittenFile,
)

BYTES_PER_TOKEN = 4
BUSY = Busy(started=1.8e9, seconds=0.123456789)


def digest(*of: object) -> str:
    return hashlib.sha256(repr(of).encode()).hexdigest()


class Fake(Role):
    """Columns are [T] float32: as many bytes as a role's own."""

    def __init__(self, context: Any, tokens: int) -> None:
        super().__init__(context)
        self.tokens = tokens

    def start(self) -> None:
        pass

    def column(self, shard: WaveShard) -> tuple[bytes, Busy]:
        return bytes(BYTES_PER_TOKEN * self.tokens * len(shard.indices)), BUSY


class FakeRollout(Fake):
    def generate(self, unit: GenerationUnit) -> tuple[bytes, WaveSummary]:
        slots = [(slot, n) for slot in unit.prompt_slots for n in range(unit.responses_per_prompt)]
        num = len(slots)
        return bytes(8 * self.tokens * num), WaveSummary(
            wave=unit.wave,
            lengths=(self.tokens,) * num,
            num_loss_tokens=(self.tokens - 5,) * num,
            prompt_ids=tuple(f"prompt-{slot:06d}" for slot, _ in slots),
            truncated=(False,) * num,
            token_digest=digest(unit.step, *slots),
            busy=BUSY,
        )


class FakeScorer(Fake):
    def logprobs(self, shard: WaveShard, trajectories: bytes) -> tuple[bytes, Busy]:
        return self.column(shard)

    def score(self, shard: WaveShard, trajectories: bytes) -> tuple[bytes, Busy]:
        return self.column(shard)

    def update(self, shard: UpdateShard, *columns: Any) -> UpdateReport:
        return UpdateReport(minibatches=({"policy/loss": 0.123456789},), grad_norms=(0.123456789,), busy=BUSY)


class FakeCritic(FakeScorer):
    def values(self, shard: WaveShard, trajectories: bytes) -> Busy:
        return BUSY

    def build_experience(self, order: ExperienceOrder, *columns: bytes) -> tuple[bytes, ExperienceSummary]:
        num = len(columns[0]) // (BYTES_PER_TOKEN * self.tokens)

        return columns[0], ExperienceSummary(
            wave=order.wave,
            advantage_moments=Moments(count=num * self.tokens, mean=0.5, m2=0.123456789),
            score_moments=Moments(count=num, mean=0.123456789, m2=0.123456789),
            source_sums=(0.123456789,),
            kl_sum=0.123456789,
            logprob_gap=1e-6,
            reward_digest=digest("rewards", order.wave),
            advantage_digest=digest("advantages", order.wave),
            file=WrittenFile(name=order.file, sha256=digest(order.file), num_bytes=123456),
        )
