"""What the critic's ranks tell the orchestrator of their experience: by hand, and the same from one rank as from two."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from actors.algorithms.moments import merge
from actors.algorithms.records import Experience, Trajectories, VersionSpan
from actors.critic import summarise
from actors.digests import sum_of_digests
from actors.tasks import ExperienceSummary, WrittenFile
from orchestrator.metrics import step_metrics
from orchestrator.ppo_loop import experience_digests
from orchestrator.ppo_records import Collected, Timeline
from tests.orchestrator.test_evaluation import wave

FILE = WrittenFile(name="w.parquet", sha256="s", num_bytes=1)
LENGTHS = (2, 3, 2)
SCORES = (0.5, -1.0, 2.0)


def experience(*places: int) -> Experience:
    """Of a wave of three trajectories, those at the given places."""
    chance = torch.Generator().manual_seed(0)
    columns = [torch.randn(sum(LENGTHS), generator=chance).split(LENGTHS) for _ in range(6)]
    rewards, old, reference, rollout, advantages, other = (
        torch.cat([torch.zeros(0), *(c[i] for i in places)]) for c in columns
    )
    lengths = [LENGTHS[i] for i in places]
    num = len(places)
    trajectories = Trajectories(
        ids=tuple(f"t{i}" for i in places),
        prompt_ids=tuple(f"p{i}" for i in places),
        tokens=torch.arange(sum(lengths)),
        cu_lengths=torch.tensor([0, *lengths]).cumsum(0),
        loss_mask=torch.tensor([at > 0 for length in lengths for at in range(length)], dtype=torch.bool),
        rollout_logprobs=rollout,
        truncated=torch.zeros(num, dtype=torch.bool),
        version_spans=((VersionSpan(start=0, end=1, policy_version=0),),) * num,
        turn_offsets=((0,),) * num,
    )
    return Experience(
        trajectories=trajectories,
        scores=torch.tensor([SCORES[i] for i in places]),
        rewards=rewards,
        old_logprobs=old,
        reference_logprobs=reference,
        values=other,
        advantages=advantages,
        returns=other,
    )


def summary(*places: int) -> ExperienceSummary:
    made = experience(*places)
    return summarise(0, places, made, [made.scores, 10 * made.scores], FILE)


def test_a_rank_says_sums_moments_and_one_digest() -> None:
    made, said = experience(0, 1, 2), summary(0, 1, 2)
    mask = made.trajectories.loss_mask
    kl = sum(float(made.old_logprobs[t]) - float(made.reference_logprobs[t]) for t in range(7) if mask[t])
    assert said.kl_sum == pytest.approx(kl, abs=1e-5)
    assert said.source_sums == (1.5, 15.0)
    assert (said.score_moments.count, said.score_moments.mean) == (3, 0.5)
    assert said.score_moments.m2 == pytest.approx(0.0 + 1.5**2 + 1.5**2)
    assert said.advantage_moments.count == 4  # all but the first of each
    total = 0
    for place, (start, end) in enumerate(((0, 2), (2, 5), (5, 7))):
        content = place.to_bytes(8, "little") + made.rewards[start:end].numpy().tobytes()
        total += int(hashlib.sha256(content).hexdigest(), 16)
    assert said.reward_digest == f"{total % 2**256:064x}"
    assert said.advantage_digest != said.reward_digest


def test_two_ranks_say_together_what_one_says() -> None:
    one, two = [summary(0, 1, 2)], [summary(1), summary(0, 2)]
    assert sum_of_digests(part.reward_digest for part in two) == one[0].reward_digest
    waves = (wave(0, "p0", "p1", "p2"),)
    assert experience_digests(waves, [one], "p", "c") == experience_digests(waves, [two], "p", "c")
    told = [
        step_metrics(
            Collected(
                waves=waves,
                summaries=(tuple(parts),),
                advantages=(),
                reference=(),
                moments=merge(part.advantage_moments for part in parts),
            ),
            Timeline(phases={"generate": 2.0}),
        )
        for parts in (one, two)
    ]
    assert told[0] == pytest.approx(told[1], abs=1e-12)
    assert (told[0]["score"], told[0]["reward/1"], told[0]["response_tokens"]) == (0.5, 5.0, 4.0)
    assert told[0]["score_std"] == pytest.approx(math.sqrt(4.5 / 3))
    assert told[0]["kl"] == pytest.approx(one[0].kl_sum / 3)


def test_a_rank_without_trajectories_adds_nothing() -> None:
    parts = [summary(0, 1, 2), summary()]
    assert parts[1].score_moments.count == 0
    assert sum_of_digests(part.advantage_digest for part in parts) == parts[0].advantage_digest
