"""What the orchestrator sends to the roles and hears back: plain numbers and indices, never a token.

Legend: `B` trajectories of a wave or shard.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from actors.algorithms.moments import Moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """When a rank worked on a call, to see who waits for whom."""

    started: float
    """Seconds since the epoch, by the rank's own clock."""
    seconds: float

    @staticmethod
    def since(started: float) -> Busy:
        """From `started` (`time.time()`) to now."""
        return Busy(started=started, seconds=time.time() - started)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationUnit:
    """One wave's prompts for one engine."""

    step: int
    wave: int
    prompt_indices: tuple[int, ...]
    """Rows of the dataset."""
    prompt_slots: tuple[int, ...]
    """Each prompt's position in the step: with the sample's number it makes the trajectory's id and seed."""
    responses_per_prompt: int
    seed: int
    """The run's seed."""
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveSummary:
    """What the orchestrator may know of a wave."""

    wave: int
    lengths: tuple[int, ...]
    """[B] tokens, prompt included."""
    num_loss_tokens: tuple[int, ...]
    """[B] tokens that the policy chose."""
    prompt_ids: tuple[str, ...]
    """[B]"""
    truncated: tuple[bool, ...]
    """[B]"""
    token_digest: str
    """sha256 over the trajectories' own in their order, each of its tokens as little-endian int64."""
    busy: Busy


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveShard:
    """One rank's part of one wave. All ranks of a group get the same number of micro-batches; an empty one is a dummy."""

    step: int
    wave: int
    indices: tuple[int, ...]
    """Trajectories of the wave that stay with this rank for the step."""
    micro_batches: tuple[tuple[int, ...], ...]
    """The same trajectories, split by the token budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinibatchShard:
    """One rank's part of one optimizer step."""

    micro_batches: tuple[tuple[tuple[int, int], ...], ...]
    """Micro-batches of (wave, index in the wave)."""
    num_tokens: int
    """Loss tokens of the whole minibatch over all ranks."""
    num_trajectories: int
    """Trajectories of the whole minibatch over all ranks."""
    lr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateShard:
    """One rank's updates of one PPO step, in order over epochs."""

    step: int
    minibatches: tuple[MinibatchShard, ...]
    advantage_moments: Moments | None
    """Of all unmasked tokens of the step; None where advantages are not whitened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """One rank's contributions: summed over ranks they are the whole minibatch's numbers (`max_*`: their maximum)."""

    minibatches: tuple[dict[str, float], ...]
    grad_norms: tuple[float, ...]
    """Global L2 norms before clipping, the same on every rank."""
    busy: Busy


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleReport:
    """A rank that has started."""

    role: str
    rank: int
    num_parameters: int
    peak_memory_bytes: int
    seconds: float
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """A file that a rank has written whole."""

    name: str
    """Relative to the folder that the rank was given."""
    sha256: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperienceOrder:
    """How one rank builds the experience of one wave."""

    step: int
    wave: int
    kl_coef: float
    score_weights: tuple[float, ...]
    """Factor of each source of rewards, in the order in which their columns are passed."""
    num_old: int
    """How many of the columns passed are old log-probabilities; they come first."""
    num_reference: int
    """How many are reference log-probabilities; they come next, then the scores, source by source."""
    num_scores: tuple[int, ...]
    """Score columns of each source."""
    file: str
    """Where the trajectories are written, under the run directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalOrder:
    """How one rank sums up its part of a wave of held-out answers."""

    score_weights: tuple[float, ...]
    """Factor of each source of rewards, in the order in which their columns are passed."""
    num_reference: int
    """How many of the columns passed are reference log-probabilities; they come first, then the scores, source by source."""
    num_scores: tuple[int, ...]
    """Score columns of each source; of the judge last, where there is one beside the sources of rewards."""
    file: str
    """Where the answers are written, under the run directory; the name gets a digest of the content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalSummary:
    """What the orchestrator may know of them: [B], in the order of the shard's trajectories."""

    prompt_ids: tuple[str, ...]
    scores: tuple[float, ...]
    """After weights, clipping and penalties."""
    judged: tuple[float, ...]
    """What the judge says: the scores, where there is none beside them."""
    kl: tuple[float, ...] | None
    """log p - log p_reference summed over the answer's tokens (k1, nats); None without a reference."""
    file: WrittenFile | None
    """The answers, in the folder of the order's `file`; None where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperienceSummary:
    """What the orchestrator may know of one rank's experience of one wave: as many bytes for a thousand trajectories as for one."""

    wave: int
    advantage_moments: Moments
    """Of the chosen tokens."""
    score_moments: Moments
    """Of the trajectories' scores, after weights, clipping and penalties."""
    source_sums: tuple[float, ...]
    """For each source of rewards the sum of its scores, before its weight."""
    kl_sum: float
    """log p_old - log p_reference summed over all chosen tokens (k1, nats)."""
    logprob_gap: float
    """Largest |rollout - old| / max(1, |old|) of a chosen token."""
    reward_digest: str
    """Of the rewards' bit patterns, each trajectory's at its index in the wave (`digest_of_places`)."""
    advantage_digest: str
    """Likewise of the advantages, before whitening."""
    file: WrittenFile | None
    """The trajectories, in the folder of the order's `file`; None where there are none."""
