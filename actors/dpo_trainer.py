"""A rank of stage `dpo`: a policy that learns from rankings, held near the model that it starts from.

The reference's log-probabilities are those of the weights before the first update: computed once, kept on disk beside the run.

Legend: `N` groups, `K` answers of one group, `G` answers of a micro-batch.

Imports of torch and of everything above it stand inside methods: see `actors.role`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from actors.context import RankContext
from actors.errors import NotFinite, UserError
from actors.reward_trainer import batch_of, check_group_lengths, groups_report, ranks_of
from actors.store import read_bytes, run_path, write_whole
from actors.supervised_trainer import ItemsReport, MicroBatch, MicroBatches, SupervisedTrainer
from actors.tasks import Busy
from configs.schema.supervised import DPOStage

if TYPE_CHECKING:
    from torch import Tensor

    from actors.algorithms.records import PackedBatch
    from actors.data.rankings import RankingDataset
    from actors.data.tokenizer import Tokenizer
    from actors.models.wrapped import WrappedModel

REFERENCE_FILE = "reference_logprobs.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencePart:
    """What one rank's groups are worth to the reference."""

    items: tuple[int, ...]
    logprobs: tuple[tuple[float, ...], ...]
    """[K] for each: of the whole answer, or of its mean token where the loss wants that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSum:
    """What one rank's part of the held-out groups added up to."""

    loss: float
    accuracy: float
    reward_gap: float
    num_groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceEvaluation:
    """How well the policy's implicit rewards rank answers that it never trained on. Means over groups."""

    num_groups: int
    loss: float
    pair_accuracy: float
    """Share of a group's pairs whose better answer has the higher implicit reward; equal ones count half."""
    reward_gap: float
    """By how much the better answer's implicit reward leads."""

    @property
    def merit(self) -> float:
        """Less loss is better."""
        return -self.loss

    def metrics(self) -> dict[str, float]:
        return {
            "held_out/loss": self.loss,
            "held_out/pair_accuracy": self.pair_accuracy,
            "held_out/reward_gap": self.reward_gap,
        }

    def described(self) -> str:
        found = f"loss {self.loss:.4f}, accuracy {self.pair_accuracy:.3f}, reward gap {self.reward_gap:.4f}"
        return f"held out: {self.num_groups} groups, {found}"


class DPOTrainer(SupervisedTrainer):
    """The policy that learns."""

    shard_folder: ClassVar[str] = "policy"
    evaluation_file: ClassVar[str] = "preceptor_dpo.json"
    forward_kwargs: ClassVar[dict[str, Any]] = {"temperature": 1.0, "with_entropy": False}

    def __init__(self, context: RankContext, config: DPOStage) -> None:
        super().__init__(context)
        self.config: DPOStage = config
        self.reference: dict[int, tuple[float, ...]] = {}
        """By group [K]."""

    def load_data(self, tokenizer: Tokenizer) -> str:
        """The rankings, and the reference's log-probabilities where an earlier driver stored them.

        Raises:
            UserError: for bad data, or a group that is larger than a micro-batch may be.
        """
        from actors.data.rankings import RankingDataset

        self.data: RankingDataset = RankingDataset.load(self.config.data, tokenizer)
        check_group_lengths(self.data, self.config.model.engine.micro_batch_tokens)
        self.reference = self._stored()
        return self.data.fingerprint

    def load_module(self, model: str) -> WrappedModel:
        from actors.models.causal_lm import load_policy

        return load_policy(model, self.config.model.engine, device=self.context.device)

    # -- the reference, before the first update

    def has_reference(self) -> bool:
        return bool(self.reference)

    def reference_logprobs(self, micro_batches: MicroBatches) -> tuple[ReferencePart, Busy]:
        """Of this rank's groups, under the weights of now (collective: the same number of micro-batches on every rank)."""
        started = time.time()
        found: dict[int, tuple[float, ...]] = {}
        for items in micro_batches:
            batch = self.packed(items)
            outputs = self.engine.forward(batch, **self.forward_kwargs)
            if items:
                answers = iter(self._of_answers(batch, outputs).tolist())
                found |= {item: tuple(next(answers) for _ in self.data.group(item).ranks) for item in items}
        return ReferencePart(items=tuple(found), logprobs=tuple(found.values())), Busy.since(started)

    def keep_reference(self, *parts: ReferencePart) -> None:
        """Takes up every rank's part; rank 0 stores them, so that a resumed run needs no second pass."""
        self.reference = {
            item: of_item for part in parts for item, of_item in zip(part.items, part.logprobs, strict=True)
        }
        assert len(self.reference) == len(self.data), "every group is scored once"
        if self.context.rank == 0:
            rows = [self.reference[item] for item in range(len(self.data))]
            found = {"data": self.data.fingerprint, "logprobs": rows}
            write_whole(self._reference_path(), json.dumps(found, allow_nan=False).encode())

    def _reference_path(self) -> Path:
        return run_path(self.context.run_dir) / REFERENCE_FILE

    def _stored(self) -> dict[int, tuple[float, ...]]:
        try:
            found = json.loads(read_bytes(self._reference_path()))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UserError(f"{self._reference_path()} is damaged: {error}. Remove it: it is computed again") from error
        if found["data"] != self.data.fingerprint:
            raise UserError(f"{self._reference_path()} is of other data. Put the data back, or start a new run")
        return {item: tuple(of_item) for item, of_item in enumerate(found["logprobs"])}

    # -- training

    def items(self) -> ItemsReport:
        return groups_report(self.data)

    def packed(self, items: Sequence[int]) -> PackedBatch:
        return batch_of([self.data.group(item) for item in items], answers_chosen=True)

    def loss(
        self, micro: MicroBatch, outputs: tuple[Tensor, ...], global_count: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        import torch

        from actors.algorithms.preference import dpo_loss, implicit_rewards

        dpo = self.config.dpo
        own = self._of_answers(micro.batch, outputs)
        ranks, cu_groups = ranks_of([self.data.group(item) for item in micro.items])
        reference = torch.tensor([value for item in micro.items for value in self.reference[item]], device=own.device)
        loss, metrics = dpo_loss(
            implicit_rewards(own, reference, beta=dpo.beta),
            ranks.to(own.device),
            cu_groups.to(own.device),
            kind=dpo.loss,
            beta=dpo.beta,
            label_smoothing=dpo.label_smoothing,
            global_count=global_count,
        )
        return loss, {
            "loss": loss.detach(),
            "pair_accuracy": metrics["accuracy"],
            "reward_gap": metrics["reward_gap"],
        }

    def _of_answers(self, batch: PackedBatch, outputs: tuple[Tensor, ...]) -> Tensor:
        """Log-probability of each answer [G], as the loss wants it."""
        from actors.algorithms.preference import answer_logprobs

        logprobs, _ = outputs
        mask, cu_lengths = batch.loss_mask.to(logprobs.device), batch.cu_lengths.to(logprobs.device)
        return answer_logprobs(logprobs, mask, cu_lengths, mean=self.config.dpo.loss == "ipo")

    def evaluate(self, micro_batches: MicroBatches) -> PreferenceSum:
        totals, count = {"loss": 0.0, "pair_accuracy": 0.0, "reward_gap": 0.0}, 0
        for items in micro_batches:
            micro = MicroBatch(items, self.packed(items))
            outputs = self.engine.forward(micro.batch, **self.forward_kwargs)
            if items:
                _, metrics = self.loss(micro, outputs, 1)
                totals = {name: total + float(metrics[name]) for name, total in totals.items()}
                count += len(items)
        return PreferenceSum(
            loss=totals["loss"],
            accuracy=totals["pair_accuracy"],
            reward_gap=totals["reward_gap"],
            num_groups=count,
        )

    def summarise(self, parts: Sequence[PreferenceSum]) -> PreferenceEvaluation:
        """Raises NotFinite for a loss that is not finite."""
        num_groups = sum(part.num_groups for part in parts)
        loss = sum(part.loss for part in parts) / num_groups
        if not math.isfinite(loss):
            raise NotFinite(f"{self.context.role}: the held-out loss is {loss}")
        return PreferenceEvaluation(
            num_groups=num_groups,
            loss=loss,
            pair_accuracy=sum(part.accuracy for part in parts) / num_groups,
            reward_gap=sum(part.reward_gap for part in parts) / num_groups,
        )
