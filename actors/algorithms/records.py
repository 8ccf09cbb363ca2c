"""The records of one PPO step: what is produced at each stage and handed on.

Legend: `B` trajectories, `T` tokens of all trajectories of a record together (flat, no padding), `b` and `t` one of them.

Alignment, once for the whole repository: every array of a trajectory has the trajectory's length, and what is said of a token stands at
the token's own index. `logprobs[t]` is log p(token t | tokens before t), `values[t]` is the value of the state before token t (the head
read at position t - 1), `loss_mask[t]` says that the policy chose token t. Nothing can be said of a trajectory's first token: its
log-probability and value are 0 and its loss mask is False.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Tokens `start` (inclusive) to `end` (exclusive) of one trajectory were sampled from the weights of `policy_version`."""

    start: int
    end: int
    policy_version: int


def flat_positions(cu_lengths: Tensor, indices: Sequence[int]) -> Tensor:
    """Positions, in a flat array, of the tokens of the sequences `indices`, in that order: int64 [T of the selection]."""
    bounds = cu_lengths.tolist()
    pieces = [torch.arange(bounds[i], bounds[i + 1]) for i in indices]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)


def cumulative(lengths: Sequence[int]) -> Tensor:
    """Cumulative lengths with a leading 0: int64 [B + 1]. Lengths 3, 2 give 0, 3, 5."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectories:
    """Prompts and what followed them, flat.

    Two trajectories, prompt tokens 5 6 7 answered by 8 2 and prompt 5 answered by 9, are
    `tokens = [5, 6, 7, 8, 2, 5, 9]`, `cu_lengths = [0, 5, 7]`, `loss_mask = [F, F, F, T, T, F, T]`.
    """

    ids: tuple[str, ...]
    """[B] unique in the run: `step/prompt/sample`, zero-padded so that they sort."""
    prompt_ids: tuple[str, ...]
    """[B] the prompt's id in its dataset."""
    tokens: Tensor
    """int64 [T]"""
    cu_lengths: Tensor
    """int64 [B + 1]"""
    loss_mask: Tensor
    """bool [T]: the policy chose this token. The end token is part of the response."""
    rollout_logprobs: Tensor
    """float32 [T]: of the distribution sampled from, when the token was sampled; 0 where the policy chose nothing."""
    truncated: Tensor
    """bool [B]: cut off by the length limit, not ended by an end token."""
    version_spans: tuple[tuple[VersionSpan, ...], ...]
    """[B] which weights chose the tokens."""
    turn_offsets: tuple[tuple[int, ...], ...]
    """[B] index within the trajectory at which each turn after the prompt starts; one turn today."""

    def __post_init__(self) -> None:
        num, total = len(self.ids), int(self.cu_lengths[-1])
        assert self.cu_lengths.shape == (num + 1,) and int(self.cu_lengths[0]) == 0, self.cu_lengths.shape
        for name in ("tokens", "loss_mask", "rollout_logprobs"):
            assert getattr(self, name).shape == (total,), f"{name} {tuple(getattr(self, name).shape)} is not [{total}]"
        assert len(self.prompt_ids) == len(self.version_spans) == len(self.turn_offsets) == num
        assert self.truncated.shape == (num,)
        assert self.loss_mask.dtype == torch.bool and self.truncated.dtype == torch.bool
        assert not bool(self.loss_mask[self.cu_lengths[:-1]].any()), "no policy chooses a trajectory's first token"

    @property
    def lengths(self) -> list[int]:
        """[B] tokens of each trajectory, prompt included."""
        return self.cu_lengths.diff().tolist()

    def select(self, indices: Sequence[int]) -> Trajectories:
        """The trajectories `indices`, in that order."""
        positions = flat_positions(self.cu_lengths, indices)
        lengths = self.lengths
        return Trajectories(
            ids=tuple(self.ids[i] for i in indices),
            prompt_ids=tuple(self.prompt_ids[i] for i in indices),
            tokens=self.tokens[positions],
            cu_lengths=cumulative([lengths[i] for i in indices]),
            loss_mask=self.loss_mask[positions],
            rollout_logprobs=self.rollout_logprobs[positions],
            truncated=self.truncated[list(indices)] if indices else self.truncated[:0],
            version_spans=tuple(self.version_spans[i] for i in indices),
            turn_offsets=tuple(self.turn_offsets[i] for i in indices),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenColumn:
    """One number per token, for some trajectories of a wave: log-probabilities, values or advantages, as one rank computed them."""

    wave: int
    indices: tuple[int, ...]
    """[B] which trajectories of the wave, in the order of the data."""
    cu_lengths: Tensor
    """int64 [B + 1]"""
    data: Tensor
    """float32 [T]"""

    def __post_init__(self) -> None:
        assert self.cu_lengths.shape == (len(self.indices) + 1,)
        assert self.data.shape == (int(self.cu_lengths[-1]),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreColumn:
    """One number per trajectory, for some trajectories of a wave: the reward of the whole answer, before KL."""

    wave: int
    indices: tuple[int, ...]
    scores: Tensor
    """float32 [B]"""

    def __post_init__(self) -> None:
        assert self.scores.shape == (len(self.indices),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """What the losses eat: trajectories of one rank and one wave, with everything that was said of them."""

    trajectories: Trajectories
    scores: Tensor
    """float32 [B] reward of the answer, normalised and clipped, penalties included."""
    rewards: Tensor
    """float32 [T] score at the last response token, minus the KL penalty at each where it is in the reward."""
    old_logprobs: Tensor
    """float32 [T]"""
    reference_logprobs: Tensor
    """float32 [T]; equal to `old_logprobs` where the run has no reference."""
    values: Tensor
    """float32 [T]"""
    advantages: Tensor
    """float32 [T], not yet whitened: mean and deviation of the whole step come with the update."""
    returns: Tensor
    """float32 [T]"""

    def __post_init__(self) -> None:
        shape = self.trajectories.tokens.shape
        assert self.scores.shape == self.trajectories.truncated.shape
        for name in ("rewards", "old_logprobs", "reference_logprobs", "values", "advantages", "returns"):
            assert getattr(self, name).shape == shape, (
                f"{name} {tuple(getattr(self, name).shape)} is not {tuple(shape)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """One micro-batch as the models read it: sequences one behind the other, positions restarting at 0 for each.

    A dummy batch (`num_sequences == 0`) still has one token, so that every rank runs the same collectives; nothing is read from it.
    """

    tokens: Tensor
    """int64 [T]"""
    position_ids: Tensor
    """int64 [T]"""
    cu_lengths: Tensor
    """int64 [B + 1]"""
    loss_mask: Tensor
    """bool [T]"""

    @property
    def num_sequences(self) -> int:
        return len(self.cu_lengths) - 1

    @staticmethod
    def from_flat(tokens: Tensor, cu_lengths: Tensor, loss_mask: Tensor) -> PackedBatch:
        """Packs flat sequences [T]; with none, the dummy batch of one masked token 0."""
        if len(cu_lengths) == 1:
            zero = torch.zeros(1, dtype=torch.int64)
            return PackedBatch(tokens=zero, position_ids=zero, cu_lengths=zero, loss_mask=zero.bool())
        starts = torch.repeat_interleave(cu_lengths[:-1], cu_lengths.diff())
        position_ids = torch.arange(len(tokens), dtype=torch.int64) - starts
        return PackedBatch(tokens=tokens, position_ids=position_ids, cu_lengths=cu_lengths, loss_mask=loss_mask)
