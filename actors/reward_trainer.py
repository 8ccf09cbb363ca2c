"""A rank of stage `reward`: a scalar head over a backbone, trained on people's rankings.

Legend: `N` groups, `K` answers of one group, `G` answers of a micro-batch, `P` pairs of differently ranked answers.

Imports of torch and of everything above it stand inside methods: see `actors.role`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations
from typing import TYPE_CHECKING, Any, ClassVar

from actors.algorithms.calibration_bin import CalibrationBin
from actors.context import RankContext
from actors.errors import NotFinite, UserError
from actors.supervised_trainer import ItemsReport, MicroBatch, MicroBatches, SupervisedTrainer
from configs.schema.reward import RewardStage

if TYPE_CHECKING:
    from torch import Tensor

    from actors.algorithms.records import PackedBatch
    from actors.data.rankings import Group, RankingDataset
    from actors.data.tokenizer import Tokenizer
    from actors.models.wrapped import WrappedModel

STATS_FILE = "preceptor_reward.json"
"""Where PPO finds mean and deviation of an exported model's scores."""
NUM_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutScores:
    """What one rank's part of the held-out groups scored."""

    groups: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]
    """[K] for each group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardEvaluation:
    """How far the model can be believed, on groups that it never trained on. Stored beside an exported model."""

    num_groups: int
    num_pairs: int
    """Pairs of differently ranked answers of one group."""
    pair_accuracy: float
    """Share of pairs whose better answer scores higher; equal scores count half."""
    ece: float
    """Expected calibration error of P(a better than b) = sigmoid(score a - score b), over 10 bins."""
    length_correlation: float | None
    """Pearson's r of an answer's score and its tokens; None where one of them does not vary."""
    mean: float
    """Of all answers' scores."""
    std: float
    """Unbiased."""
    data_fingerprint: str
    bins: tuple[CalibrationBin, ...] | None = None
    """The 10 bins of `ece`; None for a model that was evaluated before they were stored. Every pair is counted both ways round."""

    @staticmethod
    def from_json(found: dict[str, Any]) -> RewardEvaluation:
        """Raises TypeError for anything but what `asdict` gives; a missing `bins` is None."""
        bins = found.get("bins")
        if bins is not None:
            bins = tuple(CalibrationBin(**one) for one in bins)
        return RewardEvaluation(**{**found, "bins": bins})

    @property
    def merit(self) -> float:
        """More pairs the right way round are better."""
        return self.pair_accuracy

    def metrics(self) -> dict[str, float]:
        return {"held_out/pair_accuracy": self.pair_accuracy, "held_out/ece": self.ece}

    def described(self) -> str:
        length = "none" if self.length_correlation is None else f"{self.length_correlation:+.2f}"
        return (
            f"held out: {self.num_pairs} pairs, accuracy {self.pair_accuracy:.3f}, ECE {self.ece:.3f}, "
            f"correlation with length {length}, scores {self.mean:.3f} +- {self.std:.3f}"
        )


class RewardTrainer(SupervisedTrainer):
    """The reward model that learns."""

    shard_folder: ClassVar[str] = "reward"
    evaluation_file: ClassVar[str] = STATS_FILE

    def __init__(self, context: RankContext, config: RewardStage) -> None:
        super().__init__(context)
        self.config: RewardStage = config

    def load_data(self, tokenizer: Tokenizer) -> str:
        """The rankings.

        Raises:
            UserError: for bad data, or a group that is larger than a micro-batch may be.
        """
        from actors.data.rankings import RankingDataset

        self.data: RankingDataset = RankingDataset.load(self.config.data, tokenizer)
        check_group_lengths(self.data, self.config.model.engine.micro_batch_tokens)
        return self.data.fingerprint

    def load_module(self, model: str) -> WrappedModel:
        from actors.models.scalar_head import load_scalar

        engine, context = self.config.model.engine, self.context
        return load_scalar(model, engine, device=context.device, fresh_head_ok=True, seed=context.seed)

    def items(self) -> ItemsReport:
        return groups_report(self.data)

    def packed(self, items: Sequence[int]) -> PackedBatch:
        return batch_of([self.data.group(item) for item in items])

    def loss(
        self, micro: MicroBatch, outputs: tuple[Tensor, ...], global_count: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Plackett-Luce, which for pairs is Bradley-Terry. Where a pair has a margin, the better answer has to lead by it."""
        from actors.algorithms.losses import plackett_luce_loss

        _, scores = outputs
        groups = [self.data.group(item) for item in micro.items]
        ranks, cu_groups = (part.to(scores.device) for part in ranks_of(groups))
        margins = margins_of(groups).to(scores.device)
        loss, _ = plackett_luce_loss(scores - margins, ranks, cu_groups, global_count=global_count)
        # how often the scores are right is asked without margins
        _, metrics = plackett_luce_loss(scores.detach(), ranks, cu_groups, global_count=global_count)
        return loss, {"loss": loss.detach(), "pair_accuracy": metrics["accuracy"]}

    def evaluate(self, micro_batches: MicroBatches) -> HeldOutScores:
        """Scores of the answers of this rank's held-out groups (collective)."""
        scores: dict[int, tuple[float, ...]] = {}
        for micro in micro_batches:
            groups = [self.data.group(i) for i in micro]
            answers = iter(self.engine.forward(batch_of(groups))[1].tolist())
            for index, group in zip(micro, groups, strict=True):
                scores[index] = tuple(next(answers) for _ in group.sequences)
        return HeldOutScores(groups=tuple(scores), scores=tuple(scores.values()))

    def summarise(self, parts: Sequence[HeldOutScores]) -> RewardEvaluation:
        found = {index: scores for part in parts for index, scores in zip(part.groups, part.scores, strict=True)}
        assert set(found) == set(self.data.held_out), "every held-out group is scored once"
        return evaluation_of(
            [self.data.group(index) for index in sorted(found)],
            [found[index] for index in sorted(found)],
            data_fingerprint=self.data.fingerprint,
        )


def groups_report(data: RankingDataset) -> ItemsReport:
    """Ranked groups as items: each weighs the same."""
    return ItemsReport(
        lengths=tuple(data.lengths),
        weights=(1,) * len(data),
        num_train=len(data.train),
        num_dropped=data.num_dropped,
        data_fingerprint=data.fingerprint,
    )


def check_group_lengths(data: RankingDataset, micro_batch_tokens: int) -> None:
    """UserError for a group that no micro-batch can take: its answers are compared in one."""
    for index, length in enumerate(data.lengths):
        if length > micro_batch_tokens:
            raise UserError(
                f"model.engine.micro_batch_tokens: got {micro_batch_tokens}; the answers of {data.group(index).where} have {length} tokens "
                "together, and must fit in one micro-batch. Raise it, or lower data.max_tokens"
            )


def batch_of(groups: Sequence[Group], *, answers_chosen: bool = False) -> PackedBatch:
    """All answers of the groups, prompt and answer each a sequence of its own; none give the dummy. `answers_chosen` unmasks the answers'
    tokens, where log-probabilities are asked of them."""
    import torch

    from actors.algorithms.records import PackedBatch, cumulative

    sequences = [sequence for group in groups for sequence in group.sequences]
    answers = [length for group in groups for length in group.answer_lengths]
    tokens = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64)
    mask = torch.zeros(len(tokens), dtype=torch.bool)
    cu_lengths = cumulative([len(sequence) for sequence in sequences])
    if answers_chosen:
        for end, length in zip(cu_lengths[1:].tolist(), answers, strict=True):
            mask[end - length : end] = True
    return PackedBatch.from_flat(tokens, cu_lengths, mask)


def ranks_of(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """Ranks int64 [G] and cumulative numbers of answers int64 [N + 1]."""
    import torch

    from actors.algorithms.records import cumulative

    ranks = torch.tensor([rank for group in groups for rank in group.ranks], dtype=torch.int64)
    return ranks, cumulative([len(group.ranks) for group in groups])


def margins_of(groups: Sequence[Group]) -> Tensor:
    """What is taken from each answer's score before it is compared: float32 [G], a pair's margin at its better answer, else 0."""
    import torch

    return torch.tensor(
        [group.margin or 0.0 if rank == min(group.ranks) else 0.0 for group in groups for rank in group.ranks]
    )


def evaluation_of(
    groups: Sequence[Group], scores: Sequence[Sequence[float]], *, data_fingerprint: str
) -> RewardEvaluation:
    """Accuracy, calibration and spread of the groups' scores ([K] each).

    Every pair enters the calibration both ways round, (p, better) and (1 - p, worse): of the better answer alone the outcome is always
    "better", which says nothing of calibration.

    Raises:
        NotFinite: for a score that is not finite.
    """
    import torch

    from actors.algorithms.calibration import (
        calibration_bins,
        expected_calibration_error,
        pair_accuracy,
        pearson_correlation,
    )

    flat = torch.tensor([score for of_group in scores for score in of_group], dtype=torch.float64)
    if not bool(flat.isfinite().all()):
        raise NotFinite("reward: a held-out answer's score is not finite")
    pairs = [
        (of_group[a], of_group[b])
        for group, of_group in zip(groups, scores, strict=True)
        for a, b in permutations(range(len(of_group)), 2)
        if group.ranks[a] < group.ranks[b]
    ]
    better, worse = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    right = torch.sigmoid(better - worse)
    prob = torch.cat([right, 1 - right])
    outcome = torch.cat([torch.ones_like(right), torch.zeros_like(right)])
    lengths = torch.tensor([length for group in groups for length in group.answer_lengths], dtype=torch.float64)
    correlation = pearson_correlation(flat, lengths)
    return RewardEvaluation(
        num_groups=len(groups),
        num_pairs=len(pairs),
        pair_accuracy=pair_accuracy(better, worse),
        ece=expected_calibration_error(prob, outcome, num_bins=NUM_BINS),
        length_correlation=None if math.isnan(correlation) else correlation,
        mean=float(flat.mean()),
        std=float(flat.std()),
        data_fingerprint=data_fingerprint,
        bins=calibration_bins(prob, outcome, num_bins=NUM_BINS),
    )


def load_reward_stats(model: str) -> RewardEvaluation:
    """What stage `reward` stored with the reward model `model` (folder or hub name).

    Raises:
        UserError: where there is nothing, or no spread to divide by.
    """
    from actors.models.checks import resolve_folder

    path = resolve_folder(model, weights=False) / STATS_FILE
    remedy = "Use a model that stage reward exported, or set reward.model.normalise: false"
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"reward.model.model: {model!r} has no {STATS_FILE} with the mean and deviation of its scores. {remedy}"
        ) from error
    except ValueError as error:
        raise UserError(f"reward.model.model: {path} is not JSON: {error}. {remedy}") from error
    required = {field.name for field in fields(RewardEvaluation)} - {"bins"}
    if not isinstance(found, dict) or set(found) - {"bins"} != required:
        raise UserError(
            f"reward.model.model: {path} must have exactly the keys {', '.join(sorted(required))}. {remedy}"
        )
    try:
        evaluation = RewardEvaluation.from_json(found)
    except TypeError as error:
        raise UserError(
            f"reward.model.model: {path}: bins are not those of an evaluation: {error}. {remedy}"
        ) from error
    if not evaluation.std > 0:
        raise UserError(
            f"reward.model.model: {path}: std must be > 0, got {evaluation.std}: this model gives every answer one score. {remedy}"
        )
    return evaluation
