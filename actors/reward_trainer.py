"""A rank of stage `reward`: a scalar head over a backbone, trained on people's rankings.

Legend: `N` groups, `K` answers of one group, `G` answers of a micro-batch, `P` pairs of differently ranked answers.

Imports of torch and of everything above it stand inside methods: see `actors.role`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from actors.context import RankContext
from actors.durable import sync
from actors.errors import NotFinite, UserError
from actors.tasks import Busy, RoleReport, UpdateReport
from actors.trainer import Trainer
from configs.schema.reward import RewardStage

if TYPE_CHECKING:
    from torch import Tensor

    from actors.algorithms.records import PackedBatch
    from actors.data.rankings import Group, RankingDataset

STATS_FILE = "preceptor_reward.json"
DATA_FINGERPRINT = "data_fingerprint"
"""Of the facts that a rank reports."""
NUM_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingReport:
    """What there is to train on; the same on every rank."""

    lengths: tuple[int, ...]
    """[N] tokens of each group, all its answers together: what a micro-batch's budget is spent on."""
    num_train: int
    """Groups 0 to this are trained on, the rest is held out."""
    num_dropped: int
    """Rows left out for their length."""
    num_ties: int
    """Rows left out because they rank all answers the same."""
    data_fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingShard:
    """One rank's part of one optimizer step. All ranks get the same number of micro-batches; an empty one is a dummy."""

    step: int
    micro_batches: tuple[tuple[int, ...], ...]
    """Indices of groups; a group is never split."""
    num_groups: int
    """Groups of the whole step over all ranks."""
    lr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutScores:
    """What one rank's part of the held-out groups scored."""

    groups: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]
    """[K] for each group."""
    busy: Busy


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


class RewardTrainer(Trainer):
    """The reward model that learns."""

    shard_folder: ClassVar[str] = "reward"

    def __init__(self, context: RankContext, config: RewardStage) -> None:
        super().__init__(context)
        self.config = config

    def start(self) -> RoleReport:
        """Loads data, model and engine (collective).

        Raises:
            UserError: for bad data, or a group that is larger than a micro-batch may be.
        """
        from actors.data.rankings import RankingDataset
        from actors.data.tokenizer import load_tokenizer
        from actors.engine.distributed import join_process_group
        from actors.engine.engine import Engine
        from actors.models.scalar_head import load_scalar

        started = time.monotonic()
        model = self.config.model
        assert model.model is not None
        self.data: RankingDataset = RankingDataset.load(self.config.data, load_tokenizer(model.model))
        check_group_lengths(self.data, model.engine.micro_batch_tokens)
        join_process_group(self.context)
        module = load_scalar(
            model.model, model.engine, device=self.context.device, fresh_head_ok=True, seed=self.context.seed
        )
        self.engine = Engine(module, engine=model.engine, optimizer=model.optimizer, context=self.context)
        return self.report(started, **{DATA_FINGERPRINT: self.data.fingerprint})

    def rankings(self) -> RankingReport:
        """What the orchestrator packs micro-batches from. Not collective: any one rank can be asked."""
        return RankingReport(
            lengths=tuple(self.data.lengths),
            num_train=len(self.data.train),
            num_dropped=self.data.num_dropped,
            num_ties=self.data.num_ties,
            data_fingerprint=self.data.fingerprint,
        )

    def update(self, shard: RankingShard) -> UpdateReport:
        """One optimizer step on the step's groups (collective): Plackett-Luce, which for pairs is Bradley-Terry.

        The report's metrics are contributions: summed over ranks they are means over the step's groups.
        """
        from actors.algorithms.losses import plackett_luce_loss

        started = time.time()
        groups = [[self.data.group(i) for i in micro] for micro in shard.micro_batches]

        def loss_of(index: int, outputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
            _, scores = outputs
            ranks, cu_groups = ranks_of(groups[index])
            loss, metrics = plackett_luce_loss(
                scores, ranks.to(scores.device), cu_groups.to(scores.device), global_count=shard.num_groups
            )
            return loss, {"loss": loss.detach(), "pair_accuracy": metrics["accuracy"]}

        metrics = self.engine.forward_backward([batch_of(of_one) for of_one in groups], loss_of)
        norm = self.engine.step(shard.lr)
        return UpdateReport(minibatches=(metrics,), grad_norms=(norm,), busy=Busy.since(started))

    def evaluate(self, micro_batches: tuple[tuple[int, ...], ...]) -> HeldOutScores:
        """Scores of the answers of this rank's held-out groups (collective: the same number of micro-batches on every rank)."""
        started = time.time()
        scores: dict[int, tuple[float, ...]] = {}
        for micro in micro_batches:
            groups = [self.data.group(i) for i in micro]
            answers = iter(self.engine.forward(batch_of(groups))[1].tolist())
            for index, group in zip(micro, groups, strict=True):
                scores[index] = tuple(next(answers) for _ in group.sequences)
        return HeldOutScores(groups=tuple(scores), scores=tuple(scores.values()), busy=Busy.since(started))

    def summarise(self, parts: Sequence[HeldOutScores]) -> RewardEvaluation:
        """The evaluation, from all ranks' scores. Not collective: any one rank can be asked."""
        found = {index: scores for part in parts for index, scores in zip(part.groups, part.scores, strict=True)}
        assert set(found) == set(self.data.held_out), "every held-out group is scored once"
        return evaluation_of(
            [self.data.group(index) for index in sorted(found)],
            [found[index] for index in sorted(found)],
            data_fingerprint=self.data.fingerprint,
        )

    def export_evaluated(self, folder: str, evaluation: RewardEvaluation) -> None:
        """Writes a Hugging Face folder, and in it the evaluation, where PPO finds mean and deviation (collective; rank 0 writes)."""
        assert self.config.model.model is not None
        self.export(folder, self.config.model.model)
        if self.context.rank == 0:
            write_stats(Path(folder), evaluation)


def check_group_lengths(data: RankingDataset, micro_batch_tokens: int) -> None:
    """UserError for a group that no micro-batch can take: its answers are compared in one."""
    for index, length in enumerate(data.lengths):
        if length > micro_batch_tokens:
            raise UserError(
                f"model.engine.micro_batch_tokens: got {micro_batch_tokens}; the answers of {data.group(index).where} have {length} tokens "
                "together, and must fit in one micro-batch. Raise it, or lower data.max_tokens"
            )


def batch_of(groups: Sequence[Group]) -> PackedBatch:
    """All answers of the groups, prompt and answer each a sequence of its own; none give the dummy."""
    import torch

    from actors.algorithms.records import PackedBatch, cumulative

    sequences = [sequence for group in groups for sequence in group.sequences]
    tokens = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64)
    cu_lengths = cumulative([len(sequence) for sequence in sequences])
    return PackedBatch.from_flat(tokens, cu_lengths, torch.zeros(len(tokens), dtype=torch.bool))


def ranks_of(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """Ranks int64 [G] and cumulative numbers of answers int64 [N + 1]."""
    import torch

    from actors.algorithms.records import cumulative

    ranks = torch.tensor([rank for group in groups for rank in group.ranks], dtype=torch.int64)
    return ranks, cumulative([len(group.ranks) for group in groups])


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

    from actors.algorithms.calibration import expected_calibration_error, pair_accuracy, pearson_correlation

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
    prob = torch.sigmoid(better - worse)
    lengths = torch.tensor([length for group in groups for length in group.answer_lengths], dtype=torch.float64)
    correlation = pearson_correlation(flat, lengths)
    return RewardEvaluation(
        num_groups=len(groups),
        num_pairs=len(pairs),
        pair_accuracy=pair_accuracy(better, worse),
        ece=expected_calibration_error(
            torch.cat([prob, 1 - prob]),
            torch.cat([torch.ones_like(prob), torch.zeros_like(prob)]),
            num_bins=NUM_BINS,
        ),
        length_correlation=None if math.isnan(correlation) else correlation,
        mean=float(flat.mean()),
        std=float(flat.std()),
        data_fingerprint=data_fingerprint,
    )


def write_stats(folder: Path, evaluation: RewardEvaluation) -> None:
    """Writes the evaluation into an exported model's folder, whole or not at all."""
    new = folder / f"{STATS_FILE}.new"
    new.write_text(json.dumps(asdict(evaluation), indent=2, allow_nan=False) + "\n", "utf-8")
    sync(new)
    os.replace(new, folder / STATS_FILE)
    sync(folder)


def load_reward_stats(model: str) -> RewardEvaluation:
    """What stage `reward` stored with the reward model `model` (folder or hub name).

    Raises:
        UserError: where there is nothing, or no spread to divide by.
    """
    from actors.models.checks import resolve_folder

    path = resolve_folder(model) / STATS_FILE
    remedy = "Use a model that stage reward exported, or set reward.model.normalise: false"
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"reward.model.model: {model!r} has no {STATS_FILE} with the mean and deviation of its scores. {remedy}"
        ) from error
    except ValueError as error:
        raise UserError(f"reward.model.model: {path} is not JSON: {error}. {remedy}") from error
    names = {field.name for field in fields(RewardEvaluation)}
    if not isinstance(found, dict) or set(found) != names:
        raise UserError(f"reward.model.model: {path} must have exactly the keys {', '.join(sorted(names))}. {remedy}")
    evaluation = RewardEvaluation(**found)
    if not evaluation.std > 0:
        raise UserError(
            f"reward.model.model: {path}: std must be > 0, got {evaluation.std}: this model gives every answer one score. {remedy}"
        )
    return evaluation
